"""Screening reports of made-up numbers: few and many checkpoints, with and without a reward."""

import math
import random

from entropyfloor.screening.conclude import compare_checkpoints
from entropyfloor.screening.paired import PromptResults
from entropyfloor.screening.report import (
    Calibration,
    CheckpointScreening,
    DegenerateExample,
    ExampleRollout,
    GateResult,
    Histogram,
    PredictorCorrelation,
    Recommendation,
    ScreeningReport,
)
from entropyfloor.stats.group_sequential import SequentialRecord
from entropyfloor.stats.groups import degenerate_fraction, p_star
from entropyfloor.stats.intervals import Interval

KS = [1, 2, 4, 8, 16]
HOSTILE = '<script>alert("x")</script><img src="https://evil.test/x.png"> & \x00\x1b[31m \u202eabc'


def settings(*, scored=True):
    return {
        "max_new_tokens": 256,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "batch_size": 64,
        "seed": 0,
        "num_samples": 16,
        "group_size": 8,
        "ks": KS if scored else [],
        "tau_h": 0.18,
        "entropy_temperature": 1.0,
        "reward": "exact_match" if scored else None,
        "success_threshold": 1.0,
        "confidence": 0.95,
        "prompts": {"source": "prompts.jsonl", "count": 24, "digest": "0123456789abcdef"},
        "dtype": "auto",
        "device": "cpu",
        "versions": {"entropyfloor": "0.1.0", "torch": "2.8.0", "python": "3.12.1"},
    }


def bare_checkpoint(name, entropy_nats=0.3, **more):
    """What every screening of a checkpoint has, and what a test is about."""
    rest = {"unique_fraction": 1.0, "mean_tokens": 1.0, "truncated_fraction": 0.0, "path": name}
    counts = {"num_prompts": 24, "num_rollouts": 192}
    return CheckpointScreening(name=name, entropy_nats=entropy_nats, **{**rest, **counts, **more})


def around(value, width, high=math.inf):
    return Interval(max(0.0, value - width), min(high, value + width))


def scores(depth, rng):
    """Deeper: a higher pass@1, spread less over the prompts."""
    rates = [
        round(16 * min(1.0, max(0.0, rng.gauss(0.15 + 0.4 * depth, 0.1 + 0.3 * depth)))) / 16
        for _ in range(24)
    ]
    mean = sum(rates) / len(rates)
    parts = [degenerate_fraction(rate, 8) for rate in rates]
    wrong = sum(part.all_wrong for part in parts) / len(parts)
    right = sum(part.all_right for part in parts) / len(parts)
    at_k = {k: sum(1 - (1 - r) ** k for r in rates) / len(rates) for k in KS}
    intervals = {f"pass_at_{k}": around(value, 0.1, 1.0) for k, value in at_k.items()}
    return intervals | {"degenerate_fraction": around(wrong + right, 0.08, 1.0)}, {
        "num_scored_prompts": 24,
        "pass_at_1": mean,
        "pass_at_k": at_k,
        "degenerate_fraction": wrong + right,
        "degenerate_all_wrong": wrong,
        "degenerate_all_right": right,
        "outcome_degenerate_fraction": 0.1 * wrong,
        "within_group_variance": sum(r * (1 - r) for r in rates) / len(rates) * 7 / 8,
        "p_hat_over_p_star": mean / p_star(8),
        "mean_reward": mean,
        "greedy_pass_at_1": min(1.0, mean + 0.05),
        "degenerate_predicted": degenerate_fraction(mean, 8).total,
        "degenerate_predicted_all_wrong": degenerate_fraction(mean, 8).all_wrong,
        "degenerate_predicted_all_right": degenerate_fraction(mean, 8).all_right,
        "per_prompt_pass_rates": tuple(rates),
    }


def prompt_results(rates, entropy):
    return PromptResults(
        prompt_indices=tuple(range(24)),
        num_samples=(16,) * 24,
        num_tokens=tuple(1280 + i for i in range(24)),
        entropy_sums=tuple(entropy * (1280 + i + 40 * (i % 3)) for i in range(24)),
        num_passed=tuple(None if rate is None else round(16 * rate) for rate in rates),
    )


def examples(entropy, rng, *, scored, text=None):
    found = []
    for prompt in range(2):
        for sample in range(3):
            steps = rng.randint(2, 3 + int(20 * entropy))
            words = " ".join(f"{a} + {a + 4} = {2 * a + 4}," for a in range(sample, sample + steps))
            found.append(
                ExampleRollout(
                    prompt_index=prompt,
                    sample_index=sample,
                    prompt=f"user: What is {prompt + 3} + 14 + 25? Show your work.",
                    text=text or f"We add the terms.\n{words}\n#### {prompt + 42}",
                    num_tokens=7 * steps,
                    entropy_nats=entropy,
                    reward=float(sample == 0) if scored else None,
                    truncated=sample == 2,
                )
            )
    return tuple(found)


def checkpoint(name, depth, *, scored=True, text=None, seed=0):
    rng = random.Random(seed)
    entropy = 0.6 * 0.06**depth
    verdict = "ready" if entropy > 0.22 else "undecided" if entropy > 0.16 else "at risk"
    verdict = "collapsed" if entropy < 0.08 else verdict
    flagged = verdict in ("at risk", "collapsed")
    intervals, measures = scores(depth, rng) if scored else ({}, {})
    edges = tuple(i * 0.125 for i in range(25))
    counts = tuple(int(4000 * math.exp(-edge / max(entropy, 0.02))) for edge in edges[:-1])
    return CheckpointScreening(
        name=name,
        path=f"runs/sft/{name}",
        num_prompts=24,
        num_rollouts=384,
        entropy_nats=entropy,
        unique_fraction=min(1.0, 0.2 + entropy),
        mean_tokens=80.5,
        truncated_fraction=0.05,
        intervals={"entropy_nats": around(entropy, 0.15 * entropy), **intervals},
        verdict=verdict,
        entropy_sequence_mean=entropy,
        entropy_sequence_p10=entropy / 3,
        self_bleu=1 - entropy / 2,
        repetition=0.02,
        token_entropy_histogram=Histogram(edges, counts),
        prompt_results=prompt_results(measures.get("per_prompt_pass_rates", [None] * 24), entropy),
        held_out_loss=1.2 + depth,
        kl_to_base=0.3 * depth,
        examples=(shown := examples(entropy, rng, scored=scored, text=text)),
        junk_fraction=0.02,
        degenerate_text={"loop": 0.02, "empty thought": 0.01},
        degenerate_examples=(DegenerateExample("loop", shown[0]),),
        sequential=SequentialRecord("above", 3, 384, 144, entropy - 0.1, entropy + 0.1, 0.05),
        samples_saved=240,
        flagged=flagged,
        reasons=(f"mean rollout entropy {entropy:.3f} nats is below tau_H = 0.18",)
        if flagged
        else (),
        notes=("a pickle of 5 % was cut off",),
        runtime_s=12.3,
        **measures,
    )


def gates(rows):
    return tuple(
        GateResult(
            "min_pass_at 16:0.6",
            row.name,
            "pass_at_16",
            row.pass_at_k[16],
            row.intervals["pass_at_16"],
            0.6,
            row.pass_at_k[16] >= 0.6,
            False,
        )
        for row in rows
    )


def report(count=7, *, scored=True, long_names=False, text=None, name=None):
    names = [
        f"qwen2.5-coder-3b-instruct-entropy-bonus-lam-0.05/seed-{i % 3}/checkpoint-{100 * i}"
        if long_names
        else f"ce/checkpoint-{100 * i}"
        for i in range(1, count + 1)
    ]
    names[0] = name or names[0]
    rows = tuple(
        checkpoint(found, i / max(1, count - 1), scored=scored, text=text, seed=i)
        for i, found in enumerate(names)
    )
    advice = Recommendation(
        name=names[0],
        reason="the fewest degenerate groups, and the highest pass@16, of the checkpoints "
        "whose entropy lies above tau_H",
        highest_pass_at_1=names[-1] if scored else None,
        cost="0.31 more of its groups would be degenerate and its pass@16 is 0.12 lower"
        if scored and count > 1
        else "",
        predictors={"entropy": names[0], "pass@1": names[-1]},
        disagreements=(f"held-out loss would choose {names[count // 2]}",) if count > 1 else (),
    )
    correlations = tuple(
        PredictorCorrelation(predictor, rho, 0.19, "exact", 5)
        for predictor, rho in (("entropy_nats", 0.7), ("pass_at_1", -0.9))
    )
    calibration = Calibration(5, correlations, 0.16, 0.7, 0.0, 0.2, "fitted on five checkpoints")
    texts = [f"{text or 'user: What is'} {i} + 14?" for i in range(24)]
    told = settings(scored=scored)
    return ScreeningReport(
        rows,
        told,
        advice,
        calibration if count > 1 else None,
        gates=gates(rows) if scored else (),
        comparisons=tuple(
            compare_checkpoints(rows[0], row, told, prompt_texts=texts) for row in rows[1:]
        ),
    )
