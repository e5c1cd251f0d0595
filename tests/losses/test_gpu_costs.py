"""What the head would cost a GPU, on fake CUDA tensors: budgets that fail when a cost grows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from head_trace import compile_fake_cuda

from entropyfloor_losses import LOSS_NAMES

# Waits for the device a call, passes over fp32 [n, V], matrix products.
KERNELS = (2, 2.5, 3)
BUDGETS = {
    **dict.fromkeys(LOSS_NAMES, KERNELS),
    "ce, smoothed": KERNELS,
    "ce, anchor from cache": KERNELS,
    "ce, anchor": (2, 4.5, 4),  # and the reference's logits
    "dco": (4, 2.5, 3),  # how many sequences, and how long they are
    "eaft": (2, 15.5, 3),  # the 20 most likely tokens: torch computes
    "ce; torch": (2, 15.5, 3),
    "gem; torch": (2, 34.5, 3),
    "ce, anchor; torch": (2, 32.5, 4),
}
# Logits of 2048 tokens, their weight's gradient in fp32, and what comes in and goes out.
MOST_MIB = {"kernels": 3100, "torch": 3800}


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    library = compile_fake_cuda(tmp_path_factory.mktemp("fake_cuda"))
    if library is None:
        pytest.skip("no C++ compiler for a fake CUDA device")
    program = Path(__file__).with_name("head_trace.py")
    done = subprocess.run(
        [sys.executable, program, library],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_loss_is_traced(traced):
    assert set(traced) == set(BUDGETS)


@pytest.mark.parametrize("name", BUDGETS)
def test_costs_are_within_their_budget(traced, name):
    waits, passes, products = BUDGETS[name]
    cost = traced[name]
    assert len(cost["waits"]) <= waits, cost["waits"]
    assert cost["passes"] <= passes + 0.05  # vectors of tokens come on top
    assert cost["products"] == pytest.approx(products)
    torchs = "torch" in name or name == "eaft"
    if "anchor" not in name:  # which holds the reference's head and logits too
        assert cost["peak_mib"] <= MOST_MIB["torch" if torchs else "kernels"]
