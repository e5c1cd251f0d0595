import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor.echelon import small_model
from entropyfloor.echelon.small_model import character_tokenizer, small_model_directory
from entropyfloor.echelon.small_task import small_task


@pytest.fixture(scope="module")
def rows():
    return small_task(seed=0, pretraining=300, demonstrations=1, rl_prompts=1, test=1).pretraining


def test_builds_a_model_of_a_third_of_a_million_parameters_that_loads(rows, tmp_path):
    directory = small_model_directory(tmp_path / "base", rows, steps=2, seed=0)
    assert (directory / "model.safetensors").is_file()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert 300_000 < model.num_parameters() < 400_000
    ids = tokenizer("47+85=", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 6)  # no token is added before or after
    assert model(input_ids=ids).logits.shape == (1, 6, 14)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_tokenizer_gives_each_character_a_token_and_back():
    tokenizer = character_tokenizer()
    ids = tokenizer("47+85=23<end>")["input_ids"]
    assert len(ids) == 9 and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "47+85=23"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    with pytest.raises(Exception, match="UNK"):
        tokenizer("4x")


def test_the_loss_is_on_the_answer_and_its_end(rows):
    import random

    tokenizer = character_tokenizer()
    batch = next(small_model._batches(tokenizer, rows, random.Random(0)))
    assert (batch["labels"][:, :6] == -100).all()
    assert torch.equal(batch["labels"][:, 6:], batch["input_ids"][:, 6:])
    assert (batch["labels"][:, -1] == tokenizer.eos_token_id).all()


def test_batches_go_through_all_rows_before_any_comes_again(rows):
    import random

    tokenizer = character_tokenizer()
    batches = small_model._batches(tokenizer, rows[:256], random.Random(0))
    both = torch.cat([next(batches)["input_ids"] for _ in range(2)])
    assert len({tuple(row) for row in both[:, :6].tolist()}) == 256


def test_the_seed_decides_the_weights(rows, tmp_path):
    def weights(name, seed):
        directory = small_model_directory(tmp_path / name, rows, steps=1, seed=seed)
        return AutoModelForCausalLM.from_pretrained(directory).lm_head.weight

    assert torch.equal(weights("a", 0), weights("b", 0))
    assert not torch.equal(weights("a", 0), weights("c", 1))
