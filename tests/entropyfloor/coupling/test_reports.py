"""Table, Markdown, page and plot of a coupling, from records made by hand."""

import io
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from test_screening_html import SMALLEST_TEXT, Page

from chromium_page import CHROMIUM, ChromiumPage
from entropyfloor.coupling.alignment import GradientAlignment, LayerAlignment, agreement
from entropyfloor.coupling.divergence import identity
from entropyfloor.coupling.durations import Duration, ModelFit, PLEstimate
from entropyfloor.coupling.page import coupling_html, write_report
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.coupling.table import (
    answer,
    coupling_markdown,
    coupling_terminal,
    durations_table,
)
from entropyfloor.stats.intervals import Interval

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


VANISHED = LayerAlignment("all", 40, agreement(np.zeros((8, 8))), None, None, None, None)


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
    coupling = report(count, aligned=aligned)
    text = coupling_html(coupling)
    page = Page(text)
    assert "script" not in page.tags and not page.handlers
    assert all(address == "data:," or address[1:] in page.ids for address in page.addresses)
    wanted = {"answer", "figures", "table", "durations", "glossary", "settings"}
    assert ("gradients" in page.ids) == aligned
    assert wanted <= set(page.ids)
    assert all(c.name in page.text for c in coupling.checkpoints)
    assert text.count('class="chart"') == 4 + (count if aligned else 0)
    assert len(page.ids) == len(set(page.ids))


def test_json_gives_back_what_was_written(tmp_path):
    coupling = report()
    document = coupling.to_dict()
    assert CouplingReport.from_dict(document) == coupling
    assert coupling.write_json(tmp_path / "new" / "c.json").stat().st_size > 1000
    with pytest.raises(ValueError, match=r"expected a document of schema 'entropyfloor\.coupling'"):
        CouplingReport.from_dict({**document, "schema_version": 99})


def test_the_answer_says_what_the_numbers_are():
    said = answer(report())
    assert len(said) == 6 and all(words.endswith(".") for words in said)
    assert "the reward rose by 0.300 and the SFT loss rose by 0.900 (0.050 to 1.100)" in said[0]
    assert said[1].startswith(
        "At run/checkpoint-30 the SFT loss of the RL model lies 0.350 nats per answer above that "
        "of the SFT model and KL(SFT‖RL) is 0.300: the gap of +0.050 is within the noise"
    )
    assert said[2].startswith("At run/checkpoint-30 the cosine of the SFT and the RL gradient is +")
    assert said[3] == (
        "Reward − 0.5 × SFT loss rise is greatest at step 20 (10 – 30) by measurement, 18 by the "
        "model, 12 by the estimated PL constants."
    )
    assert said[4].startswith("Reward − SFT loss rise is greatest (threshold) at step 10 by")
    assert said[5] == "run/checkpoint-10: a note."


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        ({"reward_gain": -0.2}, 0, "the reward fell by 0.200 and"),
        ({"intervals": {"loss_rise": Interval(-0.1, 1.0)}}, 0, "which is within the noise, nats"),
        ({"identity": None, "alignment": None}, 1, "At run/checkpoint-20 the cosine of"),
        (
            {"identity": identity([0.5] * 9, [0.3] * 9, [0.2] * 9, [0.2] * 9)},
            1,
            "a gap of +0.300, of which +0.200 because the SFT model does not predict",
        ),
        (
            {"alignment": GradientAlignment("all", 8, VANISHED, (VANISHED,))},
            2,
            "At run/checkpoint-30 a gradient vanishes",
        ),
    ],
)
def test_the_answer_follows_the_last_checkpoint(change, where, words):
    coupling = report()
    last = replace(coupling.checkpoints[-1], **change)
    assert words in answer(replace(coupling, checkpoints=(*coupling.checkpoints[:-1], last)))[where]


@pytest.mark.pictures
def test_one_table_three_ways(tmp_path):
    coupling = report(name="a|b*{}")
    write_report(coupling, tmp_path / "new")
    assert (tmp_path / "new" / "coupling.png").read_bytes()[:4] == b"\x89PNG"
    tokens = MarkdownIt("commonmark").enable("table").parse(coupling_markdown(coupling))
    cells = [token.content for token in tokens if token.type == "inline"]
    assert r"a|b\*10" in cells and [t.type for t in tokens].count("table_open") == 2
    console = Console(width=200, file=io.StringIO())
    for part in coupling_terminal(coupling, 200):
        console.print(part)
    assert "a|b*10" in console.file.getvalue()
    assert "0.5 of the SFT loss (from a|b*10)" in durations_table(coupling).note
    assert durations_table(coupling).rows[1][:4] == ("threshold", "1", "10", "–")


@pytest.mark.pictures
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_chromium(tmp_path):
    write_report(report(), tmp_path)
    with ChromiumPage() as page:
        for width, phone in ((390, True), (1280, False)):
            page.open(tmp_path / "coupling.html", width=width, phone=phone)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(SMALLEST_TEXT)["pixels"] >= 11
        assert page.requests() == [] and page.complaints() == []
