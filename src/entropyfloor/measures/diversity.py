"""How different are the rollouts of one prompt from each other?"""

from collections.abc import Hashable, Sequence


def unique_fraction(completions: Sequence[Hashable]) -> float:
    """Distinct completions over all completions of one prompt, in (0, 1]; depends on how many were drawn."""
    if not completions:
        raise ValueError("the unique fraction of no completions is not defined")
    return len(set(completions)) / len(completions)
