"""The task `small_sums`: sums of two-digit numbers mod 100, the answer's digits reversed.

    prompt      "47+85="        completion  "23"         (47 + 85 = 132 ≡ 32, written backwards)

Reversed, the digit that is drawn first needs no carry. Every number has two digits, so that all
prompts have six characters and all answers two.

The problems are split four ways, disjoint even when the terms are swapped:

    pretraining      what the base model has read, most answers random
    demonstrations   for SFT, all answers right
    rl_prompts       for GRPO
    test             for screening

Rows are plain text in trl's prompt-completion format, with the answer once more in the column
``answer``, where the reward ``exact_match`` looks for it.
"""

import random
from dataclasses import dataclass

CHARACTERS = "0123456789+="
MAX_NEW_TOKENS = 4  # two digits, end of sequence, and one for a checkpoint that rambles
_NUMBERS = 100

Row = dict[str, str]


@dataclass(frozen=True)
class ModularSums:
    """Five disjoint sets of rows with ``prompt``, ``completion`` and ``answer``."""

    pretraining: tuple[Row, ...]  # the column completion is random in most rows
    demonstrations: tuple[Row, ...]  # the column completion is the answer, as in the next three
    rl_prompts: tuple[Row, ...]  # GRPO's prompts
    test: tuple[Row, ...]  # held out from all training
    validation: tuple[Row, ...]  # likewise, for an "auto" floor


def modular_sums(
    *,
    seed: int,
    pretraining: int = 7000,
    demonstrations: int = 100,
    rl_prompts: int = 600,
    test: int = 400,
    validation: int = 0,
    random_share: float = 0.6,
) -> ModularSums:
    """Draw a task.

    The test problems depend on the seed and on ``test`` only, then come the prompts for RL, so that
    runs with other amounts of data before them are compared on the same problems.

    Args:
        seed: of the split and of the random answers.
        pretraining: problems that the base model reads.
        demonstrations: problems with right answers for SFT.
        rl_prompts: problems for GRPO.
        test: held-out problems.
        validation: problems with right answers that an "auto" floor is read off.
        random_share: share of pretraining answers that are drawn uniformly from 00 to 99.

    Raises:
        ValueError: a count below 1 (of validation 0), a share outside [0, 1], or more problems
            than exist.

    """
    counts = {"test": test, "rl_prompts": rl_prompts, "demonstrations": demonstrations}
    counts["validation"] = validation
    for name, count in {**counts, "pretraining": pretraining}.items():
        least = 0 if name == "validation" else 1
        if count < least:
            raise ValueError(f"{name} must be at least {least}; got {count}")
    if not 0.0 <= random_share <= 1.0:
        raise ValueError(f"random_share must lie in [0, 1]; got {random_share}")
    rng = random.Random(f"{seed}:small task")
    pairs = [(a, b) for a in range(_NUMBERS) for b in range(a, _NUMBERS)]
    rng.shuffle(pairs)
    num_chosen = sum(counts.values())
    # Of the pairs that are left, the base model may read both orders.
    both = [order for a, b in pairs[num_chosen:] for order in dict.fromkeys([(a, b), (b, a)])]
    if pretraining > len(both):
        raise ValueError(
            f"{num_chosen} problems for test, RL and demonstrations leave {len(both)} of the "
            f"{_NUMBERS**2} sums to pretrain on; {pretraining} were asked for: ask for fewer"
        )
    chosen = iter(pairs[:num_chosen])
    parts = {
        name: tuple(_row(*rng.sample(next(chosen), 2)) for _ in range(count))
        for name, count in counts.items()
    }
    rng.shuffle(both)
    noisy = tuple(_noisy(_row(a, b), random_share, rng) for a, b in both[:pretraining])
    return ModularSums(pretraining=noisy, **parts)


def reversed_sum(a: int, b: int) -> str:
    """``(47, 85)`` -> ``"23"``."""
    return f"{(a + b) % _NUMBERS:02d}"[::-1]


def _row(a: int, b: int) -> Row:
    answer = reversed_sum(a, b)
    return {"prompt": f"{a:02d}+{b:02d}=", "completion": answer, "answer": answer}


def _noisy(row: Row, share: float, rng: random.Random) -> Row:
    if rng.random() >= share:
        return row
    return {**row, "completion": f"{rng.randrange(_NUMBERS):02d}"}
