"""The processes of one screening, as ``accelerate launch`` or torchrun starts them.

Batches are formed as one process would form them and dealt out in turn. A batch then has the same
rows however many processes there are, and its numbers are the same to the last bit.

Messages go through gloo on the CPU, which needs no GPU and waits for the slowest; NCCL would give
up after ten minutes.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=7)  # one process may draw the last, longest batch of a large screening

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """One process among those of the screening; alone by default.

    ``rank`` 0 is the main one, which measures, writes the report and prints; ``count`` is how many
    there are; ``local_rank`` the number of this one, and of its GPU, on its machine; ``group``
    torch's handle of the gloo group.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    group: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, items: Iterable[T]) -> Iterator[T]:
        """Every ``count``-th item, from number ``rank`` on: this process's part of the work."""
        return islice(items, self.rank, None, self.count)

    def to_main(self, value: T) -> list[T]:
        """Everyone's value by rank on the main process; nothing on the others."""
        if self.count == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.count if self.main else None
        dist.gather_object(value, gathered, dst=0, group=self.group)
        return gathered or []

    def from_main(self, value: T) -> T:
        """Return the main process's value on every process."""
        if self.count == 1:
            return value
        held: list[Any] = [value if self.main else None]
        dist.broadcast_object_list(held, src=0, group=self.group)
        return held[0]

    def local_device(self, device: torch.device) -> torch.device:
        """One GPU for each process of a machine, where a GPU was not chosen by number."""
        if self.count == 1 or device.type != "cuda" or device.index is not None:
            return device
        if self.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}; start as many processes as there are GPUs, or give "
                "device cpu"
            )
        return torch.device("cuda", self.local_rank)


def join_processes() -> Processes:
    """Meet the other processes that the launcher has started; alone if it started none.

    Reads what ``accelerate launch`` and torchrun put into the environment (``WORLD_SIZE``,
    ``RANK``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``). Every process must call it.
    """
    if not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Processes()
        dist.init_process_group("gloo", timeout=_PATIENCE)
    if dist.get_world_size() == 1:
        return Processes()
    return Processes(
        rank=dist.get_rank(),
        count=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        group=dist.new_group(backend="gloo", timeout=_PATIENCE),
    )
