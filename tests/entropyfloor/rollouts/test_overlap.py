import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from entropyfloor.cli.main import main
from entropyfloor.rollouts import overlap as module
from entropyfloor.rollouts.overlap import EXACT, NEAR, NORMALISED, find_overlap, grams, words_of

STORY = (
    "A baker in Lyon sells twelve loaves every morning and nine more after lunch; on Sundays he "
    "sells half as many as that, and on feast days three times as many. How many in a week?"
)
NEARLY = STORY.replace("Lyon", "Metz").replace("twelve", "eleven")
OTHER = "Tell me in one short sentence why the sky is blue, and not green, on a clear summer day."
CODE = "Write a function that returns the n-th Fibonacci number; it must take at most O(n) time."


def overlap(rows, prompts, **more):
    return find_overlap(lambda: iter(rows), prompts, **more)


def levels(rows, prompts, **more):
    return {m.prompt_index: m.level for m in overlap(rows, prompts, **more).matches}


def test_the_three_levels():
    prompts = [STORY, "What is 3 + 4 =", "What is 3 - 4 =", OTHER, CODE]
    rows = [
        {"prompt": NEARLY, "completion": "96"},
        {"prompt": "what is  3+4 ="},
        {"prompt": CODE},
        {"text": "unlike all else"},
    ]
    found = overlap(rows, prompts)
    assert {m.prompt_index: m.level for m in found.matches} == {0: NEAR, 1: NORMALISED, 4: EXACT}
    near = found.matches[0]
    a, b = (grams(words_of(text), 3) for text in (STORY, NEARLY))
    assert near.containment == len(a & b) / len(a) and near.text == NEARLY and near.row_index == 0
    assert found.counts() == {"exact": 1, "normalised": 1, "near": 1, "share": 3 / 5}
    assert found.words() == (
        "3 of 5 prompts (60.0%) are among 4 rows: 1 exact, 1 normalised, 1 near"
    )
    assert levels(rows, prompts, near=False) == {1: NORMALISED, 4: EXACT}
    assert levels(rows, prompts, threshold=1.0) == {1: NORMALISED, 4: EXACT}


def test_the_closest_row_is_named():
    rows = [{"prompt": NEARLY}, {"prompt": STORY.upper()}, {"prompt": STORY}, {"prompt": NEARLY}]
    (match,) = overlap(rows, [STORY]).matches
    assert (match.level, match.row_index) == (EXACT, 2)
    (match,) = overlap(rows[:2], [STORY]).matches
    assert (match.level, match.row_index) == (NORMALISED, 1)


def test_every_text_of_a_row_is_compared():
    long = "\n\n".join([OTHER * 3, NEARLY, CODE * 3])
    parts = [{"type": "text", "text": CODE[:9]}, {"type": "text", "text": CODE[9:]}]
    rows = [
        {"messages": [{"role": "user", "content": OTHER}, {"role": "assistant", "content": parts}]},
        {"prompt": [{"role": "user", "content": "hello"}], "completion": long},
    ]
    assert levels(rows, [STORY, OTHER, CODE]) == {0: NEAR, 1: EXACT, 2: EXACT}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 + 4 =", "3+4=", True),
        ("3+4", "3-4", False),
        ("1.5", "15", False),
        ("What?", "what", True),
        ("ﬁne ＡＢＣ", "Fine abc", True),  # NFKC: a ligature, full-width letters
        ("**Straße**", "STRASSE", True),
        ("你好，世界", "你好 世界", True),
        ("a_b", "a b", False),
    ],
)
def test_normalised(one, other, same):
    assert (words_of(one) == words_of(other)) == same


def test_grams():
    assert grams(["a", "b", "a", "b", "a"], 3) == {"a b a", "b a b"}
    assert grams(["a", "b"], 3) == {"a b"} and grams([], 3) == frozenset()
    assert words_of("数学 is 2x") == ["数", "学", "is", "2x"]


def test_blocks_change_nothing(monkeypatch):
    prompts = [f"{STORY} Case {i}: {OTHER[i:]}" for i in range(7)] + [CODE, CODE]
    rows = [{"prompt": prompts[5]}, {"prompt": CODE}, {"prompt": prompts[2] + " Please."}]
    whole = overlap(rows, prompts)
    monkeypatch.setattr(module, "BLOCK", 2)
    assert overlap(rows, prompts) == whole
    assert {m.prompt_index for m in whole.matches} >= {2, 5, 7, 8}


def test_planted_near_duplicates_are_found():
    """One word in fifteen changed: containment about 0.8; and no others are found."""
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(3000)]
    draw = lambda: [words[i] for i in rng.integers(0, 3000, 40)]  # noqa: E731
    prompts = [draw() for _ in range(100)]
    rows = [draw() for _ in range(900)]
    for i, prompt in enumerate(prompts[:60]):
        changed = list(prompt)
        for place in rng.choice(40, 2, replace=False):
            changed[place] = "other"
        rows.insert(7 * i, changed)
    found = overlap([{"prompt": " ".join(r)} for r in rows], [" ".join(p) for p in prompts])
    planted = {
        i
        for i, p in enumerate(prompts[:60])
        if len(grams(p, 3) & grams(rows[7 * i], 3)) >= 0.8 * len(grams(p, 3))
    }
    matched = {m.prompt_index for m in found.matches}
    assert len(planted) > 30 and matched <= set(range(60))
    assert len(matched & planted) >= 0.95 * len(planted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ngram": 0}, "ngram is a number of words"),
        ({"threshold": 0.0}, "containment in"),
        ({"prompts": []}, "no prompts to look for"),
        ({"rows": []}, "no rows to compare"),
    ],
)
def test_refused(change, words):
    with pytest.raises(ValueError, match=words):
        overlap(**{"rows": [{"prompt": "a"}], "prompts": ["a"], **change})


def test_the_command(tmp_path, capsys):
    rows, prompts = tmp_path / "rows.jsonl.gz", tmp_path / "prompts.jsonl"
    with gzip.open(rows, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": t}) + "\n" for t in (NEARLY, OTHER, "x y z"))
    kept = {"prompt": [{"role": "user", "content": CODE}], "answer": 3}
    lines = [{"prompt": [{"role": "user", "content": STORY}]}, {"prompt": OTHER}, kept]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out, clean = tmp_path / "o.json", tmp_path / "clean.jsonl"
    words = ["overlap", str(rows), str(prompts), "--json", str(out), "--clean", str(clean)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 of 3 prompts (66.7%) are among 3 rows: 1 exact, 0 normalised, 1 near" in printed
    document = json.loads(out.read_text())
    assert [m["prompt_index"] for m in document["matches"]] == [0, 1]
    assert [json.loads(line) for line in clean.read_text().splitlines()] == [kept]
    assert main([*words, "--max_overlap", "0.5"]) == 4
    assert main([*words, "--max_overlap", "0.7"]) == 0
    assert main([*words, "--max_overlap", "0.5", "--no_near"]) == 0
    assert main([*words, "--max_overlap", "50"]) == 2
    assert main(["overlap", str(tmp_path / "gone"), str(prompts)]) == 2
    assert "no rows at" in capsys.readouterr().err


def test_without_datasketch_it_says_what_to_install(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "one and two and three"}\n')
    code = (
        "import sys; sys.modules['datasketch'] = None\n"
        "from entropyfloor.cli.main import main\n"
        f"code = main(['overlap', {str(file)!r}, {str(file)!r}])\n"
        f"sys.exit(10 * code + main(['overlap', {str(file)!r}, {str(file)!r}, '--no_near']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 20
    assert 'pip install "entropyfloor[overlap]"' in run.stderr
    assert "1 of 1 prompts (100.0%)" in run.stdout


def test_a_screening_says_what_was_trained_on(save_checkpoint, write_jsonl, tmp_path):
    from entropyfloor.rollouts.prompts import load_prompts
    from entropyfloor.screening.table import screening_markdown
    from flat_calls import screen

    prompts = load_prompts(write_jsonl([{"prompt": STORY[:60]}, {"prompt": OTHER[:50]}]))
    rows = write_jsonl([{"prompt": STORY[:60].upper(), "completion": "96"}], "rows.jsonl")
    report = screen(
        [save_checkpoint()],
        prompts=prompts,
        trained_on=rows,
        **{"max_new_tokens": 2, "num_samples": 2, "group_size": 2, "progress": False},
    )
    told = report.settings["trained_on"]
    assert told["share"] == 0.5 and told["normalised"] == 1
    assert "trained on, not held out: 1 of 2 prompts (50.0%)" in screening_markdown(report)
