import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from entropyfloor.echelon import quick_model
from entropyfloor.echelon.quick_model import build_tokenizer, quick_model_directory
from entropyfloor.echelon.tasks import sum_task, worked_solutions


@pytest.fixture(scope="module")
def problems():
    return sum_task(
        train_problems=40, held_out_problems=1, digits=1, subtraction=True, seed=0
    ).train


def test_builds_a_model_that_loads_with_a_chat_template(problems, tmp_path):
    directory = quick_model_directory(tmp_path / "base", problems, steps=2, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    ids = tokenizer.apply_chat_template(
        problems[0].prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model(**ids).logits.shape[-1] == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_finds_what_it_has_built(problems, tmp_path, monkeypatch):
    quick_model_directory(tmp_path / "base", problems, steps=1, seed=0)
    monkeypatch.setattr(
        quick_model, "train_from_scratch", lambda *_, **__: pytest.fail("built again")
    )
    assert quick_model_directory(tmp_path / "base", problems, steps=1, seed=0).is_dir()


def test_an_interrupted_build_leaves_nothing(problems, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(quick_model, "train_from_scratch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick_model_directory(tmp_path / "base", problems, steps=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_tokenizer_keeps_every_text_and_gives_each_digit_a_token(problems):
    tokenizer = build_tokenizer(problems)
    for problem in problems:
        for text in [problem.prompt[0]["content"], *worked_solutions(problem)]:
            assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("123")["input_ids"]) == 3
