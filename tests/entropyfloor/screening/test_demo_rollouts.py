"""Rollouts of the demo's model after training with label smoothing (0.1) and with GEM.

24 steps of 8 of 96 one-digit sums, lr 1e-4; 12 held-out problems, 8 rollouts of up to 40 tokens at
temperature 1. Label smoothing's are 7 nats of tokens from anywhere, GEM's are workings of sums.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.screening.measure import Estimates, kind_of, measure_checkpoint, scored_metrics
from entropyfloor.screening.options import Judging
from entropyfloor.screening.texts import JUNK
from entropyfloor.screening.verdict import judge

CASES = Path(__file__).parents[2] / "cases"
LINES = (CASES / "demo_rollouts.jsonl").read_text("utf-8").splitlines()
JUDGING = Judging(group_size=8, ks=[1, 8])


def rollouts_of(model):
    rows = [row for row in map(json.loads, LINES) if row["model"] == model]
    rollouts = [
        Rollout(
            row["prompt"],
            row["sample"],
            tuple(row["ids"]),
            np.full(row["tokens"], row["nats"], np.float32),  # the mean of each at every token
            row["text"],
            row["truncated"],
        )
        for row in rows
    ]
    return rollouts, [row["reward"] for row in rows]


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize(
    ("model", "verdict", "kinds"),
    [("label-smoothing", "junk", {"noise"}), ("gem", "ready", set())],
)
def test_verdicts(model, verdict, kinds, scored):
    rollouts, rewards = rollouts_of(model)
    found = measure_checkpoint(
        rollouts,
        rewards if scored else None,
        Sampling(),
        JUDGING,
        source=("n", "p"),
        prompt_texts=["a problem"] * (1 + max(r.prompt_index for r in rollouts)),
    )
    assert found.verdict == verdict and found.flagged == (verdict == "junk")
    assert {kind for kind, share in found.degenerate_text.items() if share > 0.1} == kinds
    assert (found.entropy_nats > 6) == (verdict == "junk")


def test_a_good_checkpoint_is_not_flagged_by_chance():
    """400 screens of 24 prompts, each a problem of GEM's with its rollouts drawn again."""
    rollouts, rewards = rollouts_of("gem")
    by_prompt = np.array([r.prompt_index for r in rollouts])
    tokens = np.array([len(r.token_ids) for r in rollouts], float)
    nats = np.array([float(r.entropies_nats.sum(dtype=float)) for r in rollouts])
    junk = np.array([kind_of(r) in JUNK for r in rollouts], float)
    rewards = np.array(rewards)
    places = [np.flatnonzero(by_prompt == p) for p in sorted(set(by_prompt))]
    rng = np.random.default_rng(0)
    verdicts = []
    for run in range(400):
        chosen = [rng.choice(places[p], size=8) for p in rng.integers(len(places), size=24)]
        estimate = Estimates(run)
        metrics = {
            "entropy_nats": estimate.ratio(
                "entropy_nats", [nats[i].sum() for i in chosen], [tokens[i].sum() for i in chosen]
            ),
            "junk_fraction": estimate.share(
                "junk_fraction",
                [float((junk[i] * (rewards[i] < 1)).mean()) for i in chosen],
            ),
            **scored_metrics([rewards[i].tolist() for i in chosen], JUDGING, estimate),
        }
        verdicts.append(judge(metrics, estimate.intervals, group_size=8))
    flagged = sum(v.flagged for v in verdicts) / 400
    print(f"\nflagged {flagged:.4f}, junk {sum(v.verdict == 'junk' for v in verdicts) / 400:.4f}")
    assert flagged <= 0.05
    assert all(v.verdict != "junk" for v in verdicts)
