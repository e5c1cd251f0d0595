"""From what was measured at every checkpoint to curves, estimates, durations and words."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from entropyfloor.coupling.divergence import Identity, PairSums, identity
from entropyfloor.coupling.durations import (
    FEWEST_STEPS,
    Duration,
    ModelFit,
    PLEstimate,
    PromptCurves,
    estimate_pl,
    fit_model,
    measured_duration,
    modelled_duration,
    pl_duration,
)
from entropyfloor.coupling.measure import Measurement
from entropyfloor.coupling.preparation import Run
from entropyfloor.coupling.report import CheckpointCoupling, CouplingReport, DurationAnswer
from entropyfloor.screening.measure import Estimates


def summarise(
    run: Run,
    measured: Sequence[Measurement],
    *,
    tokens: Sequence[int],
    weight: float,
    seed: int,
    settings: dict[str, Any],
) -> CouplingReport:
    """Compute everything that needs no model.

    Args:
        run: checkpoints and steps.
        measured: at each of them.
        tokens: of each demonstration.
        weight: reward per nat per token.
        seed: of the bootstrap.
        settings: for the record.

    """
    curves = PromptCurves(
        np.asarray(run.steps),
        np.array([[float(np.mean(group)) for group in one.rewards.values()] for one in measured]),
        np.array([one.losses for one in measured]),
        np.asarray(tokens, dtype=float),
    )
    checkpoints = tuple(
        _checkpoint(run, index, curves, one, seed) for index, one in enumerate(measured)
    )
    pl = _pl(checkpoints)
    fit = None
    if run.order == "sft-rl" and len(run.steps) >= FEWEST_STEPS:
        fit = fit_model(curves.steps, *curves.means())
    questions = [("best", weight), ("threshold", 1.0)]
    answers = [_answer(q, w, curves, run, pl, fit, seed) for q, w in questions]
    return CouplingReport(checkpoints, run.order, tuple(answers), pl, fit, settings)


def _checkpoint(
    run: Run, index: int, curves: PromptCurves, measured: Measurement, seed: int
) -> CheckpointCoupling:
    rewards, losses = curves.rewards, curves.losses
    tokens = curves.tokens.tolist()
    estimate, rise, gain = Estimates(seed), 0.0, 0.0
    sft_loss = estimate.ratio("sft_loss", losses[index].tolist(), tokens)
    mean_reward = estimate.ratio("mean_reward", rewards[index].tolist())
    if measured.pair:
        rise = estimate.ratio("loss_rise", (losses[index] - losses[0]).tolist(), tokens)
        gain = estimate.ratio("reward_gain", (rewards[index] - rewards[0]).tolist())
    kls = _kls(measured.pair, len(tokens))
    return CheckpointCoupling(
        name=run.sources[index].name,
        path=run.sources[index].path,
        step=run.steps[index],
        sft_loss=sft_loss,
        mean_reward=mean_reward,
        loss_rise=rise,
        reward_gain=gain,
        kl={name: estimate.ratio(name, *parts) for name, parts in kls.items()},
        identity=_identity(measured.pair, len(tokens), seed) if measured.pair else None,
        alignment=measured.alignment,
        intervals=estimate.intervals,
        notes=measured.notes,
        runtime_s=measured.runtime_s,
    )


def _identity(pair: dict[str, PairSums], rows: int, seed: int) -> Identity:
    demonstrations, samples = pair["demonstrations"], pair["own"]
    count = samples.by_prompt(np.ones(len(samples.prompts)), rows)
    return identity(
        demonstrations.log_ratios.tolist(),
        demonstrations.forward,
        (samples.by_prompt(samples.forward, rows) / count).tolist(),
        (samples.by_prompt(samples.log_ratios, rows) / count).tolist(),
        seed=seed,
    )


def _kls(pair: dict[str, PairSums], rows: int) -> dict[str, tuple[list[float], list[float]]]:
    """Numerators and tokens by prompt of every KL per token."""
    kls = {}
    for place, sums in pair.items():
        count = max(sums.prompts) + 1 if place == "rollouts" else rows
        tokens = sums.by_prompt(sums.tokens, count).tolist()
        for direction in ("forward", "reverse"):
            if (direction, place) != ("forward", "rollouts"):  # no question is answered by it
                values = sums.by_prompt(getattr(sums, direction), count).tolist()
                kls[f"{direction}_{place}"] = (values, tokens)
    return kls


def _pl(checkpoints: Sequence[CheckpointCoupling]) -> dict[str, PLEstimate]:
    """Estimates along the run; gradients by other parameters than the last's do not count."""
    last = checkpoints[-1].alignment
    kind = None if last is None else last.parameters
    agreements = [
        c.alignment.whole.agreement if c.alignment and c.alignment.parameters == kind else None
        for c in checkpoints
    ]
    return {
        "sft_loss": estimate_pl(
            [c.sft_loss for c in checkpoints],
            [None if a is None else a.sft_squared_norm for a in agreements],
        ),
        "reward": estimate_pl(
            [-c.mean_reward for c in checkpoints],
            [None if a is None else a.rl_squared_norm for a in agreements],
        ),
    }


def _answer(
    question: str,
    weight: float,
    curves: PromptCurves,
    run: Run,
    pl: dict[str, PLEstimate],
    fit: ModelFit | None,
    seed: int,
) -> DurationAnswer:
    measured = measured_duration(curves, weight, seed=seed)
    if run.order != "sft-rl":
        return DurationAnswer(
            question, weight, measured, None, None, "the model is one of RL after SFT"
        )
    modelled = modelled_duration(curves, weight, seed=seed)
    by_pl, pl_words = _by_pl(weight, curves, pl, fit, measured)
    words = "; ".join(w for w in (_compared(measured, modelled, run), pl_words) if w)
    return DurationAnswer(question, weight, measured, modelled, by_pl, words)


def _by_pl(
    weight: float,
    curves: PromptCurves,
    pl: dict[str, PLEstimate],
    fit: ModelFit | None,
    measured: Duration,
) -> tuple[float | None, str]:
    mu_loss, mu_reward = pl["sft_loss"].mu, pl["reward"].mu
    if mu_loss is None or mu_reward is None:
        return None, "no PL constants: gradients were not measured, or are lost in noise"
    if fit is None or not fit.saturates or fit.reward_room <= 0.0:
        return None, "the PL constants give no step without a reward that rises and levels off"
    if curves.means()[1][-1] <= 0.0:
        return None, (
            "the PL constants give no step: they presume a start at an SFT optimum, and the SFT "
            "loss fell"
        )
    step = float(curves.steps[0]) + pl_duration(fit.rate, mu_loss, mu_reward, weight)
    last = float(curves.steps[-1])
    if step > last:
        return None, f"the PL constants would go on after the last measured step, {last:g}"
    around = measured.interval
    if around is not None and not around.low <= step <= around.high:
        return step, (
            f"the PL constants' step {step:.0f} lies outside the measured interval: what they "
            "presume (an SFT optimum at the start, a straight path) does not describe this run"
        )
    return step, ""


def _compared(measured: Duration, modelled: Duration, run: Run) -> str:
    assert measured.step is not None
    if modelled.step is None:
        return f"no step from the model: {modelled.words}"
    theirs, ours = modelled.interval, measured.interval
    apart = theirs and ours and (theirs.low > ours.high or ours.low > theirs.high)
    difference = abs(modelled.step - measured.step)
    notes = f" ({modelled.words})" if modelled.words else ""
    if apart:
        return (
            f"model and measurement differ: {modelled.step:.0f} against {measured.step:.0f}, with "
            f"intervals that do not meet; the measurement counts, the model does not describe this "
            f"run{notes}"
        )
    if difference > float(np.diff(run.steps).max()):
        return (
            f"model and measurement differ by {difference:.0f} {run.step_unit}s, more than "
            f"checkpoints are apart, but their intervals meet{notes}"
        )
    return f"model and measurement agree to the distance of checkpoints{notes}"
