"""``EntropyFloorCallback``: our loss, and a floor under entropy, in any `transformers.Trainer`.

    head = patch_model(model, "sed")
    floor = EntropyFloorCallback(head, entropy_floor=0.2, probe_prompts=held_out)
    trainer = Trainer(model, args, train_dataset=rows, callbacks=[floor])

and in a bare loop, Lightning, or whatever has optimiser steps:

    head = patch_model(model, "ce")
    floor = EntropyFloorCallback(head, entropy_floor=0.2)
    for batch in loader:
        model(**batch).loss.backward(); optimizer.step(); optimizer.zero_grad()
        metrics = floor.step()          # once an optimiser step, on every process
    floor.save(folder)                  # and floor.restore(folder) to go on from there

before the first step   tau="auto" is measured; a checkpoint's state is taken up
before the optimiser    a first step without our loss is refused
after each step         the weight of the entropy term moves; now and then rollouts are probed
each log                metrics, token-weighted over accumulation steps and processes
each checkpoint         ``entropyfloor.json``: the loss in force, the floor's state, its probes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from entropyfloor.models.loss_head import SUMS, LossHead
from entropyfloor.models.ranks import largest
from entropyfloor.rollouts.prompts import Prompt, PromptSet
from entropyfloor.rollouts.rewards import RewardFunction
from entropyfloor.sft.calibration import calibrate
from entropyfloor.sft.calling_trainer import call_before_reporters, find_trainer, resumed_from
from entropyfloor.sft.floor.building import build_floor, refuse_what_drops_the_loss
from entropyfloor.sft.floor.floor import EntropyFloor, restore_last_above, warn
from entropyfloor.sft.floor.options import FloorOptions
from entropyfloor.sft.loss_reference import LossReference
from entropyfloor.sft.run_record import recorded_tau, write_run_record
from entropyfloor_losses import needs_calibration

_CALIBRATION_ROWS = 128  # where the trainer's arguments do not say


class EntropyFloorCallback(TrainerCallback):
    """Calibration, metrics, floor, checkpoints and resume of a patched model; see the module.

    Args:
        head: what `patch_model` returned. Hand the callback to the trainer's constructor.
        options: `FloorOptions`, or its fields as keyword arguments: ``entropy_floor`` (nats; None:
            no floor, everything else is done), ``floor_place``, ``floor_margin``,
            ``floor_max_weight``, ``on_violation``, ``floor_probe_prompts``, ``floor_probe_steps``,
            ``floor_probe_tokens``.
        probe_prompts: held-out prompts (a ``PromptSet``, strings, conversations, or rows with
            ``prompt`` and the reward's columns) whose rollouts the floor is measured on; without,
            the floor holds teacher-forced entropy.
        probe_reward: a reward by name or in trl's signature: probes then measure pass@1 too.
        held_out: batches (a forward's arguments with ``labels``) that ``entropy_floor="auto"`` is
            read off; default: the trainer's evaluation set. They are kept.
        **fields: of `FloorOptions`.

    Attributes:
        floor: the `EntropyFloor`, once training was prepared; None without ``entropy_floor``.
        reference: of the loss, once training was prepared.
        reads_head: whether the head's sums are what is observed and logged.

    Logged: ``ce`` (nats per token), ``penalty`` (objective minus CE), ``selected_fraction`` (tokens
    the loss treats other than CE does), ``top_k_mass``; in evaluation ``eval_ce`` and so on; with a
    floor ``floor_weight``, ``floor_target``, ``floor_entropy``, ``probe_entropy`` and
    ``reference_kl``; with an "auto" floor ``entropy_floor``, ``floor_in_force``, ``held_out_loss``,
    ``held_out_entropy`` and ``calibration_gap`` (held-out entropy minus loss) too.

    Raises:
        ValueError: options that cannot be; while training begins: a model that is not the patched
            one, prompts that cannot be probed, a checkpoint without the state; at the first step:
            a trainer that did not compute the loss.

    """

    def __init__(
        self,
        head: LossHead,
        options: FloorOptions | None = None,
        *,
        probe_prompts: PromptSet | Sequence[Prompt | dict[str, Any]] | None = None,
        probe_reward: str | RewardFunction | None = None,
        held_out: Iterable[Mapping[str, Any]] | None = None,
        **fields: Any,
    ) -> None:
        if options is not None and fields:
            raise ValueError(
                f"options were given and {', '.join(fields)} beside them; put them into the options"
            )
        self.head = head
        self.options = FloorOptions(**fields) if options is None else options
        self.options.check_floor()
        self.floor: EntropyFloor | None = None
        self.reference: LossReference | None = None
        self.reads_head = True
        self._probe_prompts, self._probe_reward = probe_prompts, probe_reward
        self._held_out = held_out
        self._chosen_loss = head.loss
        self._trainer: Any = None
        self._model: Any = None  # as the caller holds it: with PEFT's wrapper
        self._calls = head.calls
        self._sums = dict.fromkeys(SUMS, 0.0)
        self._restored: Path | None = None
        self._saved: Path | None = None

    # By hand, in a bare loop.

    def prepare(
        self, model: Any = None, processing_class: Any = None, *, trainer: Any = None
    ) -> None:
        """Build the floor on the model that training starts from; a second call does nothing.

        Called by the trainer's events, or by the first `step`.

        Args:
            model: as the caller holds it, PEFT's wrapper included; default: the patched one.
            processing_class: tokenizer, which a probe needs.
            trainer: that calls, if there is one.

        """
        if self._model is not None:
            return
        model = self.head.model if model is None else model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        if base is not self.head.model:
            raise ValueError(
                f"the head is of another {type(self.head.model).__name__} object than the one in "
                "training: patch_model(model) the model that the trainer is given"
            )
        refuse_what_drops_the_loss(trainer)
        self._model, self._trainer = model, trainer
        self.reference = LossReference(self.head, self.options, model, trainer)
        if self.options.entropy_floor is not None:
            self.floor = build_floor(
                self.head,
                self.options,
                model,
                trainer=trainer,
                processing_class=processing_class,
                prompts=self._probe_prompts,
                reward=self._probe_reward,
                held_out=self._held_out,
            )
        if trainer is None:
            self.reference.ready(self._restored)

    def step(self) -> dict[str, float]:
        """Close an optimiser step; every process must call.

        Returns:
            The metrics of this step.

        Raises:
            ValueError: the first step was computed without the loss.

        """
        self.prepare()
        self.check_first_step("the training loop")
        sums = self.head.pop_sums()
        self._sums = {name: self._sums[name] + value for name, value in sums.items()}
        if self.floor is not None:
            if self.reads_head:
                self.floor.observe(sums["entropy"], sums["tokens"])
            self.floor.step()
        assert self.reference is not None
        self.reference.step()
        return self._ratios(sums, "train")

    def check_first_step(self, caller: str) -> None:
        """Refuse a first step whose gradient is of another loss than ours; afterwards nothing.

        Args:
            caller: what computed the step, for the message.

        Raises:
            ValueError: our loss was not called.

        """
        if self._calls < 0:
            return
        if self.head.calls == self._calls:
            raise ValueError(
                f"{caller} computed its first step without the loss that the model was patched "
                f"with ({type(self.head.loss).__name__}), so it would train on another one. "
                "Something replaces compute_loss or the model's forward (Unsloth and Liger do; "
                "trl's SFTTrainer builds its own head: use SEDTrainer). Switch that off, or patch "
                "the model after it"
            )
        self._calls = -1  # seen once: that is enough

    def probe(self, step: int, *, rollouts: bool = True) -> None:
        """Measure the model as it is, once for a step: rollouts, or an "auto" floor's rows.

        Args:
            step: number of the optimiser step.
            rollouts: of an "auto" floor, sample them too; needs prompts and a tokenizer.

        """
        floor = self.floor
        if floor is None or not floor.measures:
            return
        training_seconds = largest(floor.training_seconds, self.head.device)
        wrapped = self._model if self._trainer is None else self._trainer.model_wrapped
        result = floor.measure(self._model, wrapped, step=step, rollouts=rollouts)
        if result is None:
            return
        floor.add_probe(result, training_seconds)
        if floor.violated and floor.on_violation != "constrain":
            warn(floor.violated)

    def save(self, directory: str | Path, *, resumable: bool = True, main: bool = True) -> None:
        """Write what screening reads; on one process, or all that hold a part of the model.

        Args:
            directory: of a checkpoint or a final model.
            resumable: write what `restore` needs too, which may be as large as the model.
            main: whether this process writes what all have in common.

        """
        directory = Path(directory)
        if main:
            directory.mkdir(parents=True, exist_ok=True)
            floor = None if self.floor is None else self.floor.record()
            write_run_record(directory, self.head.loss, floor)
        if resumable and self.reference is not None:
            self.reference.save(directory, main=main)
        self._saved = directory

    def restore(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint: the calibrated tau, the floor's state.

        Raises:
            ValueError: it was trained with another loss, or without a floor.

        """
        self.prepare()
        self._restored = Path(checkpoint)
        # The loss as chosen: an evaluation before may have calibrated it, on another model.
        if needs_calibration(self._chosen_loss):
            self.head.loss = recorded_tau(checkpoint, self._chosen_loss)
        if self.floor is not None:
            self.floor.restore(self._restored)
        if self._trainer is None and self.reference is not None:
            self.reference.ready(self._restored)

    # By a trainer's events.

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Take the model that training starts from."""
        self.prepare(others["model"], others.get("processing_class"), trainer=find_trainer(state))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Resume or calibrate; start the clock."""
        trainer = find_trainer(state)
        if trainer is not None:
            call_before_reporters(self, trainer)
        if self._model is None and state.global_step and self.options.floor_place == "anchor":
            raise ValueError(
                "floor_place='anchor' needs the model that training started from, and this run is "
                "resumed: hand the callback to the trainer's constructor (callbacks=[...])"
            )
        self.prepare(others["model"], others.get("processing_class"), trainer=trainer)
        self._trainer = trainer
        if state.global_step and self._restored is None:
            last = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            checkpoint = None if trainer is None else resumed_from(trainer)
            self.restore(checkpoint or args.resume_from_checkpoint or last)
        assert self.reference is not None
        self.reference.ready(self._restored)
        self._restored = self._saved = None
        if trainer is not None:
            rows = getattr(args, "calibration_rows", _CALIBRATION_ROWS)
            calibrate(trainer, self.head, rows=rows, model=trainer.model_wrapped)
        self._calls = self.head.calls
        if self.floor is not None:
            self.floor.begin()
            if self.floor.held_out is not None:
                self.probe(state.global_step, rollouts=False)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Refuse a first step whose gradient is of another loss than ours."""
        self.check_first_step(type(self._trainer).__name__)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the weight; probe where due, at the end, and before a checkpoint."""
        self.step()
        last = state.global_step >= state.max_steps
        due = self.floor is not None and self.floor.wants_probe(state.global_step)
        if due or control.should_save or last:
            self._probe_in_training(state, control, rollouts=control.should_save or last)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Probe before a checkpoint that is saved by epochs."""
        if control.should_save:
            self._probe_in_training(state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Add our metrics, each a ratio of sums over the tokens since the last log."""
        if logs is None:
            return
        if others["model"].training:
            ours = self._ratios(self._sums, "train")
            self._sums = dict.fromkeys(SUMS, 0.0)
        else:
            losses = [key for key in logs if key.endswith("_loss") and key != "train_loss"]
            if not losses:
                return
            prefix = min(losses, key=len).removesuffix("loss")
            values = self._ratios(self.head.pop_sums(training=False), "eval")
            ours = {prefix + name: value for name, value in values.items()}
        logs.update(ours)
        if state.log_history:
            state.log_history[-1].update(ours)

    def on_predict(self, *_: Any, **__: Any) -> None:
        """What was predicted belongs to no evaluation's metrics."""
        self.head.pop_sums(training=False)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Put our record beside the weights."""
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if folder != self._saved and folder.is_dir():
            self.save(folder, main=args.should_save)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Plot the run; with "stop" put the weights of the last checkpoint above the floor back."""
        floor = self.floor
        if floor is None:
            return
        if floor.probes and state.is_world_process_zero:
            from entropyfloor.io import write_pictures
            from entropyfloor.sft.floor.plot import write_floor_plot

            draw = partial(
                write_floor_plot, state.log_history, floor.probes, floor.controller.floor
            )
            write_pictures({Path(args.output_dir or ".") / "entropy_floor.png": draw})
        if floor.on_violation != "stop" or not floor.violated:
            return
        restore_last_above(floor, self._trainer, args.output_dir or ".")

    def _probe_in_training(
        self, state: TrainerState, control: TrainerControl, *, rollouts: bool = True
    ) -> None:
        self.probe(state.global_step, rollouts=rollouts)
        if self.floor is not None and self.floor.violated and self.options.on_violation == "stop":
            control.should_training_stop = True

    def _ratios(self, sums: dict[str, float], mode: str) -> dict[str, float]:
        """What is logged of sums over tokens."""
        tokens, values = sums["tokens"], {}
        if not tokens:
            return {}
        if self.reads_head:
            values["ce"] = sums["ce"] / tokens
            values["penalty"] = (sums["objective"] - sums["ce"]) / tokens
            values["selected_fraction"] = sums["selected"] / tokens
            values["top_k_mass"] = sums["top_k_mass"] / tokens
            if not hasattr(self._trainer, "_metrics"):  # trl's trainers log these themselves
                values["entropy"] = sums["entropy"] / tokens
                values["mean_token_accuracy"] = sums["top1"] / tokens
        if self.floor is not None and mode == "train":
            values |= {"reference_kl": sums["reference_kl"] / tokens, **self.floor.logs()}
        return values
