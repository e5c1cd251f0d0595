"""What measures and outcomes of an echelon are called, and how numbers of several seeds read."""

from collections.abc import Iterable

from entropyfloor.experiments.echelon.ladder_course import Spread

_TITLES = {
    "entropy_nats": "entropy",
    "degenerate_fraction": "degenerate fraction",
    "p_hat_over_p_star": "p̂/p*",
    "unique_fraction": "unique",
    "held_out_loss": "held-out loss",
}


def title(measure: str) -> str:
    """``pass_at_10`` -> ``pass@10``; ``entropy_nats`` -> ``entropy``."""
    if measure.startswith("pass_at_"):
        return f"pass@{measure.removeprefix('pass_at_')}"
    return _TITLES[measure]


def outcome_words(outcome: str) -> str:
    """``peak_pass_at_10`` -> ``peak pass@10 after RL``."""
    when, measure = outcome.split("_", 1)
    return f"{when} {title(measure)} after RL" if when == "peak" else f"{_last(measure)}"


def _last(measure: str) -> str:
    return f"{title(measure)} after the last step of RL"


def seed_words(values: Iterable[float], *, digits: int = 3, sign: bool = False) -> str:
    """The numbers of up to five seeds, or their range; nothing for a single one."""
    known = list(values)
    form = f"{'+' if sign else ''}.{digits}f"
    if len(known) < 2:
        return ""
    if len(known) <= 5:
        return " ".join(_short(f"{number:{form}}") for number in known)
    return f"{_short(f'{min(known):{form}}')} – {_short(f'{max(known):{form}}')}"


def spread_text(spread: Spread | None, *, digits: int = 3) -> str:
    """``0.786 (.771 .786 .801)``: the mean, and each seed; a dash for nothing."""
    if spread is None:
        return "–"
    seeds = seed_words(spread.by_seed.values(), digits=digits)
    return f"{spread.mean:.{digits}f}" + (f" ({seeds})" if seeds else "")


def _short(number: str) -> str:
    """Without the zero before the point, so that three seeds fit into a cell."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number
