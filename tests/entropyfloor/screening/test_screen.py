import json
from importlib.resources import files

import jsonschema
import pytest
import torch

from entropyfloor import ScreeningReport, p_star
from entropyfloor.rollouts import engines
from entropyfloor.rollouts.engines import prepare
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts
from entropyfloor.screening.table import screening_markdown
from flat_calls import screen, without_runtime

ROWS = tuple({"prompt": f"{a}+{a}=", "answer": str(2 * a), "topic": f"t{a}"} for a in range(1, 7))
PROMPTS = PromptSet(ROWS, "sums")
SMALL = {"max_new_tokens": 6, "progress": False, "num_samples": 4, "group_size": 4}


def even_start(prompts, completions, completion_ids, answer, topic, **columns):
    """A reward that passes about half of all rollouts and checks what it is given."""
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    assert all(p == f"{t[1:]}+{t[1:]}=" for p, t in zip(prompts, topic, strict=True))
    assert not columns
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def document(report):
    found = without_runtime(report.to_dict())
    del found["settings"]["batch_size"]
    return found


@pytest.mark.pictures
def test_report(save_checkpoint, tmp_path):
    wide, narrow = save_checkpoint("wide"), save_checkpoint("narrow", peak=300.0)
    report = screen(
        [wide, narrow],
        prompts=PROMPTS,
        reward=even_start,
        output_dir=tmp_path / "out" / "deep",
        **SMALL,
    )
    assert isinstance(report, ScreeningReport)
    first, second = report.checkpoints
    assert (first.name, second.name) == ("wide", "narrow")
    assert first.entropy_nats > 2.0 and first.verdict in ("ready", "undecided")
    assert second.entropy_nats < 0.18 and second.verdict == "collapsed"
    assert report.flagged == (second,)
    assert 0.0 < first.pass_at_1 < 1.0
    assert first.p_hat_over_p_star == pytest.approx(first.pass_at_1 / p_star(4))
    assert first.pass_at_k[1] == first.pass_at_1 <= first.pass_at_k[2] <= first.pass_at_k[4]
    assert first.degenerate_fraction == pytest.approx(
        first.degenerate_all_wrong + first.degenerate_all_right
    )

    document = json.loads((tmp_path / "out/deep/screening.json").read_text())
    assert document == report.to_dict()
    schema = files("entropyfloor.screening") / "screening.schema.json"
    jsonschema.validate(document, json.loads(schema.read_text()))
    assert document["settings"]["dtype"] == "auto (half precision computed in float32)"
    assert document["settings"]["engine"] == "transformers"
    assert ScreeningReport.from_dict(document) == report
    assert (document["schema"], document["schema_version"]) == ("entropyfloor.screening", 2)
    assert document["settings"]["reward"] == "even_start"
    assert document["settings"]["prompts"]["count"] == 6
    assert (tmp_path / "out/deep/screening.md").read_text() == screening_markdown(report)
    assert (tmp_path / "out/deep/screening.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "out/deep/rollouts-wide.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    sampled = [r for r in records if not r["greedy"]]
    assert sorted((r["prompt_index"], r["sample_index"]) for r in sampled) == [
        (prompt, sample) for prompt in range(6) for sample in range(4)
    ]
    assert sum(r["reward"] for r in sampled) / 24 == pytest.approx(first.pass_at_1)
    greedy = [r["reward"] for r in records if r["greedy"]]
    assert sum(greedy) / 6 == pytest.approx(first.greedy_pass_at_1)


def test_batch_size_changes_nothing(save_checkpoint):
    directory = save_checkpoint()
    reports = [
        screen([directory], prompts=PROMPTS, reward=even_start, batch_size=size, **SMALL)
        for size in (1, 3, 16)
    ]
    first, *others = map(document, reports)
    for other in others:
        for name, value in first["checkpoints"][0].items():
            if isinstance(value, float):
                assert other["checkpoints"][0][name] == pytest.approx(value, rel=1e-5)
            elif name in ("examples", "reasons", "notes"):
                assert len(others[0]["checkpoints"][0][name]) == len(value)
            elif name == "prompt_results":
                sums = other["checkpoints"][0][name].pop("entropy_sums")
                assert sums == pytest.approx(value["entropy_sums"], rel=1e-5)
                assert value == {
                    **other["checkpoints"][0][name],
                    "entropy_sums": value["entropy_sums"],
                }
            elif name != "intervals":
                assert other["checkpoints"][0][name] == value
        assert other["settings"] == first["settings"]


def test_same_seed_same_report(save_checkpoint):
    directory = save_checkpoint()
    torch.manual_seed(1)
    first = screen([directory], prompts=PROMPTS, seed=5, **SMALL)
    torch.manual_seed(2)
    assert document(screen([directory], prompts=PROMPTS, seed=5, **SMALL)) == document(first)
    other = screen([directory], prompts=PROMPTS, seed=6, **SMALL)
    assert other.checkpoints[0].entropy_nats != first.checkpoints[0].entropy_nats


def test_conversations_reach_the_reward_as_in_trl(save_checkpoint):
    seen = {}

    def reward(prompts, completions, **columns):
        seen.update(prompts=prompts, completions=completions)
        return [1.0] * len(prompts)

    chat = PromptSet(ROWS[:2]).with_chat_options(chat=True)
    report = screen([save_checkpoint()], prompts=chat, reward=reward, **SMALL)
    assert seen["prompts"][0] == [{"role": "user", "content": "1+1="}]
    (message,) = seen["completions"][0]
    assert message["role"] == "assistant" and isinstance(message["content"], str)
    assert report.checkpoints[0].pass_at_1 == 1.0
    assert report.checkpoints[0].degenerate_all_right == 1.0


def test_without_reward_group_size_does_not_matter(save_checkpoint):
    options = {**SMALL, "num_samples": 2, "group_size": 8}
    report = screen([save_checkpoint()], prompts=PROMPTS, **options)
    assert not report.has_reward
    assert "pass@1" not in screening_markdown(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reward": "exact_match", "num_samples": 3}, "draw at least 4 samples, or set group_size"),
        ({"reward": "exact_match", "ks": [1, 9]}, r"k = 9"),
        ({"reward": "exact_match", "group_size": 0}, "group_size"),
        ({"reward": "nonsense"}, "unknown reward 'nonsense'"),
        ({"reward": "reasoning_gym"}, "needs a column 'entry'"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"tau_h": -1.0}, "tau_h"),
        ({"temperature": 0.0}, "temperature"),
        ({"dtype": "int4"}, "unknown dtype"),
        ({"device": "warp"}, "cannot be used here"),
        ({"max_new_tokens": 255}, "lower max_new_tokens to 252 or less"),
    ],
)
def test_bad_arguments_before_any_model_is_loaded(save_checkpoint, monkeypatch, options, words):
    monkeypatch.setattr(engines, "load_checkpoint", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=words):
        screen([save_checkpoint()], prompts=PROMPTS, **{**SMALL, **options})


@pytest.mark.parametrize("broken", ["pickle", "no tokenizer", "no template", "missing"])
def test_the_last_checkpoint_is_checked_before_the_first_is_loaded(
    save_checkpoint, monkeypatch, tmp_path, broken
):
    monkeypatch.setattr(engines, "load_checkpoint", lambda *_, **__: pytest.fail("loaded"))
    good = save_checkpoint("good")
    bad = {
        "pickle": lambda: save_checkpoint("bad", safe=False),
        "no tokenizer": lambda: save_checkpoint("bad", tokenizer=False),
        "no template": lambda: save_checkpoint("bad", chat=False),
        "missing": lambda: tmp_path / "bad",
    }[broken]()
    with pytest.raises((ValueError, FileNotFoundError), match="bad"):
        screen([good, bad], prompts=PROMPTS.with_chat_options(chat=True), **SMALL)


def test_broken_weights_name_their_checkpoint(save_checkpoint):
    directory = save_checkpoint("broken", peak=float("nan"))
    with pytest.raises(ValueError, match=r"broken gave logits that are NaN or infinite"):
        screen([directory], prompts=PROMPTS, **SMALL)


def test_checkpoints_of_one_tokenizer_share_its_work(save_checkpoint, monkeypatch):
    calls = []

    def counting(prompts, tokenizer, *, where):
        calls.append(where)
        return encode_prompts(prompts, tokenizer, where=where)

    monkeypatch.setattr("entropyfloor.rollouts.engines.encode_prompts", counting)
    same = [save_checkpoint(name, seed=seed) for seed, name in enumerate("abc")]
    (same[1] / "optimizer.pt").write_bytes(b"not the tokenizer's")
    (same[2] / "trainer_state.json").write_text("{}")
    options = {"held_out": None, "max_new_tokens": 6, "trust_remote_code": False}
    tasks = prepare(same, PROMPTS, **options)
    assert len(calls) == 1 and all(task.encoded == tasks[0].encoded for task in tasks)
    other = save_checkpoint("other", chat=False)
    prepare([*same, other], PROMPTS, **options)
    assert calls[1:] == [str(same[0]), str(other)]
