import pytest

from entropyfloor.cli.main import main


def test_prints_one_line_per_group_size(capsys):
    assert main(["pstar", "8", "16"]) == 0
    assert capsys.readouterr().out == "p*(8) = 0.0830\np*(16) = 0.0424\n"


def test_bad_group_sizes(capsys):
    assert main(["pstar", "0"]) == 2
    assert "whole number >= 1; got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["pstar", "eight"])
    assert exit_.value.code == 2
