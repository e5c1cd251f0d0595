"""README and docs: every Python block runs, every console command exits as documented."""

import re
import shlex
import shutil
from dataclasses import MISSING
from glob import glob
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from entropyfloor.cli.main import main
from entropyfloor.rollouts.rewards import NAMED_REWARDS
from entropyfloor_losses import LOSS_NAMES, loss_options
from tiny_models import save_tiny, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A folder that has what the pages talk about: a trained model, prompts, the examples."""
    for name in ("sft/checkpoint-1", "base"):
        save_tiny(tmp_path / "runs" / name, max_position_embeddings=512)
    # A run that moved away from the model that it started from.
    save_tiny(tmp_path / "runs" / "rl" / "checkpoint-10", seed=1, max_position_embeddings=512)
    rows = [f'{{"prompt": "{i}+1=", "completion": "{i + 1}"}}\n' for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "demonstrations.jsonl").write_text(
        '{"prompt": "1+1=", "completion": "2", "answer": "2"}\n' * 2
    )
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    (tmp_path / "code.jsonl").write_text('{"prompt": "f is", "tests": ["assert f(1) == 2"]}\n' * 2)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ECHELON = "echelon examples/echelon_tiny.yaml --no_progress"


@pytest.fixture(scope="module")
def echelon(tmp_path_factory):
    """What the first page to run `ECHELON` leaves; the command of another goes on from there."""
    return tmp_path_factory.mktemp("echelon") / "tiny"


def even_length(completions, **_):
    """Chance in place of skill: an untrained model answers nothing right."""
    return [float(len(completion) % 2 == 0) for completion in completions]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page, workshop, monkeypatch):
    # trl's default is bf16, which it refuses on a machine without a GPU unless use_cpu is set.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    checkpoint = workshop / "runs" / "sft" / "checkpoint-1"
    model = tiny_model()
    model.config._name_or_path = str(checkpoint)
    hidden = torch.randn(6, 32, requires_grad=True)
    of_rl = page.name == "grpo.md"
    labels = torch.tensor([1, 2, -100, 4, 5, 6])
    names = {
        "model": model,
        "dataset": Dataset.from_list(
            # What SFT reads, and what GRPO reads.
            [{"text": f"1+{i}=2", **({"prompt": f"1+{i}="} if of_rl else {})} for i in range(2)]
        ),
        "reward": even_length,
        "output_dir": str(workshop / "out"),
        "hidden": hidden,
        "labels": labels,
        "lm_head": model.lm_head,
        "logits": (hidden @ model.lm_head.weight.T).detach(),
        "my_token_weights": torch.rand(6),
        "checkpoints": [checkpoint],
        "tokenizer": tiny_tokenizer(),
        "held_out": ["1+1="],
        # In bf16 as the trl trainers of the page: a process has one Accelerator state.
        "args": TrainingArguments(str(workshop / "plain"), use_cpu=True, bf16=True),
        "loader": [{"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, 6, 7]])}],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def commands(page):
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_console_commands_run(page, workshop, echelon, capsys, monkeypatch):
    if page.name == "grpo.md":
        monkeypatch.setitem(NAMED_REWARDS, "exact_match", even_length)
    for command in commands(page):  # in order: a page may go on with what a command wrote
        program, *words = shlex.split(command)
        arguments = [found for word in words for found in sorted(glob(word)) or [word]]
        assert program == "entropyfloor"
        if arguments[0] == "sft":
            # The command as it is, but on a model that is here, on a CPU, for one step.
            model = str(workshop / "runs" / "sft" / "checkpoint-1")
            arguments += ["--model_name_or_path", model, "--max_length", "256", "--max_steps", "1"]
            arguments += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
        if arguments[0] in {"grpo", "gft"}:
            arguments += ["--max_steps", "2", "--save_steps", "1", "--max_completion_length", "8"]
            arguments += ["--gradient_accumulation_steps", "1", "--use_cpu", "true"]
            arguments += ["--bf16", "false", "--report_to", "none"]
        if command.endswith(ECHELON) and echelon.is_dir():
            shutil.copytree(echelon, workshop / "runs" / "echelon_tiny")
        assert main(arguments) in ({0, 3} if arguments[0] == "screen" else {0})
        assert capsys.readouterr().out
        if command.endswith(ECHELON) and not echelon.is_dir():
            shutil.copytree(workshop / "runs" / "echelon_tiny", echelon)


def test_the_table_of_losses_is_the_registry():
    rows = re.findall(
        r"^\| `(\w+)` \|.*?\| ([^|]*) \| [^|]*\|$", (ROOT / "README.md").read_text(), re.M
    )
    table = {name: dict(re.findall(r"`(\w+)` ([^,]+)", options)) for name, options in rows}
    assert tuple(table) == LOSS_NAMES
    for name, options in table.items():
        defaults = {k: v for k, v in loss_options(name).items() if v is not MISSING}
        assert set(options) == set(defaults)
        for option, shown in options.items():
            value = shown.strip().strip('"')
            expected = {"auto": "auto", "none": None}.get(value, value)
            assert defaults[option] == (float(value) if expected == value != "auto" else expected)
