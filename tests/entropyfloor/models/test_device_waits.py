"""A patched model's step on fake CUDA tensors: how often our code waits for the device."""

import json
import subprocess
import sys

import head_trace
import pytest


@pytest.mark.parametrize("floor", ["model", "cached"])
def test_two_waits_a_micro_batch_and_one_a_step(tmp_path, floor):
    """SED with an acting floor, uniform or anchored to a cache on disk, two micro-batches, and the
    sums that the floor reads."""
    library = head_trace.compile_fake_cuda(tmp_path)
    if library is None:
        pytest.skip("no C++ compiler for a fake CUDA device")
    words = [sys.executable, head_trace.__file__, library, floor]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    of_head = ["read in call.py:_look", "read in chunks.py:statistics"]
    assert json.loads(done.stdout) == [*of_head, *of_head, "read in loss_head.py:pop_sums"]
