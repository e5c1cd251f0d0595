"""What every checkpoint is compared with: held-out completions and a base model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.preparation import Task
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rollout_store import RolloutStore, checkpoint_digest
from entropyfloor.rollouts.rollouts import Rollout
from entropyfloor.rollouts.teacher_forced import Completion, TokenSums, held_out_loss, kl_to_base


@dataclass
class Reference:
    """Held-out completions and base, the same for every checkpoint."""

    held_out: PromptSet | None  # rows with prompt and completion; None for no held-out loss
    base: CheckpointSource | None  # of the KL; None for none
    load: Callable[[CheckpointSource], LoadedCheckpoint]  # loads the base; it stays in memory
    processes: Processes = field(default_factory=Processes)  # share the work
    _base: LoadedCheckpoint | None = field(default=None, init=False)

    def sums(
        self,
        task: Task,
        checkpoint: Callable[[], LoadedCheckpoint],
        rollouts: Sequence[Rollout],
        store: RolloutStore,
    ) -> dict[str, TokenSums]:
        """Held-out loss and KLs of one checkpoint, from the store if they are there.

        Args:
            task: the checkpoint's, with its held-out completions.
            checkpoint: gives it, loaded.
            rollouts: those that are measured, on the main process; greedy ones do not count.
            store: keeps the result.

        """
        if self.held_out is None and self.base is None:
            return {}
        processes = self.processes
        completions = [
            Completion(r.prompt_index, tuple(task.encoded[r.prompt_index]), r.token_ids)
            for r in sorted(rollouts, key=lambda r: (r.prompt_index, r.sample_index))
            if not r.greedy
        ]
        key = self._key(len(completions))
        known = processes.from_main(store.read_sums(key) if processes.main else None)
        if known is not None:
            return known
        loaded = checkpoint()
        sums: dict[str, TokenSums] = {}
        prompts = 0 if self.held_out is None else len(self.held_out)
        if self.held_out is not None:
            sums["held_out_loss"] = held_out_loss(
                loaded, task.held_out, num_prompts=prompts, processes=processes
            )
        if self.base is not None:
            self._base = self._base or self.load(self.base)
            sums["kl_to_base"] = kl_to_base(
                loaded,
                self._base,
                processes.from_main(completions),
                num_prompts=len(task.encoded),
                processes=processes,
            )
            if self.held_out is not None:
                sums["held_out_kl_to_base"] = kl_to_base(
                    loaded, self._base, task.held_out, num_prompts=prompts, processes=processes
                )
        store.write_sums(sums, key)
        return sums

    def describe(self) -> dict[str, Any]:
        """What the report's settings say about it."""
        rows = self.held_out
        return {
            "base": None if self.base is None else self.base.path,
            "held_out": None
            if rows is None
            else {"source": rows.source, "count": len(rows), "digest": rows.full_digest},
        }

    def _key(self, num_rollouts: int) -> list[Any]:
        held_out = None if self.held_out is None else self.held_out.full_digest
        base = None if self.base is None else checkpoint_digest(self.base)
        return [held_out, base, num_rollouts]


def find_held_out(prompts: PromptSet, held_out: PromptSet | str | None) -> PromptSet | None:
    """Choose the rows for the held-out loss: those given, or prompts that all have a completion."""
    if isinstance(held_out, str):
        return load_prompts(held_out)
    if held_out is None and all(row.get("completion") for row in prompts.rows):
        return prompts
    return held_out
