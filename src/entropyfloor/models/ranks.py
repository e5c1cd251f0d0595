"""Numbers of all processes of a run, by torch.distributed alone; one process needs none of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_processes() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed(values: Tensor) -> Tensor:
    """``values`` added up over processes, on each of them; a new tensor."""
    total = values.clone()
    if rank_and_processes()[1] > 1:
        dist.all_reduce(total)
    return total


def gathered(values: list[float]) -> list[float]:
    """The lists of all processes, one after the other, on each of them."""
    processes = rank_and_processes()[1]
    if processes == 1:
        return values
    lists: list[Any] = [None] * processes
    dist.all_gather_object(lists, values)
    return [value for one in lists for value in one]


def largest(value: float, device: torch.device) -> float:
    """The largest ``value`` of any process: what they decide from clocks is one thing.

    Args:
        value: of this process.
        device: of the model, which the processes' backend can reduce on.

    """
    if rank_and_processes()[1] == 1:
        return value
    largest = torch.tensor([value], device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return float(largest)


def wide_dtype(device: torch.device) -> torch.dtype:
    """What sums over long runs or a vocabulary need: fp64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64
