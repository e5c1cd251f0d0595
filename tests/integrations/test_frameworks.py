"""A framework's own command with our loss: equal to its own loss, to the papers', and never silent.

Runs in an environment of that framework: `make test-integrations`.
"""

import importlib.util
import json

import numpy as np
import pytest
import reference
import torch
from frameworks import EXAMPLE, FRAMEWORKS, MICRO_BATCHES, RECORD, REPLACE, STEPS, run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tiny_models import tiny_model, tiny_tokenizer

FLOOR = 5.5  # nats, of log(261) = 5.56: above what the model has after a step


@pytest.fixture(scope="module", params=[n for n, each in FRAMEWORKS.items() if each.command])
def name(request):
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed here: make test-integrations")
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """A model and rows; each run has a folder beside them."""
    folder = tmp_path_factory.mktemp(name)
    tiny_model("qwen2").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    rows = [
        [
            {"role": "user", "content": f"what is {i}?"},
            {"role": "assistant", "content": f"{i}, " * (1 + i % 3)},
        ]
        for i in range(STEPS * MICRO_BATCHES * 2)
    ]
    lines = [json.dumps({"messages": messages}) for messages in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def finished(name, folder, **how):
    """The run's log, one entry a step, and its last checkpoint."""
    result = run(name, folder, **how)
    assert result.returncode == 0, result.stdout[-4000:]
    checkpoint = folder / "out" / f"checkpoint-{STEPS}"
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry], checkpoint


@pytest.fixture(scope="module")
def own(name, folder):
    """The framework's own cross-entropy, and the micro-batches that it saw."""
    log, checkpoint = finished(name, folder / "own", extra=RECORD)
    batches = torch.load(folder / "own" / "batches.pt")
    assert len(log) == STEPS and len(batches) == STEPS * MICRO_BATCHES
    return log, checkpoint, batches


def first_step(name, folder, batches, loss):
    """The first step's loss in float64, from the paper's formula and the starting model."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float64).eval()
    sums, counts = [], []
    for batch in batches[:MICRO_BATCHES]:
        labels = batch["labels"][:, 1:].numpy()
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = model(**inputs).logits[:, :-1].numpy()
        scored = labels != -100
        sums.append(loss(logits[scored], labels[scored])[0].sum())
        counts.append(scored.sum())
    if FRAMEWORKS[name].mean_of_means:
        return float(np.mean(np.divide(sums, counts)))
    return float(np.sum(sums) / np.sum(counts))


def test_cross_entropy_is_the_framework_s_own(name, folder, own):
    log, checkpoint, batches = own
    ours, our_checkpoint = finished(name, folder / "ce", settings={"loss": "ce"})
    for theirs, mine in zip(log, ours, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
    assert ours[0]["loss"] == pytest.approx(
        first_step(name, folder, batches, reference.ce), rel=1e-6
    )
    weights = load_file(checkpoint / "model.safetensors")
    for key, value in load_file(our_checkpoint / "model.safetensors").items():
        torch.testing.assert_close(value, weights[key], rtol=1e-5, atol=1e-6)


def test_the_example_runs_and_its_gem_is_the_paper_s(name, folder, own):
    log, _, batches = own
    ours, checkpoint = finished(name, folder / "gem", settings=EXAMPLE)
    record = json.loads((checkpoint / "entropyfloor.json").read_text())
    assert (record["loss"], record["options"]) == ("gem", {"beta": EXAMPLE["beta"]})
    assert record["floor"]["settings"]["floor"] == EXAMPLE["entropy_floor"]
    expected = first_step(name, folder, batches, lambda z, y: reference.gem(z, y, 0.7))
    assert ours[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(ours[0]["loss"] - log[0]["loss"]) > 0.1


def test_sed_is_calibrated_and_a_floor_moves(name, folder, own):
    log, _, batches = own
    floor = {"entropy_floor": FLOOR, "floor_place": "uniform"}
    ours, checkpoint = finished(name, folder / "sed", settings={"loss": "sed", **floor})
    record = json.loads((checkpoint / "entropyfloor.json").read_text())
    assert record["loss"] == "sed"
    lam, k, tau = (record["options"][option] for option in ("lam", "top_k", "tau"))
    assert 0 < tau < 1
    expected = first_step(name, folder, batches, lambda z, y: reference.sed(z, y, lam, k, tau))
    assert ours[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert abs(ours[0]["loss"] - log[0]["loss"]) > 0.01
    weights = [entry["floor_weight"] for entry in ours]
    assert weights[0] > 0 and sorted(weights) == weights and weights[-1] > weights[0]


def test_a_replaced_loss_ends_the_first_step(name, folder):
    result = run(name, folder / "replaced", settings={"loss": "gem"}, extra=REPLACE)
    assert result.returncode != 0
    assert "computed its first step without the loss that the model was patched" in result.stdout
    assert not list((folder / "replaced").rglob("trainer_state.json"))
