"""Options of trl and transformers beside our loss: the run is the same as without them.

What is not here: tests/entropyfloor/sft/test_quantised.py, test_parity.py and
gft/test_gft_update.py (prompt and prefix tuning), test_refusals.py, and ``make test-sharded``.
"""

import sys
import types
from functools import partial

import pytest
import torch
from sft_runs import needs_mended_trl
from sharded_run import largest, logged, trainer_of
from torch._dynamo.utils import counters
from trl.models.activation_offloading import OffloadActivations

STEPS = 3


def train(cell, folder, **options):
    """Three steps of a cell of ``make test-sharded``, on one process."""
    folder.mkdir()
    plain = {"max_steps": STEPS, "save_strategy": "no", "floor_probe_prompts": 0}
    trainer = trainer_of(cell, "one", folder, 1, **plain, **options)
    trainer.train()
    return logged(trainer), trainer


def assert_no_difference(cell, tmp_path, **options):
    plain, _ = train(cell, tmp_path / "plain")
    with_option, trainer = train(cell, tmp_path / "option", **options)
    assert largest(with_option, plain) < 1e-6
    assert all(step["grad_norm"] > 0 for step in plain)
    return trainer


@needs_mended_trl  # before, trl's offloading could not be built without CUDA
@pytest.mark.parametrize("cell", ["sed-lora", "uniform-full", "onset_anchor-full", "anchor-lora"])
def test_activation_offloading(tmp_path, monkeypatch, cell):
    """Activations are copied away when they are saved, and copied back: here within one memory."""
    cpu = types.SimpleNamespace(type="cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: cpu)
    in_memory = {"use_pin_memory": False, "use_streams": False, "min_offload_size": 1}
    contexts = []

    class Counted(OffloadActivations):
        def __init__(self, **_):
            super().__init__(**in_memory)
            pack, self.moved = self.pack_hook, 0
            contexts.append(self)

            def counted(tensor):
                number = pack(tensor)
                self.moved += self.tracker[number][1]
                return number

            self.pack_hook = counted

    monkeypatch.setattr("trl.models.activation_offloading.OffloadActivations", Counted)
    assert_no_difference(cell, tmp_path, activation_offloading=True)
    assert contexts[0].moved > 10 * STEPS


@pytest.mark.slow  # torch's compiler traces for seconds
@pytest.mark.parametrize("cell", ["ce-full", "onset_anchor-full", "anchor-lora", "gft_anchor-lora"])
def test_compiled(tmp_path, cell):
    """The backbone is compiled, as graphs of many operators; the loss is stepped over."""
    torch._dynamo.reset()
    counters.clear()
    assert_no_difference(cell, tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    stats = counters["stats"]
    assert 2 <= stats["unique_graphs"] <= 6
    assert stats["calls_captured"] > 50 * stats["unique_graphs"]


def test_liger(tmp_path, monkeypatch):
    """trl leaves Liger's fused loss out; what Liger then does to layers is not ours to test."""
    asked = []

    def apply(model, **kernels):
        asked.append(kernels)
        if kernels.get("fused_linear_cross_entropy", True):
            model.forward = partial(type(model).forward, model)

    package = types.ModuleType("liger_kernel.transformers")
    package._apply_liger_kernel_to_instance = apply
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    assert_no_difference("anchor-lora", tmp_path, use_liger_kernel=True)
    assert [kernels["fused_linear_cross_entropy"] for kernels in asked] == [False]
    with pytest.raises(ValueError, match="fused_linear_cross_entropy"):
        fused = {
            "use_liger_kernel": True,
            "liger_kernel_config": {"fused_linear_cross_entropy": True},
        }
        trainer_of("ce-full", "one", tmp_path, 1, **fused)
