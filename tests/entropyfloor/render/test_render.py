"""Table, Chart and page frame by themselves; hostile texts have a test of their own."""

import io
import re

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from entropyfloor.render.figure import Chart, draw_course, entropy_axis, key, series
from entropyfloor.render.palette import LIGHT, PALETTE
from entropyfloor.render.table import Cell, Column, Table
from entropyfloor.render.text import common_beginning, markdown, plain, shorten

TABLE = Table(
    "Measures",
    (Column("name", "left"), Column("entropy (nats)"), Column("pass@1", importance=2)),
    (("ce/checkpoint-100", Cell("0.231", "0.20–0.26", "good"), "-0.5"), ("sed", "1", "2")),
    note="read this",
)


def printed(table, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(table.to_rich(width))
    return console.file.getvalue()


def test_one_table_three_ways():
    text = printed(TABLE, 100)
    assert "0.20–0.26" in text and "read this" in text and "no room" not in text
    lines = TABLE.to_markdown().splitlines()
    assert lines[:2] == ["| name | entropy (nats) | pass@1 |", "|---|---:|---:|"]
    assert lines[2] == "| ce/checkpoint-100 | 0.231 (0.20–0.26) | -0.5 |"
    page = TABLE.to_html()
    assert '<td><span class="pill good">0.231</span><small>0.20–0.26</small></td>' in page


def test_a_narrow_terminal_says_what_it_leaves_out():
    text = printed(TABLE, 28)
    assert "pass@1" not in text.split("no room for")[0]
    assert "no room for pass@1" in " ".join(text.split())
    assert max(map(cell_len, text.splitlines())) <= 28


def test_many_rows_have_one_line_each():
    many = Table("T", TABLE.columns, TABLE.rows * 7)
    assert "0.20–0.26" not in printed(many, 100)


@pytest.mark.parametrize("text", ["x" * 500, "😀" * 500, "ab", "日本語" * 9, "e\u0301" * 300])
def test_shorten(text):
    short = shorten(text, 21)
    assert cell_len(short) <= 21 and (short == text) == (cell_len(text) <= 21)
    assert short[0] == text[0] and short[-1] == text[-1]


@pytest.mark.parametrize(
    "text",
    ["*a* _b_ `c`", "# no heading", "- a", "1. a", "<b>&amp;", "[x](y) ~~z~~", "a_b tau_H", "---"],
)
def test_markdown_is_only_text(text):
    tokens = MarkdownIt("commonmark").parse(markdown(text))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children} <= {"text", "text_special"}
    assert "".join(child.content for child in tokens[1].children) == text
    assert "tau\\_H" not in markdown("tau_H")


def test_plain_is_one_visible_line():
    assert plain("a\x1b[31m\n\x00\ud800\u202e\ufeff") == "a␛[31m␊␀\ufffd\ufffd\ufffd"


def test_common_beginning():
    assert common_beginning(["a/b/c", "a/b/d"]) == "a/b/" and common_beginning(["a/b"]) == ""


def chart():
    found = Chart(370, 260, "rates", "they rise")
    axes = found.axes(below="k")
    (line,) = axes.plot([1, 2], [0.1, 0.2], **series(0))
    found.tip(line, "ce: 0.2 <b>")
    found.legend([(line, "_ce")])
    return found


def test_svg_of_a_page():
    text = chart().svg("first")
    assert text == chart().svg("first"), "the same at any time"
    assert "var(--s0)" in text and LIGHT["s0"] not in text
    assert ">_ce</text>" in text and "<title>ce: 0.2 &lt;b&gt;</title>" in text
    assert 'aria-label="rates"' in text and '<desc id="first-said">they rise</desc>' in text
    assert "http" not in text and "<style" not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(set(ids)) == len(ids) and all(found.startswith("first-") for found in ids)
    assert all(found in ids for found in re.findall(r'(?:href="|url\()#([^")]*)', text))


def test_files(tmp_path):
    for name, start in (("new/a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.pdf", b"%PDF")):
        assert chart().save(tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match="xyz"):
        chart().save(tmp_path / "a.xyz")


def test_palette_is_unique_and_series_differ():
    assert len(set(LIGHT.values())) == len(PALETTE)
    looks = {(s["color"], s["marker"], s["markerfacecolor"]) for s in map(series, range(64))}
    assert len(looks) == 64
    assert 'class="chart key"' in key(series(9), "k9")


@pytest.mark.parametrize(
    ("values", "log"), [([0.1, 0.2], False), ([0.01, 2.7], True), ([0], False)]
)
def test_entropy_axis(values, log):
    axes = Chart(100, 100).axes()
    assert entropy_axis(axes, "x", values) == log == (axes.get_xscale() == "log")
    assert axes.get_xlim()[1] > max(values)


def test_a_legend_of_six_entries_leaves_the_axes_their_width():
    chart = Chart(620, 470)
    axes = chart.axes()
    measures = {f"m{i}": (f"a measure's name, {i}", "s0") for i in range(6)}
    draw_course(chart, axes, [dict.fromkeys(measures, 1.0) | {"step": s} for s in (1, 2)], measures)
    chart.figure.canvas.draw()
    assert axes.get_position().width > 0.7
