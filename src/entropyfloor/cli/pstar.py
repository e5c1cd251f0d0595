"""``entropyfloor pstar G...``: the majority-degeneration threshold p*(g) of group sizes."""

import argparse
from collections.abc import Sequence

from entropyfloor.stats.groups import p_star


def main(argv: Sequence[str]) -> int:
    """Print ``p*(g) = 1 - 2^(-1/g)``, one line per group size. Returns 0."""
    parser = argparse.ArgumentParser(
        prog="entropyfloor pstar",
        description="p*(g) = 1 - 2^(-1/g): a prompt whose pass rate is below it gives "
        "an all-wrong group of g rollouts more often than not.",
    )
    parser.add_argument(
        "group_size", nargs="+", type=int, metavar="G", help="rollouts per prompt in RL"
    )
    arguments = parser.parse_args(argv)
    thresholds = [(size, p_star(size)) for size in arguments.group_size]
    for size, threshold in thresholds:
        print(f"p*({size}) = {threshold:.4f}")
    return 0
