"""The order in which prompts are visited: by seed and epoch alone, so that a resumed run keeps it.

The epoch is asked for, not set: accelerate does not reach a sampler below ``skip_first_batches``
with several processes, and a resumed run would visit an epoch in the order of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Every row once per epoch.

    Args:
        rows: how many there are.
        seed: of the order; None for that of the dataset.
        epoch: tells the current one, when an iteration begins.

    """

    def __init__(self, rows: int, *, seed: int | None, epoch: Callable[[], int]) -> None:
        self._rows, self._seed, self._epoch = rows, seed, epoch

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[int]:
        if self._seed is None:
            return iter(range(self._rows))
        order = np.random.default_rng((self._seed, self._epoch())).permutation(self._rows)
        return iter(order.tolist())
