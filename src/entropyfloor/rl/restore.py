"""Which checkpoint to go back to when a run has collapsed, and how: by transformers' own loader.

``Trainer`` loads ``state.best_model_checkpoint`` when training ends and ``load_best_model_at_end``
is set, whatever the model is wrapped in (PEFT, FSDP, DeepSpeed), and never lets
``save_total_limit`` delete it. Both are used here.
"""

from pathlib import Path

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from entropyfloor.rl.collapse_rule import CollapseRule


class Restorer:
    """Keeps a checkpoint from rotation, and has the trainer end with it."""

    def __init__(self) -> None:
        self._chosen: str | None = None
        self._loaded_best: bool | None = None  # what load_best_model_at_end was

    @staticmethod
    def check(args: TrainingArguments, rule: CollapseRule) -> None:
        """Raise ValueError if no checkpoint that can be loaded will be there at the decision."""
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedType

        sharded = {DistributedType.FSDP, DistributedType.DEEPSPEED}
        if args.save_only_model and AcceleratorState().distributed_type in sharded:
            raise ValueError(
                "policy 'stop-and-restore' under FSDP or DeepSpeed loads the sharded state, of "
                "which save_only_model=True leaves nothing; set it to False, or use policy 'stop'"
            )
        strategy, every = args.save_strategy, args.save_steps
        never = strategy == SaveStrategy.NO
        late = strategy == SaveStrategy.STEPS and every >= rule.late_step
        if never or late:
            setting = "save_strategy='no'" if never else f"save_steps={every:g}"
            raise ValueError(
                f"policy 'stop-and-restore' needs a checkpoint from before step {rule.late_step}, "
                f"and {setting} saves none: set save_strategy='steps' and save_steps to "
                f"{max(1, rule.late_step // 3)} or so, or use policy 'stop'"
            )

    def keep(self, args: TrainingArguments, state: TrainerState) -> None:
        """Keep the checkpoint of this step from rotation, where no metric names a best one."""
        if not _tracks_best(args):
            state.best_model_checkpoint = _path(args, state.global_step)

    def choose(
        self, args: TrainingArguments, state: TrainerState, healthy_step: int | None
    ) -> str | None:
        """Have the trainer end with the checkpoint to restore.

        Args:
            args: of the run.
            state: of the run.
            healthy_step: of the last checkpoint from before the collapse.

        Returns:
            Its path; None, and the model stays as it is, if there is none on disk.

        """
        candidates = []
        if healthy_step is not None:
            best = state.best_model_checkpoint
            if _tracks_best(args) and best and (state.best_global_step or 0) <= healthy_step:
                candidates.append(best)
            candidates.append(_path(args, healthy_step))
        self._chosen = next((path for path in candidates if Path(path).is_dir()), None)
        self.hold(args, state)
        return self._chosen

    def hold(self, args: TrainingArguments, state: TrainerState) -> None:
        """Name the chosen checkpoint as the one to end with, if one was chosen."""
        if self._chosen is not None:
            if self._loaded_best is None:
                self._loaded_best = bool(args.load_best_model_at_end)
            args.load_best_model_at_end = True
            state.best_model_checkpoint = self._chosen

    def finish(self, args: TrainingArguments) -> None:
        """Put the arguments back as they were."""
        if self._loaded_best is not None:
            args.load_best_model_at_end = self._loaded_best

    def release(self, args: TrainingArguments, state: TrainerState) -> None:
        """Let rotation have what :meth:`keep` kept: the run has not collapsed."""
        if not _tracks_best(args):
            state.best_model_checkpoint = None


def _path(args: TrainingArguments, step: int) -> str:
    return str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}")


def _tracks_best(args: TrainingArguments) -> bool:
    return bool(args.load_best_model_at_end or args.metric_for_best_model)
