"""Text of users is text: names, prompts and completions of any kind, in every medium."""

import importlib.util
import io
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from test_screening_html import Page

from entropyfloor.cli.main import main
from entropyfloor.coupling import page as coupling_page
from entropyfloor.coupling.table import coupling_terminal
from entropyfloor.echelon import page as echelon_page
from entropyfloor.echelon.compare import compare
from entropyfloor.echelon.table import echelon_terminal
from entropyfloor.io import append_jsonl, read_jsonl, save_json, write_pictures
from entropyfloor.render.figure import Chart, series, threshold
from entropyfloor.render.text import plain, print_line, visible
from entropyfloor.rl.monitor_plot import write_monitor_plot
from entropyfloor.rollouts.draw import progress_bars
from entropyfloor.screening.figures import pass_at_k_figure, row_figures
from entropyfloor.screening.page import write_report
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.table import further_table, screening_markdown, screening_table
from entropyfloor.sft.floor.plot import write_floor_plot
from entropyfloor.sft.floor.probe import ProbeResult
from made_up_echelon import made_up, plan_of
from sample_reports import report as sample_report

pytestmark = pytest.mark.pictures
_SPEC = importlib.util.spec_from_file_location(  # the echelon has a test_reports of its own
    "coupling_reports", Path(__file__).parents[1] / "coupling/test_reports.py"
)
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
coupling_report = _MODULE.report

TEXTS = {
    "dollar": "$x_1^2$ costs $",
    "broken formula": r"$\frac{$",
    "underscore": "_x",
    "percent": "100 %s %",
    "backslash": "\\alpha\\",
    "rich": "[red]x[/red]",
    "rich end": "[/]",
    "escape": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "mark": "\ufeffce",
    "bidi": "a\u202ecba\u2066",
    "html": "</script><img src=x onerror=alert(1)>\"'&amp;",
    "table": "a|b|c",
    "backticks": "```\n`x`",
    "markup": "*a* **b** ~~c~~ [d](e) # f <g>",
    "long": "x" * 10_000,
    "newline": "a\nb\r\nc\td",
    "null": "a\x00b\x85",
    "emoji": "🙂 日本語 e\u0301",
    "surrogate": "a\ud800b",
    "nothing": "",
}
# What no reader's program may meet: C0 but tabs and line breaks, DEL, C1, surrogates, bidi, BOM.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufeff]")


def screening(text):
    """A report whose first checkpoint's name, and whose prompts and completions, are the text."""
    report = sample_report(2, name=text, text=text)
    rows = []
    for row in report.checkpoints:
        examples = tuple(replace(example, prompt=text) for example in row.examples)
        rows.append(replace(row, examples=examples, notes=(f"note: {text}",)))
    return replace(report, checkpoints=tuple(rows), settings={**report.settings, "reward": text})


def printed(*parts):
    console = Console(file=io.StringIO(), width=400)
    for part in parts:
        print_line(console, part) if isinstance(part, str) else console.print(part)
    return console.file.getvalue()


def in_a_terminal(text):
    found = screening(text)
    out = printed(*(table(found).to_rich(400) for table in (screening_table, further_table)), text)
    lines = [line for line in out.splitlines() if "checkpoint-200" in line]
    assert len(lines) == 2, "a row is a row"
    return out, plain(text, 30)[:15]


def in_markdown(text):
    found = screening_markdown(screening(text))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(found)
    blocks = {re.sub("_(open|close)$", "", token.type) for token in tokens}
    cells = {"table", "thead", "tbody", "tr", "th", "td"}
    assert blocks <= cells | {"paragraph", "inline", "bullet_list", "list_item"}
    inside = [child for token in tokens for child in token.children or ()]
    kinds = {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    assert {child.type for child in inside} <= kinds
    names = [t.content for t in tokens if t.type == "inline"][13::13]
    assert len(names) >= 2, "a row has as many cells as the table has columns"
    return "".join(child.content for child in inside), plain(text, 100)[:40].strip()


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("shown", [in_a_terminal, in_markdown])
def test_what_a_reader_sees(shown, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen, wanted = shown(text)
    assert not UNSEEN.search(seen)
    assert wanted in seen


def every_text():
    """A report in which each text is a checkpoint's name, a note, a prompt and a completion."""
    report = sample_report(len(TEXTS), name=TEXTS["dollar"])
    (example, *_) = report.checkpoints[0].examples
    examples = tuple(replace(example, prompt=text, text=text) for text in TEXTS.values())
    rows = tuple(
        replace(row, name=text or row.name, notes=(f"note: {text}",), examples=examples)
        for row, text in zip(report.checkpoints, TEXTS.values(), strict=True)
    )
    return replace(report, checkpoints=rows)


@pytest.fixture
def chart():
    """Every text as title, caption, threshold and entry of a legend."""
    found = Chart(400, 100 * len(TEXTS), TEXTS["html"], TEXTS["html"], margins=(50, 10, 30, 30))
    for axes, text in zip(found.panels(len(TEXTS), 1), TEXTS.values(), strict=True):
        axes.set(title=text[:40], xlabel=text[:40])
        threshold(axes, 0.5, text[:40])
        found.tip(axes, text)
        found.legend([(axes.plot([0, 1], [0, 1], **series(0))[0], text)], axes=axes)
    return found


def test_figures(chart):
    report = every_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        charts = [*row_figures(report).values(), pass_at_k_figure(report), chart]
        svg = "".join(each.svg(f"c{i}") for i, each in enumerate(charts))
    assert "</script>" not in svg and not UNSEEN.search(svg)
    texts = "".join(f"{words}\n" for words in re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    for sign, entity in (("<", "&lt;"), (">", "&gt;"), ("&", "&amp;")):
        texts = texts.replace(entity, sign)
    for text in TEXTS.values():
        assert texts.count(plain(text, 17)) >= 2 and plain(text, 44) in texts


def test_files(tmp_path, chart):
    found = every_text()
    log = [{"event": "step", "step": i, "entropy_nats": 0.5, "mean_reward": 0.1} for i in (1, 2)]
    verdict = {"event": "verdict", "message": " ".join(t for t in TEXTS.values() if len(t) < 99)}
    course = [{"step": i, "floor_entropy": 0.2, "floor_weight": 0.1} for i in (1, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(found, tmp_path)
        for kind in ("png", "svg", "pdf"):
            chart.save(tmp_path / f"chart.{kind}")
        write_monitor_plot([*log, verdict], tmp_path / "monitor.png")
        write_floor_plot(course, [ProbeResult(1, 0.2, None, 8, 0.1)], 0.18, tmp_path / "floor.png")
    page = Page(html := (tmp_path / "screening.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and "img" not in page.tags and not page.handlers
    assert len(page.ids) == len(set(page.ids)) and not UNSEEN.search(html)
    document = json.loads((tmp_path / "screening.json").read_text(encoding="utf-8"))
    assert ScreeningReport.from_dict(document) == ScreeningReport.from_dict(found.to_dict())
    append_jsonl(tmp_path / "rows.jsonl", [{"prompt": text} for text in TEXTS.values()])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"prompt": text} for text in TEXTS.values()]
    for text in TEXTS.values():
        assert visible(text)[:1500] in page.text


def test_progress_bars(capsys):
    with progress_bars(enabled=True) as bars:
        for name in ("rich", "rich end"):
            bars.add_task(TEXTS[name], total=1)
    assert "[red]x[/red]" in capsys.readouterr().err


def test_json_is_as_it_was(tmp_path):
    save_json(tmp_path / "a.json", {"text": "é🙂\ud800"})
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert written == '{\n  "text": "é🙂\\ud800"\n}\n', "only what UTF-8 lacks is escaped"


def test_an_error_is_text_too(capsys):
    assert main(["screen", "--from-rollouts", "no\x1b[31m\u202esuch"]) == 2
    error = capsys.readouterr().err
    assert "no␛[31m\ufffdsuch" in error and "\x1b" not in error


def test_a_failing_picture_costs_the_picture(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no font\x1b")

    monkeypatch.setattr("entropyfloor.screening.page.screening_html", fail)
    monkeypatch.setattr("entropyfloor.render.figure.Chart.save", fail)
    with pytest.warns(UserWarning, match="could not be written") as said:
        write_report(sample_report(2), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["screening.json", "screening.md"]
    messages = [str(warning.message) for warning in said]
    assert "screening.html" in messages[0] and "no font\\x1b" in messages[0]
    assert "screening.png" in messages[1] and len(messages) == 2


def test_a_failing_picture_does_not_stop_the_next(tmp_path):
    done = []
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        write_pictures({tmp_path / "a": lambda _: 1 / 0, tmp_path / "b": done.append})
    assert done == [tmp_path / "b"]


def echelon(folder):
    """Every text is a loss."""
    texts = [text for text in TEXTS.values() if text]
    cells, base = made_up([str(i) for i in range(len(texts))], depths=(1.0, 2.0), seeds=(0,))
    cells = [{**cell, "loss": texts[int(cell["loss"])]} for cell in cells]
    found = compare(cells, base, plan_of(cells, name=texts[0]))
    echelon_page.write_report(found, folder)
    return printed(*echelon_terminal(found, 400))


def coupling(folder):
    """Every text is a checkpoint."""
    whole = coupling_report(len(TEXTS))
    named = zip(whole.checkpoints, TEXTS.values(), strict=True)
    rows = tuple(replace(row, name=text, notes=(f"note: {text}",)) for row, text in named)
    found = replace(whole, checkpoints=rows)
    coupling_page.write_report(found, folder)
    return printed(*coupling_terminal(found, 400))


@pytest.mark.parametrize("feature", [echelon, coupling])
def test_other_features(feature, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        terminal = feature(tmp_path)
    names = {"json", "md", "html", "png"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{feature.__name__}.{n}" for n in names}
    lines = (tmp_path / f"{feature.__name__}.md").read_text(encoding="utf-8")
    html = (tmp_path / f"{feature.__name__}.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "img" not in page.tags and not page.handlers
    assert len(page.ids) == len(set(page.ids))
    assert not any(UNSEEN.search(found) for found in (terminal, lines, html))
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(lines)
    inside = [child for token in tokens for child in token.children or ()]
    assert not {child.type for child in inside} & {"html_inline", "link_open", "em_open", "s_open"}
    shown = "".join(child.content for child in inside)
    for text in TEXTS.values():
        assert plain(text, 50)[:20] in terminal
        assert plain(text, 50)[:20] in page.text
        assert plain(text, 50)[:20].strip() in shown
