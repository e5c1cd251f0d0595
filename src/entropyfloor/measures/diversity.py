"""How different the rollouts of one prompt are from each other."""

from collections.abc import Hashable, Sequence


def unique_fraction(completions: Sequence[Hashable]) -> float:
    """Distinct completions over all completions of one prompt, in (0, 1].

    It falls as more are drawn: compare values for the same number of completions only.
    """
    if not completions:
        raise ValueError("the unique fraction of no completions is not defined")
    return len(set(completions)) / len(completions)
