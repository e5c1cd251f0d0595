"""The whole measurement on tiny random checkpoints: a run, an adapter, a folder, and refusals."""

import copy
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from entropyfloor.coupling.report import CouplingReport
from entropyfloor.models.checkpoints import load_checkpoint
from entropyfloor.rollouts import engines
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.rollouts.teacher_forced import encode_held_out
from entropyfloor.stats.intervals import bootstrap_interval
from flat_calls import measure_coupling
from tiny_models import tiny_model, tiny_tokenizer

DEMOS = PromptSet(
    tuple({"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(7)), "demonstrations"
)
PROMPTS = PromptSet(tuple({"prompt": f"{a}+2="} for a in range(6)), "prompts")
SMALL = {"max_new_tokens": 3, "num_samples": 4, "sft_samples": 3, "rank": 2, "progress": False}


def even_bytes(completions, **_):
    """Half of the first letters pass: rewards that differ within a group."""
    return [float(bool(text) and ord(text[0]) % 2 == 0) for text in completions]


def measure(sft, rl, **changes):
    return measure_coupling(
        sft,
        rl,
        **{"demonstrations": DEMOS, "prompts": PROMPTS, "reward": even_bytes, **SMALL, **changes},
    )


@pytest.fixture
def run(save_checkpoint, tmp_path):
    """A start, and a trainer's folder whose checkpoints drift away from it."""
    start = save_checkpoint("start")
    drift = tiny_model(seed=5).state_dict()
    for step in (10, 2, 30, 20):
        model = tiny_model()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(drift[name], alpha=0.01 * step)
        folder = tmp_path / "rl" / f"checkpoint-{step}"
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return start, tmp_path / "rl"


@pytest.mark.pictures
def test_a_trainers_folder(run, tmp_path):
    start, folder = run
    report = measure(start, folder, output_dir=tmp_path / "out", gradient_rows=6)
    assert report.order == "sft-rl"
    assert [c.step for c in report.checkpoints] == [0, 2, 10, 20, 30]
    assert report.settings["step_unit"] == "step"
    first, last = report.checkpoints[0], report.checkpoints[-1]
    assert first.identity is None and first.kl == {} and first.loss_rise == 0.0

    # Losses and their rise against the model's own logits.
    @torch.no_grad()
    def losses(path):
        checkpoint = load_checkpoint(path)
        encoded = encode_prompts(DEMOS, checkpoint.tokenizer, where="")
        rows = encode_held_out(DEMOS, encoded, checkpoint.tokenizer)
        sums = []
        for row in rows:
            logits = checkpoint.model(torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0]
            log_p = logits[len(row.prompt_ids) - 1 : -1].double().log_softmax(-1)
            sums.append(-float(log_p.gather(1, torch.tensor(row.ids)[:, None]).sum()))
        return np.array(sums), np.array([len(row.ids) for row in rows])

    before, tokens = losses(start)
    after, _ = losses(folder / "checkpoint-30")
    assert first.sft_loss == pytest.approx(before.sum() / tokens.sum(), rel=1e-5)
    rise = (after - before).sum() / tokens.sum()
    assert last.loss_rise == pytest.approx(rise, rel=1e-4)
    assert last.intervals["loss_rise"] == pytest.approx(
        bootstrap_interval((after - before).tolist(), tokens.tolist()), rel=1e-4
    )
    assert last.identity.rise == pytest.approx((after - before).mean(), rel=1e-4)
    assert last.identity.gap == pytest.approx(last.identity.tokens + last.identity.contexts)
    # The exact KL and the sampled log ratio are two estimates of one number.
    assert last.identity.kl_sampled == pytest.approx(last.identity.kl, rel=0.5)
    assert last.kl.keys() == {
        "forward_own", "reverse_own", "forward_demonstrations", "reverse_demonstrations",
        "reverse_rollouts",
    }  # fmt: skip
    assert all(value > 0 for value in last.kl.values())
    assert report.checkpoints[1].kl["forward_own"] < last.kl["forward_own"]
    assert last.alignment.parameters == "all" and -1 <= last.alignment.whole.agreement.cosine <= 1
    assert report.pl["sft_loss"].points > 0
    assert [a.question for a in report.durations] == ["best", "threshold"]
    assert report.fit is not None and report.durations[0].words

    for name in ("coupling.json", "coupling.md", "coupling.html", "coupling.png"):
        assert (tmp_path / "out" / name).stat().st_size > 500
    document = json.loads((tmp_path / "out" / "coupling.json").read_text())
    assert CouplingReport.from_dict(document).to_dict() == document


def test_measured_checkpoints_are_not_measured_again(run, tmp_path, monkeypatch):
    start, folder = run
    out = {"output_dir": tmp_path / "out", "gradient_rows": 4}
    some = [folder / "checkpoint-2", folder / "checkpoint-10"]
    before = measure(start, some, **out)
    loads = []
    load = engines.load_checkpoint

    def counting(source, **options):
        loads.append(source.directory.name)
        return load(source, **options)

    monkeypatch.setattr(engines, "load_checkpoint", counting)
    again = measure(start, some, **out)
    assert loads == []

    def numbers(report, count):
        rows = report.to_dict()["checkpoints"][:count]
        return [{k: v for k, v in row.items() if k not in ("runtime_s", "name")} for row in rows]

    assert numbers(again, 3) == numbers(before, 3)
    more = measure(start, folder, **out)  # two more checkpoints
    assert sorted(loads) == ["checkpoint-20", "checkpoint-30", "start"]
    assert numbers(more, 3) == numbers(before, 3)
    # A checkpoint that was written again is measured again.
    loads.clear()
    shutil.copytree(
        folder / "checkpoint-30",
        folder / "checkpoint-2",
        dirs_exist_ok=True,
        copy_function=shutil.copy,
    )
    changed = measure(start, some, **out)
    assert sorted(loads) == ["checkpoint-2", "start"]
    assert changed.checkpoints[1].sft_loss == pytest.approx(more.checkpoints[4].sft_loss)
    with pytest.raises(ValueError, match=r"with other settings .*seed: 0 then, 1 now"):
        measure(start, some, seed=1, **out)
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.raises(ValueError, match="rollouts of something else"):
        measure(start, some, **out)


def test_a_killed_run_goes_on(run, tmp_path, monkeypatch):
    start, folder = run
    whole = measure(start, folder, gradient_rows=0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("entropyfloor.coupling.measure.pair_sums", killed)
        with pytest.raises(KeyboardInterrupt):
            measure(start, folder, gradient_rows=0, output_dir=tmp_path / "out")
    again = measure(start, folder, gradient_rows=0, output_dir=tmp_path / "out")
    for a, b in zip(again.checkpoints, whole.checkpoints, strict=True):
        assert (a.sft_loss, a.mean_reward, a.kl, a.intervals) == (
            b.sft_loss, b.mean_reward, b.kl, b.intervals,
        )  # fmt: skip
    assert again.checkpoints[-1].alignment is None


def test_only_an_adapter_apart(save_checkpoint, tmp_path):
    start = save_checkpoint("base")
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(load_checkpoint(start).model, config).save_pretrained(tmp_path / "adapter")
    report = measure(start, tmp_path / "adapter", gradient_rows=6)
    base, adapter = report.checkpoints
    assert adapter.kl["forward_own"] > 0.01
    assert (base.alignment.parameters, adapter.alignment.parameters) == ("all", "adapter")
    # Gradients by other parameters do not make one PL constant: the base's are left out.
    assert report.pl["sft_loss"].at in (None, 1)
    assert report.durations[0].modelled.step is None  # two points fit anything
    assert report.settings["step_unit"] == "checkpoint"


def test_sft_after_rl(run):
    start, folder = run
    report = measure([folder], start, gradient_rows=0)
    assert report.order == "rl-sft" and report.checkpoints[0].name == "start"
    assert report.fit is None and report.durations[0].modelled is None
    # The SFT models are now the later ones: the KL runs along their samples.
    turned = measure(start, folder, gradient_rows=0).checkpoints[-1]
    last = report.checkpoints[-1]
    assert last.loss_rise == pytest.approx(turned.loss_rise, abs=1e-6)
    assert last.kl["forward_demonstrations"] == pytest.approx(
        turned.kl["reverse_demonstrations"], rel=1e-5
    )
    # identity.rise compares the RL model with the SFT model, whichever came first.
    assert last.identity.rise == pytest.approx(-turned.identity.rise, rel=1e-4)


def _must_not_load(*_, **__):
    raise AssertionError("loaded")


def test_refusals_come_before_any_model_is_loaded(run, save_checkpoint, tmp_path, monkeypatch):
    start, folder = run
    monkeypatch.setattr(engines, "load_checkpoint", _must_not_load)
    other = save_checkpoint("other")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens(["<|think|>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(
        ValueError, match=r"different tokenizers \(261 and 262 tokens; '<\|think\|>' is missing"
    ):
        measure(start, other)
    template = save_checkpoint("template")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", "")
    tokenizer.save_pretrained(template)
    with pytest.raises(ValueError, match="same vocabulary but turn these rows into different"):
        measure(start, template, prompts=PROMPTS.with_chat_options(chat=True))
    with pytest.raises(ValueError, match=r"starts from one checkpoint; with 4 SFT and 4 RL"):
        measure(folder, folder)
    with pytest.raises(ValueError, match="2 steps were given for 4 checkpoints"):
        measure(start, folder, steps=[1, 2])
    with pytest.raises(ValueError, match="each step once"):
        measure(start, folder, steps=[1, 2, 2, 3])
    with pytest.raises(ValueError, match="no 'completion'"):
        measure(start, folder, demonstrations=PROMPTS)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        measure(start, folder, num_samples=1)
    with pytest.raises(ValueError, match="unknown order"):
        measure(start, folder, order="both")
    with pytest.raises(ValueError, match="weight must be 0 or positive"):
        measure(start, folder, weight=-1.0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure(start, "./nowhere")
    with pytest.raises(ValueError, match=r"exceeds the context"):
        measure(start, folder, max_new_tokens=1000)


def test_a_reward_that_applies_to_other_prompts_at_another_checkpoint(run):
    calls = itertools.count()

    def reward(prompts, **_):  # a call for each checkpoint
        later = next(calls) > 0
        return [None if later and prompt == "0+2=" else 1.0 for prompt in prompts]

    start, folder = run
    with pytest.raises(ValueError, match="to 6 prompts at start and to 5, or others, at check"):
        measure(start, folder / "checkpoint-2", reward=reward, gradient_rows=0)


def test_constant_reward(run):
    """Nothing to learn: the reward's gradient vanishes, and the report says so."""
    start, folder = run
    report = measure(
        start, folder / "checkpoint-10", reward=lambda completions, **_: [1.0] * len(completions)
    )
    last = report.checkpoints[-1]
    assert last.reward_gain == 0.0 and last.alignment.whole.agreement.cosine is None
    assert any("a gradient vanishes" in note for note in last.notes)
    assert report.pl["reward"].mu is None
