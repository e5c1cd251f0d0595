import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from chromium_page import CHROMIUM, ChromiumPage
from entropyfloor.screening.page import screening_html, write_page
from entropyfloor.screening.report import ScreeningReport
from entropyfloor.screening.table import screening_markdown
from sample_reports import HOSTILE, report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements, addresses and text of a page; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.ids, self.handlers = [], [], [], []
        self.text, self._open = "", []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data


SIZES = [(1, True), (1, False), (7, True), (7, False), (40, True)]


@pytest.mark.parametrize(("count", "scored"), SIZES)
def test_sections_and_nothing_from_outside(count, scored):
    found = report(count, scored=scored, long_names=count == 40)
    text = screening_html(found)
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert {found[5:-1] for found in re.findall(r"url\(#[^)]*\)", text)} <= set(page.ids)
    wanted = {"verdict", "figures", "table", "checkpoints", "rollouts", "glossary", "settings"}
    assert wanted <= set(page.ids)
    assert all(checkpoint.name in page.text for checkpoint in found.checkpoints)
    assert "tau_H = 0.18" in page.text and "2.8.0" in page.text
    # Entropy, and with a reward groups, pass@k and headroom; two or one in each checkpoint's card.
    # And the band of each comparison with the first.
    assert text.count('class="chart"') == (4 + 2 * count + count - 1 if scored else 1 + count)
    assert ("p*(8) = 0.083" in page.text) == scored
    assert ("rests on entropy alone" in page.text) != scored
    assert len(text) < 38_000 * (count + 2)


def test_an_undecided_checkpoint_is_not_one_to_start_from():
    found = report(1)
    found = replace(found, checkpoints=(replace(found.checkpoints[0], verdict="undecided"),))
    words = " ".join(Page(screening_html(found)).text.split())
    assert "Draw more before RL is paid for; best so far is ce/checkpoint-100." in words
    assert "Start RL from" not in words and "would choose" not in words
    assert "Draw more; best so far is ce/checkpoint-100" in screening_markdown(found)


def test_the_verdict_in_words():
    page = Page(screening_html(report(7)))
    words = " ".join(page.text.split())
    assert "Start RL from ce/checkpoint-100." in words
    assert "The highest pass@1 would have picked ce/checkpoint-700. 0.31 more of its" in words
    assert "3 ready" in words and "2 collapsed" in words
    assert "Held-out loss would choose" in words


def test_long_completions_are_cut_and_say_so():
    page = Page(screening_html(report(1, text="word " * 1000)))
    assert "… 3000 more characters" in page.text


def test_a_report_without_the_newer_fields():
    plain = report(2)
    bare = ScreeningReport.from_dict(
        {
            "schema": "entropyfloor.screening",
            "schema_version": 1,
            "settings": plain.settings,
            "checkpoints": [
                {
                    "name": "old",
                    "path": "old",
                    "num_prompts": 2,
                    "num_rollouts": 4,
                    "entropy_nats": 0.0,
                    "unique_fraction": 1.0,
                    "mean_tokens": 3.0,
                    "truncated_fraction": 0.0,
                    "intervals": {},
                    "flagged": True,
                }
            ],
        }
    )
    page = Page(screening_html(bare))
    assert "old: flagged" in " ".join(page.text.split()) and "rollouts" not in page.ids


# Font size times the scale of its figure, of the figures that are not folded away.
SMALLEST_TEXT = """[...document.querySelectorAll('.chart text')]
  .filter(t => t.checkVisibility()).map(t => ({text: t.textContent, pixels:
    parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a}))
  .reduce((a, b) => a.pixels <= b.pixels ? a : b)"""
# Text that sticks out of its figure is cut off.
OUTSIDE = """[...document.querySelectorAll('.chart text')].filter(t => {
  const box = t.getBoundingClientRect(), frame = t.ownerSVGElement.getBoundingClientRect();
  return t.checkVisibility() && (box.left < frame.left - 1 || box.right > frame.right + 1);
}).map(t => t.textContent)"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_chromium(tmp_path):
    low = report(1, scored=False)
    (row,) = low.checkpoints
    low = replace(low, checkpoints=(replace(row, entropy_nats=0.16, intervals={}),))
    edge = write_page(low, tmp_path / "edge.html")  # tau_H at the very right
    path = write_page(report(40, long_names=True, text=HOSTILE), tmp_path / "page.html")
    with ChromiumPage() as page:
        for width, phone in ((390, True), (1280, False)):
            page.open(path, width=width, phone=phone)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.querySelectorAll('.chart').length") == 123
            # Text of figures is scaled with them: on no screen is it smaller than 11 pixels.
            smallest = page.evaluate(SMALLEST_TEXT)
            assert smallest["pixels"] >= 11, smallest
            assert page.evaluate(OUTSIDE) == []
        page.open(edge, width=390, phone=True)
        assert page.evaluate(OUTSIDE) == []
        page.open(path, width=1280)
        page.send("Emulation.setEmulatedMedia", media="print")
        hidden = "[...document.querySelectorAll('.card')].filter(e => !e.checkVisibility()).length"
        assert page.evaluate(hidden) == 0, "printing shows every checkpoint"
        assert set(page.requests()) <= {edge.resolve().as_uri()} and page.complaints() == []
