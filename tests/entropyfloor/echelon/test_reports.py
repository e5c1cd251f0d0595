"""Findings, tables, page and plot of an echelon, from cells with made-up numbers."""

import io
import re

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from test_screening_html import OUTSIDE, SMALLEST_TEXT, Page

from chromium_page import CHROMIUM, ChromiumPage
from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import compare
from entropyfloor.echelon.findings import details, findings
from entropyfloor.echelon.markdown import echelon_markdown
from entropyfloor.echelon.page import echelon_html
from entropyfloor.echelon.plot import write_echelon_plot
from entropyfloor.echelon.table import tables
from entropyfloor.echelon.terminal import echelon_terminal
from made_up_echelon import DEPTHS, LOSSES, SETTINGS, made_up, measures
from sample_reports import HOSTILE

PLAN = {"depths": list(DEPTHS), "seeds": [0, 1, 2], "grpo_steps": [50, 100, 150]}


def echelon(*args, cut=0, settings=None, **options):
    cells, base = made_up(*args, **options)
    return compare(cells[cut:], base, {**SETTINGS, **(settings or {})})


def ladder(outcomes, *, seed=0, loss="ce", half=0.03):
    """pass@1 before RL is .1, .2, .3, ...; pass@10 after it as given."""
    return [
        {
            "loss": loss,
            "seed": seed,
            "depth": float(depth),
            "before": measures(1.0 / depth, 0.1 * depth, 0.5, half=half),
            "after": {"50": measures(0.1, 0.1, (outcome - 0.1) / 0.9, half=half)},
        }
        for depth, outcome in enumerate(outcomes, 1)
    ]


def words_of(cells, **settings):
    return "\n".join(findings(compare(cells, {}, {**SETTINGS, **settings})))


def test_an_inversion_is_called_one():
    words = words_of(ladder([0.9, 0.7, 0.5]) + ladder([0.8, 0.7, 0.6], seed=1))
    assert "mostly end worse after it, in all 2 seeds: rank inversion.\n" in words
    assert "Of 6 pairs of checkpoints, the one that is ahead before RL is behind after it in 6" in (
        words
    )
    assert "and in 6 of these by more than other prompts could explain" in words
    assert (
        "From 1 epoch of SFT to 3, pass@1 before RL rose from 0.100 to 0.300 while peak pass@10 "
        "after RL fell from 0.850 to 0.550, means of 2 seeds."
    ) in words
    assert "with the highest pass@1 cost 0.300 of peak pass@10 after RL" in words
    assert "Spearman -1.00 (-1.00 to +0.68; by seed -1.00 -1.00)" in words
    assert "came out at place 3 of 3, 3 of 3; its outcome is below the best with intervals" in words


def test_what_rl_changed():
    # pass@1 goes from .1, .2, .3 to .1; pass@10 from .55, .6, .65 to what is given.
    assert (
        "What RL changed, at its peak: pass@1 -0.100 on average, below its value before RL in 2 of "
        "3 rungs; pass@10 +0.067 on average, below its value before RL in 1 of 3 rungs."
    ) in words_of(ladder([0.75, 0.65, 0.6]))


def test_an_inversion_within_the_noise_says_so():
    words = words_of(ladder([0.52, 0.51, 0.5], half=0.2))
    assert "rank inversion, though in no pair of them beyond the noise of the prompts." in words
    assert "and in none of these by more than other prompts could explain" in words
    assert "One seed: nothing here says how much another seed would differ." in words


def test_no_inversion_is_not_called_one():
    words = words_of(ladder([0.5, 0.6, 0.9]))
    assert "do not mostly end worse after it: no rank inversion." in words
    assert "rose from 0.100 to 0.300 and peak pass@10 after RL rose from 0.500 to 0.900" in words
    assert "the highest pass@1 cost 0.000" in words and ": rank inversion" not in words


def test_an_inversion_in_some_seeds():
    words = words_of(ladder([0.9, 0.7, 0.5]) + ladder([0.5, 0.6, 0.9], seed=1))
    assert "mostly end worse after it in 1 of 2 seeds, and not in the others" in words


def test_outcomes_that_do_not_vary():
    words = words_of(ladder([0.5, 0.5, 0.5]))
    assert "end neither better nor worse after it: no rank inversion." in words
    assert "peak pass@10 after RL stayed at 0.500" in words


def test_losses_are_compared_seed_by_seed():
    cells = ladder([0.9, 0.5]) + ladder([0.9, 0.6], seed=1)
    cells += ladder([0.8, 0.7], loss="up") + ladder([0.8, 0.8], seed=1, loss="up")
    cells += ladder([0.8, 0.6], loss="mixed") + ladder([0.8, 0.5], seed=1, loss="mixed")
    cells += ladder([0.8, 0.4], loss="down") + ladder([0.8, 0.5], seed=1, loss="down")
    assert (
        "Against ce at 2 epochs, peak pass@10 after RL is higher in every seed: up (+0.200); lower "
        "in every seed: down (-0.100); not alike in all seeds: mixed (+0.000)."
    ) in words_of(cells)


def test_the_best_is_among_rungs_that_all_seeds_reached():
    cells = ladder([0.7, 0.6]) + ladder([0.7, 0.6], seed=1) + ladder([0.95, 0.95], loss="sed")
    assert "Best peak pass@10 after RL: ce, 1 epoch, 0.700." in words_of(cells)
    # As many seeds, but others: a lucky seed would pass for a good loss.
    other = ladder([0.95], seed=1, loss="sed") + ladder([0.95], seed=2, loss="sed")
    assert "Best peak pass@10 after RL: ce, 1 epoch, 0.700." in words_of(cells[:4] + other)


def test_what_is_missing_is_said():
    found = echelon(("ce",), cut=1, settings={**PLAN, "losses": ["ce"]})
    assert "1 of 15 cells has no outcome after RL and is left out" in details(found)[-1]
    table = next(table for table in tables(found) if table.key == "missing")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["ce, 2 epochs", "0", "not there yet"]
    ]
    before = next(table for table in tables(found) if table.key == "before")
    assert before.rows[1][2].small.split()[0] == "–"  # seed 0 has its place


def test_who_stays_above_tau_h_without_rl():
    def rungs(loss, *entropies):
        return [
            {"loss": loss, "seed": seed, "depth": 4.0, "before": measures(entropy, 0.3, 0.5)}
            for seed, entropy in enumerate(entropies)
        ]

    cells = rungs("ce", 0.1, 0.1) + rungs("gem", 0.17, 0.19) + rungs("floor", 0.18, 0.3)
    said = answer(compare(cells, {}, SETTINGS))[-1]
    assert said == (
        "Checkpoints at 4 epochs with at least tau_H = 0.18 nats, in every seed: floor; in some "
        "seeds: gem; in none: ce."
    )


def test_the_frontier():
    found = echelon(("ce", "sed"), steps=())
    on = [(r.loss, r.depth) for r in found.frontier if not r.beaten_by]
    words = next(words for words in details(found) if "frontier" in words)
    assert words.startswith(f"Before RL {len(on)} of {len(found.frontier)} rungs are on the ")
    table = next(table for table in tables(found) if table.key == "before")
    shown = {(row[0].main, float(row[1].main)): row[-1].main for row in table.rows}
    for rung in found.frontier:
        first = rung.beaten_by and f"{rung.beaten_by[0].loss}, {rung.beaten_by[0].depth:g} ep."
        assert shown[rung.loss, rung.depth] == (first or "–")
    page = echelon_html(found)
    assert page.count("by entropy</strong>") == 3  # pass@1, pass@10, degenerate fraction
    assert page.count("on the frontier</title>") == 3 * len(on)
    alone = echelon(("ce",), steps=())
    assert "on the frontier" not in " ".join(details(alone)) + echelon_html(alone)


def test_without_rl():
    found = echelon(("ce", "sed"), steps=())
    first, second, third = answer(found)
    assert first == "No RL was run, so what is said here is about SFT alone."
    assert re.match(
        r"With ce, from 2 epochs of SFT to 60: pass@1 rose .*, entropy fell from 0.675 to", second
    )
    assert third.startswith("Checkpoints at 60 epochs with at least tau_H = 0.18 nats, in ")
    assert [table.key for table in tables(found)] == ["before"]


def test_a_k_that_only_the_evaluation_has():
    cells, base = made_up(("ce", "sed"), (1.0, 2.0, 3.0))
    for measured in [*(cell["before"] for cell in cells), *base.values()]:
        del measured["pass_at_k"]["10"]
    found = compare(cells, base, SETTINGS)
    assert not any("highest pass@10" in rule.rule for rule in found.rules)
    assert "pass@10" not in [header for table in tables(found) for header in table.headers]
    assert "peak pass@10 after RL" in Page(echelon_html(found)).text


def test_markdown_has_every_table_and_escapes_names():
    text = echelon_markdown(echelon(("ce", "a|b*")))
    assert r"| a\|b\* | 2 |" in text
    for heading in ("Before RL", "After RL", "Loss by loss"):
        assert f"## {heading}\n" in text
    assert text.count("## Which checkpoint to start RL from") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) >= 4 for row in rows)


def test_numbers_of_the_table_are_those_of_the_cells():
    found = echelon(("ce",), (1.0, 2.0, 3.0))
    table = next(table for table in tables(found) if table.key == "after")
    row = next(row for row in table.rows if row[1].text == "2")
    spread = found.row("ce", 2.0).outcomes["peak_pass_at_10"]
    assert row[2].main == f"{spread.mean:.3f}"
    assert row[2].small == " ".join(f"{v:.3f}"[1:] for v in spread.by_seed.values())


SHAPES = [
    ((("ce",), (1.0, 2.0), (0,)), {}),
    ((("ce",), (3.0,), (0,)), {}),
    ((LOSSES, DEPTHS, (0, 1, 2)), {}),
    ((LOSSES[:2], (1.0, 1.9, 2.9, 3.8, 5.8), tuple(range(7))), {}),
    ((LOSSES[:2],), {"steps": ()}),
    ((LOSSES[:3],), {"cut": 32}),
]


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_the_page_stands_alone(shape, options):
    found = echelon(*shape, **options)
    text = echelon_html(found)
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\(|@import|https?://", text)
    assert {"answer", "about", "figures", "findings", "tables", "glossary", "settings"} <= set(
        page.ids
    )
    assert all(words in " ".join(page.text.split()) for words in findings(found))
    assert "nan" not in re.findall(r"[a-z]+", text)


def test_names_are_only_text():
    page = Page(text := echelon_html(echelon((HOSTILE, "ce"), settings={"name": HOSTILE})))
    assert "script" not in page.tags and "img" not in page.tags
    assert "<script" not in text and "\x00" not in text and "\u202e" not in text


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_the_plot(tmp_path, shape, options):
    path = write_echelon_plot(echelon(*shape, **options), tmp_path / "new" / "echelon.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_eleven_losses_can_be_told_apart_in_the_plot(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(Figure, "savefig", lambda picture, *_: pictures.append(picture))
    losses = ["ce", *(f"loss-{number}" for number in range(10))]
    write_echelon_plot(echelon(losses, (2, 4), (0,), steps=()), tmp_path / "echelon.png")
    marks = {
        (container.lines[0].get_color(), container.lines[0].get_marker())
        for container in pictures[0].axes[0].containers
    }
    assert len(marks) == len(losses)


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_the_terminal(shape, options):
    found = echelon(*shape, **options)
    console = Console(width=100, file=io.StringIO())
    for part in echelon_terminal(found):
        console.print(part)
    shown = " ".join(console.file.getvalue().split())
    assert " ".join(answer(found)[0].split()) in shown
    row = found.ladder[-1]
    assert f"{row.before['entropy_nats'].mean:.3f}" in shown
    assert ("our recommendation" in shown) == bool(found.rules)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_chromium(tmp_path):
    with ChromiumPage() as page:
        for number, (shape, options) in enumerate(SHAPES):
            path = tmp_path / f"{number}.html"
            path.write_text(echelon_html(echelon(*shape, **options)), encoding="utf-8")
            for width, phone in ((390, True), (1280, False)):
                page.open(path, width=width, phone=phone)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate(SMALLEST_TEXT)["pixels"] >= 11
                assert page.evaluate(OUTSIDE) == []
        assert page.complaints() == []
        assert all(url.startswith(tmp_path.resolve().as_uri()) for url in page.requests())
