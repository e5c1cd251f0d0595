"""Answer, tables, page and picture of an echelon, from cells with made-up numbers."""

import io
import re
from functools import cache

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from test_screening_html import OUTSIDE, SMALLEST_TEXT, Page

from chromium_page import CHROMIUM, ChromiumPage
from entropyfloor.echelon.answer import answer
from entropyfloor.echelon.compare import compare
from entropyfloor.echelon.page import echelon_html, ladder_picture, legend, write_report
from entropyfloor.echelon.table import echelon_markdown, echelon_terminal, tables
from made_up_echelon import DEPTHS, LOSSES, made_up, measures, plan_of
from sample_reports import HOSTILE

SHAPES = [
    ((("ce",), (1.0, 2.0), (0,)), {}),
    ((("ce",), (3.0,), (0,)), {}),
    ((LOSSES, DEPTHS, (0, 1, 2)), {}),
    ((LOSSES[:2], (1.0, 1.9, 2.9, 3.8, 5.8), tuple(range(7))), {}),
    ((LOSSES[:2],), {"steps": ()}),
    ((LOSSES[:3],), {"cut": 32}),
]


def echelon(*args, cut=0, name="made up", **options):
    cells, base = made_up(*args, **options)
    return compare(cells[cut:], base, plan_of(cells, name=name))


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


def table_of(result, key):
    return next(table for table in tables(result) if table.key == key)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (
            ladder([0.9, 0.7, 0.5]) + ladder([0.8, 0.7, 0.6], seed=1),
            "mostly end worse after it in all 2 seeds: rank inversion by peak pass@10 (of 6 pairs "
            "6 turned around, 6 by more than other prompts could explain).",
        ),
        (
            ladder([0.52, 0.51, 0.5], half=0.2),
            "mostly end worse after it: rank inversion by peak pass@10 (of 3 pairs 3 turned "
            "around, none by more than other prompts could explain).",
        ),
        (ladder([0.5, 0.6, 0.9]), "do not mostly end worse after it: no rank inversion by"),
        (
            ladder([0.9, 0.7, 0.5]) + ladder([0.5, 0.6, 0.9], seed=1),
            "mostly end worse after it in 1 of 2 seeds: rank inversion in part by",
        ),
        (ladder([0.5, 0.5, 0.5]), "end neither better nor worse after it: no rank inversion by"),
        (ladder([0.5]), "No seed has two rungs through RL yet"),
    ],
)
def test_rank_inversion_is_called_what_it_is(cells, words):
    assert words in answer(compare(cells, {}, plan_of(cells)))[0]


def test_depth_and_the_cost_of_choosing():
    cells = ladder([0.9, 0.7, 0.5]) + ladder([0.8, 0.7, 0.6], seed=1)
    assert answer(compare(cells, {}, plan_of(cells)))[1:] == [
        "With ce, from 1 epoch of SFT to 3: pass@1 before RL rose from 0.100 to 0.300, peak "
        "pass@10 after RL fell from 0.850 to 0.550 (means of 2 seeds).",
        "What a choice of the checkpoint costs in peak pass@10 after RL, against the best there "
        "was: highest pass@1 0.300, our recommendation 0.300, one at random 0.150.",
    ]
    still = answer(compare(ladder([0.5, 0.5]), {}, plan_of(ladder([0.5, 0.5]))))
    assert still[1].endswith("peak pass@10 after RL stayed at 0.500 (one seed).")


def test_a_recommendation_that_advises_against_all():
    cells = ladder([0.9, 0.5]) + ladder([0.9, 0.5], seed=1)
    for cell in cells[:2]:
        cell["before"]["verdict"] = "collapsed"
    assert (
        "our recommendation 0.400 (1 of 2 seeds)" in answer(compare(cells, {}, plan_of(cells)))[2]
    )
    for cell in cells[2:]:
        cell["before"]["verdict"] = "collapsed"
    comparison = compare(cells, {}, plan_of(cells))
    assert "our recommendation advises against all, one at" in answer(comparison)[2]
    assert [cell.text for cell in table_of(comparison, "rules").cells[0][1:]] == ["none"] * 2 + [
        "–"
    ] * 2


def test_who_stays_above_tau_h_without_rl():
    def rungs(loss, *entropies):
        return [
            {"loss": loss, "seed": seed, "depth": 4.0, "before": measures(entropy, 0.3, 0.5)}
            for seed, entropy in enumerate(entropies)
        ]

    cells = rungs("ce", 0.1, 0.1) + rungs("gem", 0.17, 0.19) + rungs("floor", 0.18, 0.3)
    said = answer(compare(cells, {}, plan_of(cells)))
    assert said[0] == "No RL was run, so what is said here is about SFT alone."
    assert said[1] == (
        "Checkpoints at 4 epochs with at least tau_H = 0.18 nats, in every seed: floor; in some "
        "seeds: gem; in none: ce."
    )


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_at_most_six_sentences(shape, options):
    said = answer(echelon(*shape, **options))
    assert 1 <= len(said) <= 6
    assert all(words.endswith(".") and ". " not in words for words in said)


def test_what_is_missing_is_said():
    comparison = echelon(("ce",), cut=1)
    assert answer(comparison)[-1].startswith("1 of 15 cells without outcome after RL: left out")
    assert table_of(comparison, "missing").rows == (("ce, 2 epochs", "0", "not there yet"),)
    assert (
        table_of(comparison, "before").cells[1][2].small.split()[0] == "–"
    )  # seed 0 has its place


def test_the_frontier():
    comparison = echelon(("ce", "sed"), steps=())
    on = [(r.loss, r.depth) for r in comparison.frontier if not r.beaten_by]
    assert answer(comparison)[-1].startswith(
        f"Before RL nothing beats {len(on)} of 10 rungs, with at"
    )
    table = table_of(comparison, "before")
    place = [column.header for column in table.columns].index("beaten by")
    shown = {(row[0].text, float(row[1].text)): row[place].text for row in table.cells}
    for rung in comparison.frontier:
        first = rung.beaten_by and f"{rung.beaten_by[0].loss}, {rung.beaten_by[0].depth:g} ep."
        assert shown[rung.loss, rung.depth] == (first or "–")
    page = echelon_html(comparison)
    assert page.count("by entropy</strong>") == 3  # pass@1, pass@10, degenerate fraction
    assert page.count("on the frontier</title>") == 3 * len(on)
    assert "on the frontier" not in echelon_html(echelon(("ce",), steps=()))


def test_without_rl():
    comparison = echelon(("ce", "sed"), steps=())
    assert re.match(
        r"With ce, from 2 epochs of SFT to 60: pass@1 rose .*, entropy fell from 0.675 to",
        answer(comparison)[1],
    )
    assert [table.key for table in tables(comparison)] == ["before"]


def test_a_k_that_only_the_evaluation_has():
    cells, base = made_up(("ce", "sed"), (1.0, 2.0, 3.0))
    for measured in [*(cell["before"] for cell in cells), *base.values()]:
        del measured["pass_at_k"]["10"]
    comparison = compare(cells, base, plan_of(cells))
    assert not any("highest pass@10" in rule.rule for rule in comparison.rules)
    headers = [column.header for table in tables(comparison) for column in table.columns]
    assert "pass@10" not in headers
    assert "peak pass@10 after RL" in Page(echelon_html(comparison)).text


def test_markdown_has_every_table_and_names_are_only_text():
    comparison = echelon(("ce", "a|b*", HOSTILE))
    text = echelon_markdown(comparison)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = [token.type for token in tokens]
    assert kinds.count("table_open") == len(tables(comparison)) == 7
    assert kinds.count("heading_open") == 8 and "html_block" not in kinds
    inside = {child.type for token in tokens for child in token.children or ()}
    assert inside <= {"text", "text_special"}
    assert text.count("## Which checkpoint to start RL from") == 2


def test_numbers_of_the_table_are_those_of_the_cells():
    comparison = echelon(("ce",), (1.0, 2.0, 3.0))
    row = next(row for row in table_of(comparison, "after").cells if row[1].text == "2")
    spread = comparison.row("ce", 2.0).outcomes["peak_pass_at_10"]
    assert row[2].text == f"{spread.mean:.3f}"
    assert row[2].small == " ".join(f"{v:.3f}"[1:] for v in spread.by_seed.values())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a shape's report, which is drawn once."""

    @cache
    def write(number):
        folder = tmp_path_factory.mktemp("report") / "new"
        shape, options = SHAPES[number]
        write_report(echelon(*shape, **options), folder)
        return folder

    return write


@pytest.mark.parametrize("number", range(len(SHAPES)))
@pytest.mark.pictures
def test_the_report_stands_alone(written, number):
    shape, options = SHAPES[number]
    comparison, folder = echelon(*shape, **options), written(number)
    assert (folder / "echelon.png").read_bytes()[:4] == b"\x89PNG"
    text = (folder / "echelon.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\([^#]|@import|https?://", text)
    assert {"answer", "about", "figures", "tables", "glossary", "settings"} <= set(page.ids)
    shown = " ".join(page.text.split())
    assert all(words in shown for words in answer(comparison))
    assert "nan" not in re.findall(r"[a-z]+", text)


def test_names_are_only_text(tmp_path):
    comparison = echelon((HOSTILE, "ce", "_under$x$"), (2.0, 6.0), name=HOSTILE)
    text = echelon_html(comparison)
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert "<script" not in text and "\x00" not in text and "\u202e" not in text
    assert "_under$x$</text>" in ladder_picture(comparison).svg("all")


def test_eleven_losses_can_be_told_apart():
    losses = ["ce", *(f"loss-{number}" for number in range(10))]
    looks = [style for style, _ in legend(echelon(losses, (2, 4), (0,), steps=()))][:11]
    assert len({(s["color"], s["marker"], s["markerfacecolor"]) for s in looks}) == len(losses)


@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_the_terminal(shape, options):
    comparison = echelon(*shape, **options)
    console = Console(width=100, file=io.StringIO())
    for part in echelon_terminal(comparison, 100):
        console.print(part)
    shown = " ".join(console.file.getvalue().split())
    assert answer(comparison)[0] in shown
    assert f"{comparison.ladder[-1].before['entropy_nats'].mean:.3f}" in shown
    assert ("our recommendation" in shown) == bool(comparison.rules)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.pictures
def test_in_chromium(written):
    with ChromiumPage() as page:
        paths = [written(number) / "echelon.html" for number in range(len(SHAPES))]
        for path in paths:
            for width, phone in ((390, True), (1280, False)):
                page.open(path, width=width, phone=phone)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate(SMALLEST_TEXT)["pixels"] >= 11
                assert page.evaluate(OUTSIDE) == []
        assert page.complaints() == []
        assert set(page.requests()) <= {path.resolve().as_uri() for path in paths}
