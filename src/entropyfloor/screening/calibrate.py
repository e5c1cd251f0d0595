"""Fit tau_H on a user's own echelon: entropies before RL, scores after it.

``outcomes.csv`` has the columns ``checkpoint`` and ``score`` (after RL, more is better). It may
bring measures of its own (``entropy_nats``, ``pass_at_1``, ...), which go before those of a
screening; checkpoints are matched by name.

A checkpoint is *good* if its score reaches the cut: the midpoint between the two scores that lie
furthest apart among neighbours in order, which needs no choice of the user's (or a cut that is
given). tau_H is the threshold between two neighbouring entropies with the fewest checkpoints on the
wrong side; of equally good ones the widest gap, and its midpoint. Leave-one-out fits it on all but
one and judges that one: with few checkpoints that error is the one to believe.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from entropyfloor.screening.conclude import LESS_IS_BETTER, predictor_values
from entropyfloor.screening.report import Calibration, PredictorCorrelation, ScreeningReport
from entropyfloor.stats.rank_correlation import spearman, spearman_test

# Five can reach p = 1/60 at best; a threshold on fewer is one on noise (our choice).
FEWEST_CHECKPOINTS = 5


def read_outcomes(path: str | Path) -> dict[str, dict[str, float]]:
    """Checkpoint -> numbers by column name, ``score`` among them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column, a checkpoint twice, or a cell that is no finite number.

    """
    try:
        return _read_outcomes(path)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); save it as comma-separated UTF-8"
        ) from error


def _read_outcomes(path: str | Path) -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        missing = {"checkpoint", "score"} - set(reader.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path} has no column {' and '.join(sorted(missing))}; it needs the header "
                "checkpoint,score and may have more, such as entropy_nats"
            )
        for line, row in enumerate(reader, start=2):
            name = (row.pop("checkpoint") or "").strip()
            if not name or name in rows:
                raise ValueError(
                    f"{path}, line {line}: "
                    + (f"checkpoint {name!r} was there before" if name else "no checkpoint's name")
                )
            cells = {k: v for k, v in row.items() if k is not None and v is not None and v.strip()}
            try:
                numbers = {column: float(cell) for column, cell in cells.items()}
            except ValueError as error:
                raise ValueError(f"{path}, line {line} ({name}): {error}") from error
            if "score" not in numbers or not all(map(math.isfinite, numbers.values())):
                raise ValueError(
                    f"{path}, line {line} ({name}): a score is needed, and finite numbers only"
                )
            rows[name] = numbers
    return rows


def calibrate(
    outcomes: dict[str, dict[str, float]],
    report: ScreeningReport | None = None,
    *,
    outcome_cut: float | None = None,
) -> Calibration:
    """Correlate every predictor with the outcome and fit tau_H.

    Args:
        outcomes: from :func:`read_outcomes`.
        report: a screening whose checkpoints are matched by name; not needed where ``outcomes``
            has ``entropy_nats``.
        outcome_cut: a checkpoint is good if its score is at least this.

    Raises:
        ValueError: no checkpoint has both an entropy and a score.

    """
    rows = {name: dict(numbers) for name, numbers in outcomes.items()}
    unknown: list[str] = []
    if report is not None:
        known = {c.name: predictor_values(c) for c in report.checkpoints}
        for name, numbers in rows.items():
            if name not in known and "entropy_nats" not in numbers:
                unknown.append(name)
            for predictor, value in known.get(name, {}).items():
                sign = -1.0 if predictor in LESS_IS_BETTER else 1.0
                numbers.setdefault(predictor, sign * value)
    used = [numbers for numbers in rows.values() if "entropy_nats" in numbers]
    if not used:
        names = ", ".join(c.name for c in report.checkpoints) if report else "none"
        raise ValueError(
            "no checkpoint has both an entropy and a score: names in the CSV are "
            f"{', '.join(rows) or 'none'}, screened were {names}. Use the screening's names, or "
            "add a column entropy_nats"
        )
    scores = [numbers["score"] for numbers in used]
    predictors = sorted(set().union(*used) - {"score"})
    correlations = [
        correlation
        for predictor in predictors
        if (correlation := _correlation(predictor, [n for n in used if predictor in n])) is not None
    ]
    words = [f"not screened and without entropy_nats: {', '.join(unknown)}"] if unknown else []
    short = _too_little(scores)
    cut = _natural_cut(scores) if outcome_cut is None and not short else outcome_cut
    good = [] if cut is None else [score >= cut for score in scores]
    if not short and len(set(good)) < 2:
        short = f"every score lies on the same side of {cut:g}"
    unfitted = Calibration(len(used), tuple(correlations), None, cut, None, None, "; ".join(words))
    entropies = [numbers["entropy_nats"] for numbers in used]
    if short:
        short = f"too little data to fit tau_H: {short}"
    elif not 0.0 < (tau_h := fit_threshold(entropies, good)) < math.inf:
        short = "no entropy separates good from bad better than calling all the same"
    if short:
        return replace(unfitted, message="; ".join([short, *words]))
    errors = sum((h >= tau_h) != g for h, g in zip(entropies, good, strict=True))
    left_out = 0
    for index in range(len(used)):
        others = [i for i in range(len(used)) if i != index]
        fitted = fit_threshold([entropies[i] for i in others], [good[i] for i in others])
        left_out += (entropies[index] >= fitted) != good[index]
    fit = (
        f"tau_H = {tau_h:.3f} nats separates scores at {cut:.3f} with {errors} of {len(used)} on "
        f"the wrong side ({left_out} of {len(used)} when each is left out of the fit)"
    )
    return replace(
        unfitted,
        tau_h=tau_h,
        training_error=errors / len(used),
        leave_one_out_error=left_out / len(used),
        message="; ".join([fit, *words]),
    )


def fit_threshold(entropies: Sequence[float], good: Sequence[bool]) -> float:
    """Threshold with the fewest checkpoints on the wrong side; good ones belong at or above it.

    0 where everything is good, infinity where nothing is: one side says nothing about the other.
    """
    ordered = sorted(set(entropies))
    gaps = [(0.5 * (low + high), high - low) for low, high in pairwise(ordered)]

    def quality(candidate: tuple[float, float]) -> tuple[int, float]:
        threshold, width = candidate
        wrong = sum((h >= threshold) != g for h, g in zip(entropies, good, strict=True))
        return wrong, -width

    return min([(0.0, 0.0), *gaps, (math.inf, 0.0)], key=quality)[0]


def _natural_cut(scores: Sequence[float]) -> float:
    ordered = sorted(scores)
    low, high = max(pairwise(ordered), key=lambda pair: pair[1] - pair[0])
    return 0.5 * (low + high)


def _too_little(scores: Sequence[float]) -> str:
    if len(scores) < FEWEST_CHECKPOINTS:
        return (
            f"{len(scores)} checkpoints with an entropy and a score, at least "
            f"{FEWEST_CHECKPOINTS} are needed"
        )
    return "all scores are equal" if len(set(scores)) < 2 else ""


def _correlation(predictor: str, rows: Sequence[dict[str, float]]) -> PredictorCorrelation | None:
    values = [row[predictor] for row in rows]
    scores = [row["score"] for row in rows]
    if len(rows) < 3 or len(set(values)) < 2 or len(set(scores)) < 2:
        return None
    p_value, method = spearman_test(values, scores)
    return PredictorCorrelation(predictor, spearman(values, scores), p_value, method, len(rows))
