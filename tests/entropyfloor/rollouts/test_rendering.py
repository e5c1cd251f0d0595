"""A row is the same tokens in screening, probe, RL, GFT and SFT; what --dry-run says of it."""

import copy
import json
import logging

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from entropyfloor import GFTConfig, GFTTrainer, SEDConfig, SEDTrainer
from entropyfloor.cli.main import main
from entropyfloor.rl.dapo import dapo_config
from entropyfloor.rl.prompt_rows import PromptRowsTrainer
from entropyfloor.rollouts.engines import prepare
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts, rendered_text
from entropyfloor_losses import IGNORE_INDEX
from tiny_models import tiny_model, tiny_tokenizer

THINK = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}" + THINK + "{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>" + THINK + "{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
ROWS = [
    {"prompt": "1+1=", "completion": "2", "tools": json.dumps(TOOLS)},
    {
        "prompt": [{"role": "user", "content": "2+2="}],
        "completion": [{"role": "assistant", "content": "4"}],
        "chat_template_kwargs": {"enable_thinking": True},
    },
    {"prompt": [{"role": "system", "content": "Go"}, {"role": "user", "content": "3+3="}]},
]
ROWS[2]["completion"] = ROWS[1]["completion"]
OPTIONS = {
    "chat": True,
    "system": "Add.",
    "chat_template_kwargs": {"enable_thinking": False},
}
RENDERED = [
    f"<tools>{json.dumps(TOOLS)}</tools><|system|>Add.<|end|><|user|>1+1=<|end|><|assistant|>"
    "<think></think>",
    "<|system|>Add.<|end|><|user|>2+2=<|end|><|assistant|>",
    "<|system|>Go<|end|><|user|>3+3=<|end|><|assistant|><think></think>",
]
QUIET = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "max_steps": 1}
QUIET |= {"save_strategy": "no", "gradient_checkpointing": False}
PROMPTS = PromptSet(tuple(ROWS)).with_chat_options(**OPTIONS)


@pytest.fixture
def tokenizer():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def model(save_checkpoint, tokenizer):
    directory = save_checkpoint("model")
    tokenizer.save_pretrained(directory)
    return directory


def by_length(completion_ids, **_):
    return [float(len(ids) % 2) for ids in completion_ids]


def generated_from(trainer):
    """Different prompts that a trainer of RL samples from, as it is trained for a step."""
    prompts = []
    original = trainer._generate_single_turn

    def recording(prompt_ids, *rest, **options):
        prompts.extend(tuple(ids) for ids in prompt_ids)
        return original(prompt_ids, *rest, **options)

    trainer._generate_single_turn = recording
    trainer.train()
    return set(prompts)


def screened(model, tokenizer, folder):
    (task,) = prepare([model], PROMPTS, None, max_new_tokens=4, trust_remote_code=False)
    return set(map(tuple, task.encoded))


def grpo(model, tokenizer, folder):
    args = dapo_config(
        folder,
        **QUIET,
        num_generations=2,
        per_device_train_batch_size=6,
        max_completion_length=2,
    )
    return generated_from(
        PromptRowsTrainer(
            tiny_model(), by_length, args, PROMPTS.dataset(), processing_class=tokenizer
        )
    )


def gft(model, tokenizer, folder, **options):
    args = GFTConfig(
        str(folder),
        **QUIET,
        **options,
        num_self=2,
        per_device_train_batch_size=3,
        max_completion_length=2,
    )
    rows = PromptSet(tuple({**row, "responses": []} for row in PROMPTS.rows))
    trainer = GFTTrainer(tiny_model(), by_length, args, rows.dataset(), processing_class=tokenizer)
    return set(map(tuple, trainer.floor.probe._encoded)) if options else generated_from(trainer)


def gft_probe(model, tokenizer, folder):
    return gft(model, tokenizer, folder, entropy_floor=0.1)


def sft_trainer(tokenizer, folder, **options):
    # Arrow gives all rows the names of all: None is what a row lacks.
    rows = Dataset.from_list([dict(row) for row in PROMPTS.rows])
    args = SEDConfig(str(folder), loss="ce", **QUIET, **options)
    return SEDTrainer(tiny_model(), args, train_dataset=rows, processing_class=tokenizer)


def sft(model, tokenizer, folder):
    rows = sft_trainer(tokenizer, folder).train_dataset
    return {
        tuple(token for token, label in zip(ids, labels, strict=True) if label == IGNORE_INDEX)
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
    }


def sft_probe(model, tokenizer, folder):
    trainer = sft_trainer(tokenizer, folder, entropy_floor=0.1)
    return set(map(tuple, trainer.floor.probe._encoded))


@pytest.mark.parametrize("path", [screened, grpo, gft, gft_probe, sft, sft_probe])
def test_the_same_tokens_everywhere(path, model, tokenizer, tmp_path):
    expected = {tuple(tokenizer(text)["input_ids"]) for text in RENDERED}
    assert path(model, tokenizer, tmp_path / "run") == expected


VERBS = {
    "screen": "screen model --prompts rows.jsonl",
    "band": "band model --prompts rows.jsonl --reward exact_match --output-dir out",
    "gft-groups": "gft-groups model --prompts rows.jsonl --reward exact_match --output-dir out",
    "grpo": "grpo --model_name_or_path model --prompts rows.jsonl --reward exact_match",
    "gft": "gft --model_name_or_path model --groups rows.jsonl --reward exact_match",
    "sft": "sft --model_name_or_path model --dataset_name rows.jsonl",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("dash", ["-", "_"])
def test_dry_run(verb, dash, model, write_jsonl, tmp_path, monkeypatch, capsys):
    """The options reach every verb, which reads no weights and writes nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    write_jsonl([{**row, "answer": "2"} for row in ROWS], "rows.jsonl")
    argv = [*VERBS[verb].split(), "--chat", "--system", "Add.", f"--dry{dash}run"]
    argv += [f"--chat{dash}template{dash}kwargs", json.dumps(OPTIONS["chat_template_kwargs"])]
    if "--model_name_or_path" in argv:
        argv += ["--use_cpu", "True", "--bf16", "False"]
    else:
        argv += ["--max-new-tokens", "8"]
    before = sorted(tmp_path.iterdir())
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert f"The first one as the model reads it:\n{RENDERED[0]}\n" in said
    assert "3 prompts of" in said
    assert f"the longest has {max(len(tiny_tokenizer()(t)['input_ids']) for t in RENDERED)}" in said
    assert sorted(tmp_path.iterdir()) == before


def test_sft_has_one_kind_of_row(model, write_jsonl, tmp_path, monkeypatch, capsys):
    """trl reads the first row's kind as that of all."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(ROWS[:2], "rows.jsonl")
    argv = [*VERBS["sft"].split(), "--use_cpu", "True", "--bf16", "False", "--dry_run"]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl, row 0: 'prompt' is text, and a conversation in row 1" in said


def test_the_report_shows_the_first_prompt(model, write_jsonl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(ROWS, "rows.jsonl")
    argv = (
        "screen model --prompts rows.jsonl --chat --num_samples 1 --max-new-tokens 2 --no-progress"
    )
    assert main([*argv.split(), "--fail-on", "none", "--json", "report.json"]) == 0
    settings = json.loads((tmp_path / "report.json").read_text())["settings"]
    assert settings["prompts"]["example"] == (
        f"<tools>{json.dumps(TOOLS)}</tools><|user|>1+1=<|end|><|assistant|>"
    )


def test_an_end_of_sequence_that_the_tokenizer_appends_is_left_out(tokenizer, caplog):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    assert tokenizer("1+1=")["input_ids"][-1] == tokenizer.eos_token_id
    prompts = PromptSet(({"prompt": "1+1="}, {"prompt": "2+2="}))
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(prompts, tokenizer, where="a model of this test")
    assert [rendered_text(ids, tokenizer) for ids in encoded] == ["1+1=", "2+2="]
    assert caplog.text.count("appends its end-of-sequence token") == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "tools": "{"}, "row 0: tools are no JSON"),
        ({"prompt": "a", "tools": {}}, "row 0: tools are a dict; give a list"),
        ({"prompt": "a", "chat_template_kwargs": [1]}, "row 0: chat_template_kwargs is a list"),
    ],
)
def test_malformed_columns_are_named(row, words):
    with pytest.raises(ValueError, match=words):
        PromptSet((row,))


def test_a_template_that_refuses_a_row_is_said_with_the_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match=r"row 0: the chat template of m refuses .*no system role"):
        encode_prompts(PROMPTS, tokenizer, where="m")
