"""What SEDTrainer expects of trl's SFTTrainer, in its source."""

import inspect
import re
import warnings
from pathlib import Path

import pytest
from trl import SFTTrainer

from canary import canary, expressions
from entropyfloor.sft import tested_versions


def test_versions():
    if tested_versions.untested():
        warnings.warn(f"{tested_versions.untested()} was not tested", stacklevel=1)


def test_the_docs_show_the_table_of_tested_versions():
    page = Path(__file__).parents[3] / "docs" / "compatibility.md"
    rows = re.findall(r"^\| (\d[\d.]*) \| (\d[\d.]*) \|", page.read_text(), re.M)
    assert rows == [(trl, t) for trl, versions in tested_versions.TESTED.items() for t in versions]


@canary
def test_arguments_of_the_trainer_that_are_read():
    names = inspect.signature(SFTTrainer.__init__).parameters
    assert {"model", "args", "train_dataset", "eval_dataset", "compute_loss_func"} <= set(names)


@canary
def test_metrics_have_the_names_that_we_give_them():
    found = expressions(SFTTrainer.compute_loss)
    for name in ("entropy", "mean_token_accuracy", "num_tokens", "aux_loss"):
        assert f"self._metrics[mode]['{name}']" in found
    assert "self._metrics[mode].items()" in expressions(SFTTrainer.log)


def test_a_canary_warns_and_does_not_fail():
    @canary
    def sings():
        raise AssertionError("it moved")

    with pytest.warns(UserWarning, match=r"sings: AssertionError.*it moved"):
        sings()
