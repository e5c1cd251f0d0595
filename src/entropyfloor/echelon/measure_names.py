"""What measures and outcomes of an echelon are called, and how numbers of several seeds read."""

from collections.abc import Iterable

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


def short_outcome(outcome: str) -> str:
    """``peak_pass_at_10`` -> ``peak pass@10``."""
    when, measure = outcome.split("_", 1)
    return f"{when} {title(measure)}"


def count(number: int, what: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def p_text(p_value: float) -> str:
    """``= 0.012``; below a thousandth no more than that."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"


def _last(measure: str) -> str:
    return f"{title(measure)} after the last step of RL"


def seed_words(values: Iterable[float | None], *, digits: int = 3, sign: bool = False) -> str:
    """The numbers of up to five seeds, a dash for what is missing, or the range of more.

    Nothing for a single seed.
    """
    every = list(values)
    known = [number for number in every if number is not None]
    form = f"{'+' if sign else ''}.{digits}f"
    if len(every) < 2 or not known:
        return ""
    if len(every) <= 5:
        return " ".join("–" if n is None else _short(f"{n:{form}}") for n in every)
    return f"{_short(f'{min(known):{form}}')} – {_short(f'{max(known):{form}}')}"


def _short(number: str) -> str:
    """Without the zero before the point, so that three seeds fit into a cell."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number
