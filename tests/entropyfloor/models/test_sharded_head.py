"""Two processes (gloo, CPU), parameters sharded by FSDP2: the head trains as on one process.

A head that is a sharded unit of its own is gathered by the loss, and so is its gradient.
"""

import json
from pathlib import Path

import pytest
from sharded_head_run import CASES, run_all

from two_processes import two_processes


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    with two_processes(str(Path(__file__).with_name("sharded_head_run.py")), two):
        run_all(one)
    return json.loads((one / "0.json").read_text()), json.loads((two / "0.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_losses_of_four_steps(losses, case):
    one, two = (found[case] for found in losses)
    assert two == pytest.approx(one, rel=1e-5)
    assert one[-1] != pytest.approx(one[0], rel=0.1)  # it did train
