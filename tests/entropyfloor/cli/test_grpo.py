"""``entropyfloor grpo``: trl's flags and YAML with the paper's defaults, ours beside them."""

import json
from dataclasses import fields

import pytest
from packaging.version import Version
from trl import DatasetMixtureConfig, GRPOConfig, ModelConfig
from trl import __version__ as trl_version
from trl.scripts.grpo import GRPOScriptArguments
from verb_words import error_of, verb_words

from entropyfloor.cli import grpo
from entropyfloor.cli.main import main
from entropyfloor.cli.training_rewards import chosen_rewards, monitor_of
from entropyfloor.rl.monitor_memory import read_log

ROWS = [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(8)]


@pytest.fixture
def flags(save_checkpoint, write_jsonl, tmp_path, monkeypatch):
    """The least a run needs, kept short and quiet; a reward that some rollouts get."""
    (tmp_path / "short_reward.py").write_text(
        "def short(completions, **_):\n    return [float(len(c) % 2) for c in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    model, rows = save_checkpoint("model"), write_jsonl(ROWS, "rows.jsonl")

    def build(**changes):
        words = {
            "model_name_or_path": model,
            "prompts": rows,
            "reward": "short_reward:short",
            "output_dir": tmp_path / "out",
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "max_completion_length": 4,
        }
        return verb_words(**words | changes)

    return build


def test_every_flag_of_trl_is_here_with_its_default_or_the_papers(flags):
    ours = {f.name for f in (*fields(grpo.GRPOArguments), *fields(grpo.DAPOConfig)) if f.init}
    theirs = {f.name for f in (*fields(GRPOScriptArguments), *fields(GRPOConfig)) if f.init}
    assert theirs <= ours
    paper = {f.name: f.default for f in fields(grpo.DAPOConfig)}
    changed = {f.name for f in fields(GRPOConfig) if paper[f.name] != f.default}
    assert changed == {"epsilon_high", "max_steps", "save_steps"}
    names = [*ours, *(f.name for c in (ModelConfig, DatasetMixtureConfig) for f in fields(c))]
    assert len(names) == len(set(names))


def test_trains_watches_and_saves(flags, tmp_path, capsys):
    assert main(["grpo", *flags()]) == 0
    out = tmp_path / "out"
    assert (out / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "Model saved to" in printed
    assert "Monitor: Step 2 of 2" in printed
    assert f"entropyfloor screen {tmp_path / 'model'} {out}" in printed
    steps = [record for record in read_log(out) if record["event"] == "step"]
    assert [record["groups"] for record in steps] == [2, 2]


def test_monitor_off_and_policies(flags, tmp_path):
    assert main(["grpo", *flags(monitor="off")]) == 0
    assert not (tmp_path / "out" / "collapse_monitor.jsonl").exists()
    chosen = grpo.VERB.parse(
        flags(monitor="restore", monitor_tau_2=0.3, monitor_late_step=7, monitor_window=2)
    )
    (monitor,) = monitor_of(chosen.script, threshold=1.0)
    assert monitor.policy == "stop-and-restore"
    assert (monitor.tau_2, monitor.late_step, monitor.window) == (0.3, 7, 2)


def test_yaml_and_flags_over_it(flags, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("beta: 0.01\nmax_steps: 7\nmonitor: warn\nreward: [exact_match]\n")
    parsed = grpo.VERB.parse(["--config", str(config), *flags(reward=None)])
    assert (parsed.training.beta, parsed.training.max_steps) == (0.01, 2)
    assert (parsed.script.monitor, parsed.script.reward) == ("warn", ["exact_match"])
    assert parsed.training.epsilon_high == 0.28


def test_trls_own_way_of_naming_rows_and_rewards(flags, tmp_path):
    argv = flags(prompts=None, reward=None, dataset_name=tmp_path / "rows.jsonl")
    assert main(["grpo", *argv, "--reward_funcs", "short_reward.short"]) == 0
    rewards = chosen_rewards(
        grpo.VERB.parse(
            [
                *flags(reward=["exact_match", "short_reward:short"]),
                *("--reward_funcs", "think_format_reward", "get_soft_overlong_punishment"),
                *("--reward_model_name_or_path", "some/model"),
            ]
        ).script
    )
    assert [getattr(reward, "__name__", reward) for reward in rewards] == [
        "exact_match",
        "short",
        "think_format_reward",
        "soft_overlong_punishment_reward",
        "some/model",
    ]


def test_paper_lora(flags, tmp_path):
    assert main(["grpo", *flags(paper_lora=True)]) == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (128, 128)
    assert any("embed_tokens" in name for name in config["target_modules"])


def test_screened_afterwards_with_the_start(flags, tmp_path, capsys):
    saving = {"save_strategy": "steps", "save_steps": 1}
    argv = flags(**saving, screen_prompts=tmp_path / "rows.jsonl", screen_samples=6)
    assert main(["grpo", *argv]) == 0
    report = json.loads((tmp_path / "out" / "screening" / "screening.json").read_text())
    names = [checkpoint["name"] for checkpoint in report["checkpoints"]]
    assert names == ["model", "checkpoint-1", "checkpoint-2"]
    assert report["settings"]["group_size"] == 4
    assert report["settings"]["num_samples"] == 6
    assert report["settings"]["max_new_tokens"] == 4
    assert "Screening" in capsys.readouterr().out


def test_reasoning_gym_rows_and_reward(flags):
    pytest.importorskip("reasoning_gym")
    argv = flags(prompts="reasoning_gym:chain_sum?size=8&seed=7", reward="reasoning_gym")
    assert main(["grpo", *argv]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": None}, "no reward: give --reward"),
        ({"reward": "exact"}, "unknown reward 'exact'"),
        ({"reward": "reasoning_gym"}, "needs a column 'entry'"),
        ({"prompts": None}, "no training data"),
        ({"dataset_name": "rows.jsonl"}, "both name rows"),
        ({"system": "x"}, "--system would have no effect; give --chat"),
        pytest.param(
            {"chat_template_kwargs": '{"a": 1}'},
            "--chat_template_kwargs would have no effect",
            marks=pytest.mark.skipif(
                Version(trl_version) < Version("1.13"), reason="trl cannot read this flag"
            ),
        ),
        ({"paper_lora": True, "use_peft": True}, "two adapters"),
        ({"monitor_tau_2": 3}, "between 0 and 1"),
        ({"epsilon_high": 0.1}, "below epsilon"),
        ({"num_train_epochs": 2}, "wins over num_train_epochs"),
        ({"screen_samples": 8}, "is about --screen_prompts"),
        ({"screen_prompts": "rows.jsonl", "screen_samples": 2}, "draw at least 4"),
        ({"screen_prompts": "none.jsonl"}, "no prompts at 'none.jsonl'"),
        ({"reward": None, "reward_funcs": "exact_match"}, "use --reward"),
        ({"reward": None, "reward_funcs": "no.such"}, "cannot be imported"),
        ({"monitr": "warn"}, "unknown argument --monitr. Did you mean --monitor?"),
    ],
)
def test_refused_before_the_model_is_loaded(flags, changes, words, capsys, monkeypatch):
    monkeypatch.setattr("trl.GRPOTrainer.__init__", None)
    assert words in error_of("grpo", flags(**changes), capsys)


def test_monitor_choices(flags, capsys):
    with pytest.raises(SystemExit):
        main(["grpo", *flags(monitor="maybe")])
    assert "invalid choice" in capsys.readouterr().err
