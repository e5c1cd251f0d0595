import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor.echelon import built_models
from entropyfloor.echelon.built_models import (
    character_model,
    character_tokenizer,
    chat_model,
    chat_tokenizer,
)
from entropyfloor.echelon.modular_sums import modular_sums
from entropyfloor.echelon.worked_sums import draw_problems, worked_solutions


@pytest.fixture(scope="module")
def rows():
    return modular_sums(seed=0, pretraining=300, demonstrations=1, rl_prompts=1, test=1).pretraining


@pytest.fixture(scope="module")
def problems():
    return draw_problems(40, digits=1, subtraction=True, seed=0)


def test_a_character_model_of_a_third_of_a_million_parameters_loads(rows, tmp_path):
    directory = character_model(tmp_path / "base", rows, steps=2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert 300_000 < model.num_parameters() < 400_000
    ids = tokenizer("47+85=", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 6)  # no token is added before or after
    assert model(input_ids=ids).logits.shape == (1, 6, 14)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_chat_model_loads_with_its_template(problems, tmp_path):
    directory = chat_model(tmp_path / "base", problems, steps=2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer.apply_chat_template(
        problems[0].prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model(**ids).logits.shape[-1] == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_character_tokenizer_gives_each_character_a_token_and_back():
    tokenizer = character_tokenizer()
    ids = tokenizer("47+85=23<end>")["input_ids"]
    assert len(ids) == 9 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "47+85=23"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    with pytest.raises(Exception, match="UNK"):
        tokenizer("4x")


def test_the_chat_tokenizer_keeps_every_text_and_gives_each_digit_a_token(problems):
    tokenizer = chat_tokenizer(problems)
    for problem in problems:
        for text in [problem.prompt[0]["content"], *worked_solutions(problem)]:
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("123")["input_ids"]) == 3


def test_the_loss_is_on_the_answer_and_its_end(rows):
    tokenizer = character_tokenizer()
    batch = next(built_models._character_batches(tokenizer, rows, random.Random(0)))
    assert (batch["labels"][:, :6] == -100).all()
    assert torch.equal(batch["labels"][:, 6:], batch["input_ids"][:, 6:])
    assert (batch["labels"][:, -1] == tokenizer.eos_token_id).all()


def test_batches_go_through_all_rows_before_any_comes_again(rows):
    batches = built_models._character_batches(character_tokenizer(), rows[:256], random.Random(0))
    both = torch.cat([next(batches)["input_ids"] for _ in range(2)])
    assert len({tuple(row) for row in both[:, :6].tolist()}) == 256


def test_the_seed_decides_the_weights_and_what_is_built_is_found(rows, tmp_path, monkeypatch):
    def weights(name, seed):
        directory = character_model(tmp_path / name, rows, steps=1, seed=seed)
        return AutoModelForCausalLM.from_pretrained(directory).lm_head.weight

    first = weights("a", 0)
    assert torch.equal(first, weights("b", 0))
    assert not torch.equal(first, weights("c", 1))
    monkeypatch.setattr(built_models, "_trained", lambda *_, **__: pytest.fail("built again"))
    assert torch.equal(first, weights("a", 0))


def test_an_interrupted_build_leaves_nothing(problems, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(built_models, "_trained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat_model(tmp_path / "base", problems, steps=1, seed=0)
    assert list(tmp_path.iterdir()) == []
