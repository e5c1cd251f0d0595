"""What measures and outcomes of an echelon are called, and how its numbers read."""

from collections.abc import Iterable

_TITLES = {
    "entropy_nats": "entropy",
    "degenerate_fraction": "degenerate fraction",
    "p_hat_over_p_star": "p̂/p*",
    "unique_fraction": "unique",
    "held_out_loss": "held-out loss",
}


def title(measure: str) -> str:
    """``pass_at_10`` -> ``pass@10``; ``peak_pass_at_10`` -> ``peak pass@10``."""
    when, _, k = measure.rpartition("pass_at_")
    return f"{when.replace('_', ' ')}pass@{k}" if k.isdecimal() else _TITLES[measure]


def outcome_words(outcome: str) -> str:
    """``peak_pass_at_10`` -> ``peak pass@10 after RL``."""
    return f"{title(outcome)} after RL"


def count(number: int, what: str) -> str:
    """``1 pair``, ``2 pairs``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def seed_words(values: Iterable[float | None], form: str = ".3f") -> str:
    """The numbers of up to five seeds, a dash for what is missing, or the range of more.

    Without the zero before the point, so that three seeds fit into a cell; nothing for one seed.
    """
    every = list(values)
    known = [number for number in every if number is not None]
    if len(every) < 2 or not known:
        return ""
    if len(every) <= 5:
        return " ".join("–" if n is None else _short(f"{n:{form}}") for n in every)
    return f"{_short(f'{min(known):{form}}')} – {_short(f'{max(known):{form}}')}"


def _short(number: str) -> str:
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number
