"""What draws rollouts: transformers' ``generate``, or vLLM where it is installed.

Whatever draws them, entropies are exact, at temperature 1 and over the whole vocabulary: recorded
from the logits of each step (transformers), or computed by reading the finished rollout once more
(vLLM, which hands out the largest log-probabilities only).
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.preparation import Task
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.rollouts import Rollout, generate_rollouts

ENGINES = ("transformers", "vllm", "auto")


class Engine(Protocol):
    """One checkpoint, ready to generate."""

    def generate(
        self,
        encoded: Sequence[Sequence[int]],
        requests: Sequence[tuple[int, int]],
        settings: Sampling,
        processes: Processes,
    ) -> Iterator[list[Rollout]]:
        """Generate this process's share of the requested rollouts, a batch at a time.

        Args:
            encoded: token ids per prompt.
            requests: (prompt index, sample index) of every rollout wanted.
            settings: sampling.
            processes: among which the batches are shared out.

        """


class TransformersEngine:
    """transformers' ``generate``: see ``entropyfloor.rollouts.rollouts``."""

    def __init__(self, checkpoint: LoadedCheckpoint) -> None:
        self._checkpoint = checkpoint

    def generate(
        self,
        encoded: Sequence[Sequence[int]],
        requests: Sequence[tuple[int, int]],
        settings: Sampling,
        processes: Processes,
    ) -> Iterator[list[Rollout]]:
        """See :class:`Engine`."""
        return generate_rollouts(self._checkpoint, encoded, requests, settings, processes=processes)


def choose_engine(
    engine: str,
    *,
    sources: Sequence[CheckpointSource],
    device: torch.device,
    processes: Processes,
) -> str:
    """``transformers`` or ``vllm``; ``auto`` takes vLLM where it can do this screening on a GPU.

    Raises:
        ValueError: unknown engine, or vLLM where it is not installed or cannot do it.

    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; give one of {', '.join(ENGINES)}")
    if engine == "transformers":
        return engine
    against = _against_vllm(sources, device, processes)
    if engine == "auto":
        return "transformers" if against or device.type != "cuda" else "vllm"
    if against:
        raise ValueError(f"the engine vllm cannot be used: {against}, or use transformers")
    return engine


def _against_vllm(
    sources: Sequence[CheckpointSource], device: torch.device, processes: Processes
) -> str:
    """Why vLLM cannot do it, and what to do; empty if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed; pip install vllm"
    adapters = [source.path for source in sources if source.base is not None]
    if adapters:
        return (
            f"{adapters[0]} is an adapter; merge it into its base first (peft: merge_and_unload, "
            "then save_pretrained)"
        )
    if processes.count > 1:
        return f"it runs in one process, and {processes.count} were started; start one"
    if device.index not in (None, 0):
        return (
            f"it takes the first GPU that it sees, not {device}; set CUDA_VISIBLE_DEVICES="
            f"{device.index}"
        )
    return ""


def ready_engine(
    name: str,
    task: Task,
    checkpoint: Callable[[], LoadedCheckpoint],
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> Engine:
    """Make the engine that :func:`choose_engine` chose ready to draw from one checkpoint."""
    if name == "transformers":
        return TransformersEngine(checkpoint())
    from entropyfloor.rollouts.vllm_engine import VLLMEngine

    return VLLMEngine(
        task.source,
        checkpoint(),
        context_length=max(map(len, task.encoded)) + max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
