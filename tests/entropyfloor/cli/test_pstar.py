import io
import sys

import pytest

from entropyfloor.cli.main import exit_code, main


def test_prints_one_line_per_group_size(capsys):
    assert main(["pstar", "8", "16"]) == 0
    assert capsys.readouterr().out == "p*(8) = 0.0830\np*(16) = 0.0424\n"


def test_output_goes_to_a_pipe_that_knows_less_than_unicode(monkeypatch):
    """Hours of rollouts, and the histogram's bars are no letters of latin-1."""
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert exit_code("band", lambda: print("3 │ ██") or 0) == 0
    pipe.flush()
    assert pipe.buffer.getvalue() == b"3 ? ??\n"


def test_bad_group_sizes(capsys):
    assert main(["pstar", "0"]) == 2
    assert "whole number >= 1; got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["pstar", "eight"])
    assert exit_.value.code == 2
