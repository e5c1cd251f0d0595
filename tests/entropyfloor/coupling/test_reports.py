"""Table, Markdown, page and plot of a coupling, from records made by hand."""

from dataclasses import replace

import numpy as np
import pytest
from test_screening_html import Page

from chromium_page import CHROMIUM, ChromiumPage
from entropyfloor.coupling.alignment import GradientAlignment, LayerAlignment
from entropyfloor.coupling.duration_model import ModelFit
from entropyfloor.coupling.durations import Duration
from entropyfloor.coupling.findings import findings
from entropyfloor.coupling.gradient_gram import agreement
from entropyfloor.coupling.identity import identity, identity_words
from entropyfloor.coupling.page import coupling_html, write_coupling_html
from entropyfloor.coupling.pl_constant import PLEstimate
from entropyfloor.coupling.plot import write_coupling_plot
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.stats.intervals import Interval
from sample_reports import HOSTILE

SETTINGS = {
    "step_unit": "step",
    "demonstrations": {"source": "demos.jsonl", "count": 20},
    "prompts": {"source": "prompts.jsonl", "count": 30},
    "num_samples": 8,
    "max_new_tokens": 64,
    "reward": "exact_match",
    "seed": 0,
    "versions": {"torch": "2.8.0"},
}


def alignment(seed):
    rows = np.random.default_rng(seed).standard_normal((8, 40)) + 0.5
    layers = [
        LayerAlignment(name, 40, agreement(rows @ rows.T), 0.9, 0.8, 0.95, 0.3)
        for name in ("embeddings", "layer 0", "rest")
    ]
    return GradientAlignment("all", 8, replace(layers[0], name="all"), tuple(layers))


def report(count=4, *, name="run/checkpoint-{}", order="sft-rl", aligned=True):
    checkpoints = []
    for index in range(count):
        exact = None
        if index:
            exact = identity([0.2 * index, 0.1], [0.1, 0.2], [0.1 * index, 0.3], [0.1, 0.2])
        checkpoints.append(
            CheckpointCoupling(
                name=name.format(10 * index),
                path="runs/x",
                step=10.0 * index,
                sft_loss=1.0 + 0.1 * index**2,
                mean_reward=0.2 + 0.1 * index,
                loss_rise=0.1 * index**2,
                reward_gain=0.1 * index,
                kl={} if exact is None else {"forward_own": 0.2, "reverse_rollouts": 0.1},
                identity=exact,
                identity_words="" if exact is None else identity_words(exact),
                alignment=alignment(index) if aligned else None,
                intervals={
                    "sft_loss": Interval(0.9 + 0.1 * index**2, 1.2 + 0.1 * index**2),
                    "loss_rise": Interval(0.05, 0.2 + 0.1 * index**2),
                },
                notes=("a note",) if index == 1 else (),
            )
        )
    durations = (
        DurationAnswer(
            "best", 0.5, Duration(20.0, Interval(10.0, 30.0)), Duration(18.0), 12.0, "they agree"
        ),
        DurationAnswer("threshold", 1.0, Duration(10.0), Duration(None, words="?"), None, "no"),
    )
    pl = {"sft_loss": PLEstimate(0.5, 1, 3), "reward": PLEstimate(None, None, 0)}
    fit = ModelFit(0.1, 0.4, 0.0, 0.9, 0.01, 0.01, True)
    return CouplingReport(tuple(checkpoints), order, durations, pl, fit, SETTINGS)


@pytest.mark.parametrize("count", [2, 4, 30])
@pytest.mark.parametrize("aligned", [True, False])
def test_the_page_stands_alone(count, aligned):
    found = report(count, aligned=aligned)
    text = coupling_html(found)
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    wanted = {"findings", "figures", "table", "durations", "glossary", "settings"}
    assert ("gradients" in page.ids) == aligned
    assert wanted <= set(page.ids)
    assert all(c.name in page.text for c in found.checkpoints)
    assert text.count('class="chart"') == 4 + (count if aligned else 0)
    assert len(text) < 30_000 * (count + 2)


def test_names_are_only_text():
    text = coupling_html(report(name=HOSTILE.replace("{", "(").replace("}", ")") + "{}"))
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags
    assert "<script" not in text and "\x00" not in text and "\u202e" not in text


def test_json_gives_back_what_was_written(tmp_path):
    found = report()
    document = found.to_dict()
    assert CouplingReport.from_dict(document) == found
    assert found.write_json(tmp_path / "new" / "c.json").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"expected a document of schema 'entropyfloor\.coupling'"):
        CouplingReport.from_dict({**document, "schema_version": 99})


def test_findings_say_what_the_numbers_are():
    words = "\n".join(findings(report()))
    assert "the reward rose by 0.300 and the SFT loss rose by 0.900 (0.050 to 1.100)" in words
    assert "estimated PL constant of the SFT loss: 0.5, from run/checkpoint-10" in words
    assert "PL constant of the reward" not in words
    assert "greatest at step 20 (10 – 30) by measurement, 18 by the model, 12 by the est" in words
    assert "run/checkpoint-10: a note" in words
    turned = "\n".join(findings(report(order="rl-sft")))
    assert "threshold" in turned


def test_markdown_escapes_names():
    text = report(name="a|b*{}").to_markdown()
    assert r"a\|b\*10" in text and text.count("\n| ") == 4


def test_the_plot(tmp_path):
    assert write_coupling_plot(report(), tmp_path / "new" / "c.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_phone_can_show_it(tmp_path):
    path = write_coupling_html(report(), tmp_path / "c.html")
    with ChromiumPage() as page:
        page.open(path, width=390, phone=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.requests() == [] and page.complaints() == []
