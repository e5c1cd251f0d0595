"""Bad files are exit code 2, a message with file and row, no traceback and no weights loaded."""

import gzip
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from datasets import Dataset

from entropyfloor.cli.main import describe, main
from tiny_models import CHAT_TEMPLATE

USER = {"role": "user", "content": "1+1="}
REPLY = [{"role": "assistant", "content": "2"}]
RESPONSES = [{"source": "expert", "completion": "2", "reward": 1.0}]
PLAIN = {"prompt": "1+1=", "answer": "2", "completion": "2", "responses": RESPONSES}
CHAT = {
    "prompt": [USER],
    "answer": "2",
    "completion": REPLY,
    "responses": [{"source": "expert", "completion": REPLY, "reward": 1.0}],
}


def lines(*rows):
    """JSON Lines of rows; text stands as it is."""
    return "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
        for row in rows
    ).encode()


def second(row=PLAIN, **changes):
    """Three rows of which the one numbered 1 is bad; a change to None is null."""
    return lines(row, {**row, **changes}, row)


def message(**changes):
    return second(CHAT, prompt=[{**USER, **changes}])


GOOD = lines(PLAIN, PLAIN, PLAIN)
# Verbs that read rows with a prompt, and what each calls the file.
ROWS = ("screen", "band", "gft-groups", "rescue", "coupling", "coupling --demos", "grpo")
ROWS += ("grpo --dataset_name", "gft", "gft --dataset_name", "sft", "echelon", "echelon train")
NOT_SFT = tuple(verb for verb in ROWS if verb not in {"sft", "echelon train"})
RL = ("gft", "gft --dataset_name", "gft-groups")

# name: (content, words of the message, verbs)
FILES = {
    "empty": (b"", "has no rows", ROWS),
    "blank": (b"\n\n", "has no rows", ROWS),
    "utf-16": (GOOD.decode().encode("utf-16"), "line 1 .*UTF-16.*iconv", ROWS),
    "latin-1": (lines(PLAIN) + b'{"prompt": "\xe4"}\n', "line 2 is not UTF-8 text", ROWS),
    "cut": (GOOD[:-20], "line 3 is not JSON .*was it cut off", ROWS),
    "no json": (lines(PLAIN, "nope", PLAIN), "line 2 is not JSON", ROWS),
    "no object": (lines(PLAIN, "[1]", PLAIN), "line 2 is a JSON list", ROWS),
    "cut array": (b"[" + json.dumps(PLAIN).encode() + b",\n{", "array, is not JSON", ROWS),
    "unknown columns": (lines({"question": "q", "reply": "r"}), "'question'", ROWS),
    "no prompt": (lines(PLAIN, {"answer": "2", "completion": "2"}), "row 1.*prompt", ROWS),
    "null prompt": (second(prompt=None), "row 1.*NoneType", ROWS),
    "numeric prompt": (second(prompt=12), "row 1.*int", ROWS),
    "blank prompt": (second(prompt=" "), "row 1 has an empty prompt", NOT_SFT),
    "no messages": (second(CHAT, prompt=[]), "row 1.*empty", ROWS),
    "null content": (message(content=None), "row 1, prompt, message 0 has null", ROWS),
    "numeric content": (message(content=3), r"row 1, prompt, message 0 has 3 \(int\)", ROWS),
    "image": (
        message(content=[{"type": "image", "text": None}]),
        "row 1, prompt, message 0 .*type 'image'",
        ROWS,
    ),
    "null role": (message(role=None), "row 1, prompt, message 0 has the role None", ROWS),
    "refused role": (
        second(CHAT, prompt=[{"role": "system", "content": "s"}, USER]),
        "row 1: the chat template of .* refuses .*No system",
        ROWS,
    ),
    "null completion": (
        second(completion=None),
        "row 1 has .*completion",
        ("sft", "echelon train", "coupling --demos", "screen --held-out"),
    ),
    "numeric completion": (
        second(completion=3),
        r"row 1 has 3 \(int\) as 'completion'",
        ("sft", "echelon train", "coupling --demos", "screen --held-out"),
    ),
    "numeric content of a completion": (
        second(CHAT, completion=[{"role": "assistant", "content": 3}]),
        r"row 1, completion, message 0 has 3 \(int\)",
        ("sft", "echelon train", "coupling --demos", "screen --held-out"),
    ),
    "response of no source": (
        second(responses=[{"source": "nobody", "completion": "2"}]),
        "row 1.*source",
        RL,
    ),
    "response that is text": (second(responses="2"), "row 1.*responses.*objects", RL[::2]),
    "token without embedding": (
        second(CHAT, prompt=[{**USER, "content": "<|new|>"}]),
        "row 1: .* token number 26[1-9].* embeddings for 261",
        ROWS,
    ),
}


@pytest.fixture
def verb_on(save_checkpoint, tmp_path, monkeypatch):
    """``verb_on(verb, file)`` -> argv; loading a model fails the test."""
    model, other = (save_checkpoint(f"runs/checkpoint-{n}", seed=n) for n in (1, 2))
    good = tmp_path / "good.jsonl"
    good.write_bytes(GOOD)
    out = str(tmp_path / "out")

    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    train = f"--model_name_or_path {model} --output_dir {out} --max_steps 1 --report_to none "
    train += "--use_cpu true --bf16 false"
    rl = f"{train} --reward exact_match --per_device_train_batch_size 2 --num_generations 2"
    group = f"{train} --reward exact_match --num_self 2 --per_device_train_batch_size 1"

    def recipe(**data):
        path = tmp_path / "recipe.yaml"
        text = {
            "name": "bad",
            "model": {"name": str(model)},
            "data": {"task": "files", "train": str(good), "held_out": str(good), **data},
            "losses": {"ce": {"loss": "ce"}},
            "depths": [1],
            "seeds": [0],
        }
        text["data"]["reward"] = "exact_match"
        path.write_text(json.dumps(text))
        return f"echelon {path} --output-dir {out} --no-progress"

    def words(verb, file):
        commands = {
            "screen": f"screen {model} --prompts {file} --no-progress --max-new-tokens 4",
            "screen --held-out": f"screen {model} --prompts {good} --held-out {file}",
            "band": f"band {model} --prompts {file} --reward exact_match --output-dir {out}",
            "gft-groups": f"gft-groups {model} --prompts {file} --output-dir {out}",
            "rescue": f"rescue {model} --base {other} --prompts {file} --output-dir {out}",
            "coupling": f"coupling --sft {model} --rl {other} --demos {good} --prompts {file} "
            "--reward exact_match",
            "coupling --demos": f"coupling --sft {model} --rl {other} --demos {file} "
            f"--prompts {good} --reward exact_match",
            "grpo": f"grpo {rl} --prompts {file}",
            "grpo --dataset_name": f"grpo {rl} --dataset_name {file}",
            "gft": f"gft {group} --groups {file}",
            "gft --dataset_name": f"gft {group} --dataset_name {file}",
            "sft": f"sft {train} --dataset_name {file}",
        }
        if verb.startswith("echelon"):
            key = "train" if verb.endswith("train") else "held_out"
            return recipe(**{key: str(file)}).split()
        return commands[verb].split()

    words.model, words.good = model, good
    return words


@pytest.mark.parametrize(
    ("name", "verb"), [(name, verb) for name, (_, _, verbs) in FILES.items() for verb in verbs]
)
def test_a_bad_file(verb_on, tmp_path, capsys, name, verb):
    content, words, _ = FILES[name]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    if name in {"refused role", "token without embedding"}:
        for folder in (tmp_path / "runs").iterdir():
            change_tokenizer(folder, name)
    refused(verb_on(verb, file), rf"(?s)(bad\.jsonl|_dataset).*{words}", capsys)


def change_tokenizer(folder: Path, name: str):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if name == "refused role":
        tokenizer.chat_template = CHAT_TEMPLATE.replace(
            "{% for message in messages %}",
            "{% for message in messages %}{% if message['role'] == 'system' %}"
            "{{ raise_exception('No system message') }}{% endif %}",
        )
    else:
        tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(folder)


def refused(argv, words, capsys):
    """Exit code 2, with a message of these words; any other exception is the test's failure."""
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert re.search(words, error), error
    assert "Traceback" not in error


def test_a_cut_archive(verb_on, tmp_path, capsys):
    file = tmp_path / "bad.jsonl.gz"
    file.write_bytes(gzip.compress(GOOD * 50)[:-12])
    for verb in ("screen", "sft"):
        refused(verb_on(verb, file), r"bad\.jsonl\.gz", capsys)


def test_a_saved_dataset_that_was_cut(verb_on, tmp_path, capsys):
    folder = tmp_path / "bad_dataset"
    Dataset.from_list([PLAIN] * 50).save_to_disk(folder)
    data = next(folder.glob("*.arrow"))
    data.write_bytes(data.read_bytes()[:300])
    for verb in ("screen", "sft"):
        refused(verb_on(verb, folder), "bad_dataset.* cannot be", capsys)


def test_a_bad_file_of_a_mixture(verb_on, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_bytes(FILES["cut"][0])
    config = tmp_path / "config.yaml"
    files = {"path": "json", "data_files": str(tmp_path / "bad.jsonl")}
    config.write_text(json.dumps({"datasets": [files]}))
    argv = verb_on("sft", "none")
    place = argv.index("--dataset_name")
    argv = [*argv[:place], *argv[place + 2 :], "--config", str(config)]
    refused(argv, r"`datasets:` \(json .*bad\.jsonl\) cannot be loaded", capsys)


@pytest.mark.parametrize("cut", [4, 200, -1])
def test_the_third_of_five_checkpoints_is_cut(verb_on, save_checkpoint, tmp_path, capsys, cut):
    folder = save_checkpoint("run/checkpoint-1").parent
    for step in (2, 3, 4, 5):
        save_checkpoint(f"run/checkpoint-{step}", seed=step)
    weights = folder / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    good = str(verb_on.good)
    words = r"checkpoint-3/model\.safetensors is not a whole safetensors file"
    refused(["screen", str(folder), "--prompts", good], words, capsys)
    demos = ["--demos", good, "--prompts", good, "--reward", "exact_match"]
    rl = [str(folder / f"checkpoint-{step}") for step in (2, 3, 4, 5)]
    first = str(folder / "checkpoint-1")
    refused(["coupling", "--sft", first, "--rl", *rl, *demos], words, capsys)
    for verb in ("sft", "grpo", "band", "rescue", "gft", "gft-groups"):
        argv = verb_on(verb, good)
        bad = [str(weights.parent) if word == str(verb_on.model) else word for word in argv]
        refused(bad, words, capsys)


@pytest.mark.parametrize(
    ("verb", "flag"),
    [
        ("screen", "--tau-h"),
        ("screen", "--success-threshold"),
        ("screen", "--temperature"),
        ("screen", "--top-p"),
        ("band", "--success-threshold"),
        ("gft-groups", "--success-threshold"),
        ("rescue", "--floor"),
        ("rescue", "--tolerance"),
        ("coupling", "--weight"),
        ("coupling", "--steps"),
        ("coupling", "--gradient-memory"),
        ("grpo", "--success_threshold"),
        ("grpo", "--monitor_tau_2"),
        ("gft", "--success_threshold"),
        ("sft", "--entropy_floor"),
        ("sft", "--floor_margin"),
        ("sft", "--lam"),
    ],
)
def test_a_threshold_that_is_no_number(verb_on, capsys, verb, flag):
    floor = ["--entropy_floor", "0.2"] if flag == "--floor_margin" else []
    argv = [*verb_on(verb, verb_on.good), *floor, flag, "nan"]
    name = "|".join(part for part in re.split("[-_]", flag) if len(part) > 2)
    refused(argv, rf"\b({name}).* nan\b", capsys)


def test_another_process_too(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(FILES["cut"][0])
    # The verb that is quickest to start: it needs no torch.
    command = [sys.executable, "-m", "entropyfloor.cli.main", "overlap", str(file), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "line 3 is not JSON" in run.stderr
    assert "Traceback" not in run.stderr


def test_launched_processes_say_it_in_the_same_words(capsys, monkeypatch, tmp_path):
    from jinja2 import TemplateError

    from entropyfloor.cli import sft

    cpu = ["--use_cpu", "true", "--bf16", "false"]

    def prepare(_):
        raise TemplateError("No system message")

    monkeypatch.setattr(
        sys, "argv", ["sft.py", "--output_dir", str(tmp_path), "--model_name_or_path", "m", *cpu]
    )
    assert replace(sft.VERB, prepare=prepare).run_launched() == 2
    assert "the chat template refuses the conversation (No system message)" in (
        capsys.readouterr().err
    )


def test_what_is_no_fault_of_the_data_keeps_its_traceback():
    assert describe(RuntimeError("CUDA error")) is None
    assert describe(OSError(28, "No space left on device")) is None
    assert describe(KeyError("x")) is None
    assert "nan" in describe(ValueError(f"tau_h is {math.nan}"))


def test_good_files_reach_the_model(verb_on):
    """The guard of these tests would see weights being loaded."""
    for verb in ("screen", "sft", "grpo", "gft"):
        with pytest.raises(AssertionError, match="weights were loaded"):
            main(verb_on(verb, verb_on.good))
