"""One parser for every verb: dataclasses are the flags."""

from dataclasses import dataclass

import pytest

from entropyfloor.cli.main import main
from entropyfloor.cli.options import explicit_options, parse
from entropyfloor.rollouts.options import (
    Loading,
    Output,
    PromptOptions,
    Sampling,
    arranged,
    flag,
)
from entropyfloor.screening.options import Judging, RescueOptions

KINDS = (PromptOptions, Sampling, Judging, Loading, Output)


def read(line, **more):
    return parse(line.split(), *KINDS, verb="verb", description="", **more)


def test_no_words_are_the_defaults_of_the_api():
    assert read("") == [PromptOptions(), Sampling(), Judging(), Loading(), Output()]


@pytest.mark.parametrize(
    "line",
    [
        "--num_samples 3 --max_new_tokens 5 --ks 1 2 --no_greedy --no_progress --held_out a.jsonl",
        "--num-samples 3 --max-new-tokens 5 --ks 1 2 --no-greedy --no-progress --held-out a.jsonl",
        "--num_samples=3 --max-new-tokens 5 --ks 1 2 --greedy 0 --progress 0 --held_out=a.jsonl",
    ],
)
def test_both_spellings_say_the_same(line):
    _, sampling, judging, _, output = read(line)
    assert sampling == Sampling(num_samples=3, max_new_tokens=5)
    assert judging == Judging(ks=[1, 2], greedy=False, held_out="a.jsonl")
    assert output == Output(progress=False)


def test_defaults_of_a_verb_required_flags_and_the_positional_argument(capsys):
    place = ("MODEL", "a directory")
    records = read("here --seed 4", positional=place, defaults={"num_samples": 16})
    assert records[1] == Sampling(num_samples=16, seed=4) and records[-1] == "here"
    with pytest.raises(SystemExit) as exit_:
        read("here", positional=place, required=("prompts",))
    assert exit_.value.code == 2 and "--prompts" in capsys.readouterr().err


def test_what_the_words_give_and_nothing_else():
    words = ["model", "--tau_h", "0.5", "--no-greedy", "--seed", "3", "--prompts", "x"]
    assert explicit_options(words, Judging) == {"tau_h": 0.5, "greedy": False}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--samples 3", "unknown argument --samples. Did you mean --num_samples?"),
        ("--k 1", "unknown argument --k. Did you mean --ks?"),
        ("--max_new 3", "unknown argument --max_new."),
        ("--num_samples 0", "num_samples must be at least 1"),
        ("--temperature nan", "temperature must be positive and finite"),
        ("--tau_h nan", "tau_h is an entropy in nats"),
        ("--chat_template_kwargs [1]", "--chat_template_kwargs is no JSON object: [1]"),
        ("--chat_template_kwargs {", "--chat_template_kwargs is no JSON object: {"),
        ("--from_rollouts x --base y --no_greedy", "--base and --greedy would have no effect"),
        ("--from_rollouts x --prompts y", "needs no model"),
    ],
)
def test_what_the_command_refuses(line, words, capsys):
    assert main(["screen", *line.split()]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--engine magic", "--num_samples many", "--chat maybe"])
def test_bad_values_are_exit_code_two(line):
    with pytest.raises(SystemExit) as exit_:
        main(["screen", *line.split()])
    assert exit_.value.code == 2


def test_template_variables_are_read_once():
    options = read('--chat_template_kwargs {"a":1}')[0]
    assert options.chat_template_kwargs == {"a": 1}
    assert PromptOptions(chat_template_kwargs={"a": 1}) == options


def test_flat_keywords_are_arranged_and_others_stay():
    arguments = arranged(
        {"seed": 1, "reward": "math", "device": "cpu"}, sampling=Sampling, own=Loading
    )
    assert arguments == {
        "reward": "math",
        "sampling": Sampling(seed=1),
        "own": Loading(device="cpu"),
    }


def test_a_list_default_is_nobody_elses():
    @dataclass
    class Some:
        names: list[str] = flag(["a"], "names")

    Some().names.append("b")
    assert Some().names == ["a"]


@pytest.mark.parametrize("change", [{"base": None}, {"floor": float("nan")}, {"tolerance": 0.0}])
def test_a_rescue_needs_base_floor_and_tolerance(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        RescueOptions(**{"base": "b", **change})


@pytest.mark.parametrize("flag", ["--json", "--clean"])
def test_overlap_refuses_a_folder_as_its_file_before_it_reads(flag, tmp_path, capsys):
    assert main(["overlap", "rows.jsonl", "prompts.jsonl", flag, str(tmp_path)]) == 2
    assert "is a directory; name the file" in capsys.readouterr().err
