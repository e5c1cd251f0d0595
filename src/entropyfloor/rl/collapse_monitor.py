"""``CollapseMonitor``: stop a GRPO run that is dying, in one line.

    GRPOTrainer(..., callbacks=[CollapseMonitor()])

It reads the entropy of every optimizer step and the rewards of every group, decides stage 2
(``collapse_rule.py``) once, and writes what it saw to the trainer's logs and, in the output folder,
to ``collapse_monitor.jsonl`` and ``collapse_monitor.png``. What it remembers travels in each
checkpoint's trainer_state.json, so that a run that was killed and resumed decides as if it had not
been.

    policy              when the entropy has collapsed
    "warn"              say so
    "stop"              and end training after that step; the policy at that step is saved as a
                        checkpoint, so that the run can be resumed with policy "warn"
    "stop-and-restore"  and end training with the weights from *before* the collapse: the best
                        checkpoint by ``metric_for_best_model`` where that is set and it was saved
                        before the collapse, else the last checkpoint saved before it

Before the collapse: at a step where the entropy had not yet fallen by more than tau_2. That
checkpoint is kept from ``save_total_limit``. Only weights are restored; training is over.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from entropyfloor.io import restore
from entropyfloor.rl.collapse_rule import (
    COLLAPSED,
    TAU_2,
    UNKNOWN,
    WAITING,
    CollapseRule,
    Decision,
    saved_share,
)
from entropyfloor.rl.group_counts import GroupCounts
from entropyfloor.rl.grpo_probe import GRPOProbe, can_probe
from entropyfloor.rl.monitor_memory import (
    FILE_NAME,
    MonitorMemory,
    append_log,
    begin_log,
    number,
    read_log,
)
from entropyfloor.rl.restore import Restorer
from entropyfloor.screening.verdict import TAU_H, check_tau_h
from entropyfloor.sft.calling_trainer import find_trainer
from entropyfloor.stats.groups import check_success_threshold

POLICIES = ("warn", "stop", "stop-and-restore")
_log = logging.getLogger(__name__)


class CollapseMonitor(TrainerCallback, ExportableState):
    """Watch a GRPO run for entropy collapse and degenerate groups; see the module.

    Args:
        policy: ``"warn"``, ``"stop"`` or ``"stop-and-restore"``.
        tau_2: relative entropy drop above which the run has collapsed.
        early_step: optimizer step of the first entropy; step 10 of 400, scaled, when left out.
        late_step: of the second, and of the decision; step 150 of 400, scaled, when left out.
        window: steps averaged for each of the two entropies; 1 is the paper's. Small batches are
            noisy: average a few.
        tau_h: a run whose early entropy is below this, nats, and more than half of whose groups are
            degenerate began collapsed, and is treated as collapsed; None leaves that out. Only at
            sampling temperature 1.
        success_threshold: a rollout passes if its reward is at least this (unweighted).
        success_reward: name of the reward function that tells; the first with a weight when left
            out.

    Attributes:
        memory: what it has seen and decided; see
            :class:`~entropyfloor.rl.monitor_memory.MonitorMemory`.

    Raises:
        ValueError: an unknown policy, or numbers that stage 2 cannot work with.

    """

    def __init__(
        self,
        policy: str = "stop",
        *,
        tau_2: float = TAU_2,
        early_step: int | None = None,
        late_step: int | None = None,
        window: int = 1,
        tau_h: float | None = TAU_H,
        success_threshold: float = 1.0,
        success_reward: str | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"unknown policy {policy!r}; choose one of {', '.join(POLICIES)}")
        self.policy = policy
        self.tau_2, self.window = tau_2, window
        self.early_step, self.late_step = early_step, late_step
        if tau_h is not None:
            check_tau_h(tau_h)
        self.tau_h = tau_h
        check_success_threshold(success_threshold)
        self.success_threshold = success_threshold
        self.success_reward = success_reward
        # Raises now, not when the model is loaded; of the run's length nothing is known yet.
        CollapseRule(early_step or 1, late_step or 10**9, tau_2, window)
        self.memory = MonitorMemory()
        self._rule: CollapseRule | None = None
        self._restorer = Restorer()
        self._probe: GRPOProbe | None = None
        self._trainer: Any = None
        self._log_file = Path(FILE_NAME)

    @property
    def decision(self) -> Decision:
        """What stage 2 says; its verdict is ``waiting`` until the late step."""
        return self.memory.decision

    @property
    def counts(self) -> GroupCounts:
        """Groups seen so far, over all ranks."""
        return self.memory.counts

    @property
    def message(self) -> str:
        """One sentence on what was decided and done; empty until then."""
        return self.memory.message

    @property
    def stopped_at(self) -> int | None:
        """Step at which the monitor ended the run; None if it did not."""
        return self.memory.stopped_at

    def attach(self, trainer: Any) -> "CollapseMonitor":
        """Name the trainer to watch; only needed where it cannot be found by itself."""
        self._trainer = trainer
        return self

    def see_rewards(self, rewards: Mapping[str, Sequence[float]]) -> None:
        """Take rewards that were computed out of sight; see `GRPOProbe.count_elsewhere`."""
        if self._probe is not None:
            self._probe.count_elsewhere(rewards)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data: arguments, and what was seen."""
        names = ("policy", "tau_2", "early_step", "late_step", "window", "tau_h")
        arguments = {name: getattr(self, name) for name in names}
        arguments["success_threshold"] = self.success_threshold
        arguments["success_reward"] = self.success_reward
        return {"args": arguments, "attributes": {"remembered": self.remembered}}

    @property
    def remembered(self) -> dict[str, Any]:
        """The memory as JSON data, under the name that checkpoints keep it."""
        return asdict(self.memory)

    @remembered.setter
    def remembered(self, kept: dict[str, Any]) -> None:
        self.memory = restore(MonitorMemory, kept)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take up the checkpoint's memory, find the trainer, begin the log."""
        self._take_up(state)
        self._rule = self._rule_for(state.max_steps)
        if self.policy == "stop-and-restore":
            Restorer.check(args, self._rule)
        main = state.is_world_process_zero
        self.memory.sample_at(getattr(args, "temperature", None), say=main)
        trainer = self._trainer if self._trainer is not None else find_trainer(state)
        if can_probe(trainer):
            if not trainer.num_generations:  # type: ignore[union-attr]
                raise ValueError(
                    "CollapseMonitor watches what the model in training samples, and this run "
                    "samples nothing (num_self=0); leave it out, or set num_self"
                )
            self._probe = GRPOProbe(
                trainer,
                success_threshold=self.success_threshold,
                success_reward=self.success_reward,
            )
        elif main:
            _log.warning(
                "CollapseMonitor found no GRPOTrainer of trl to look into: it reads `entropy` from "
                "the logs every logging_steps and counts no groups. If there is one, hand it over: "
                "CollapseMonitor().attach(trainer), then trainer.add_callback"
            )
        self._log_file = Path(args.output_dir) / FILE_NAME
        if main:
            begin_log(self._log_file, state.global_step, self._start_record(state))
        # A checkpoint without a monitor has no place for its state, which transformers then misses.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Read the step, log it, and decide where it is time."""
        assert self._rule is not None
        if self._probe is not None:
            entropy, counts = self._probe.take_step()
            self.memory.read(state.global_step, entropy)
            self.memory.counts += counts
            self.memory.warn_of_shaping(say=state.is_world_process_zero)
            drop = self._rule.drop_at(self.memory.readings, state.global_step)
            group_size = int(self._probe.trainer.num_generations)
            rates = counts.rates(group_size)
            for name, value in rates.items():
                self._probe.log(f"groups/{name}", value)
            if drop is not None:
                self._probe.log("collapse/relative_drop", drop)
            numbers = {"relative_drop": drop, "groups": counts.groups}
            self._write_step(state, entropy, unscored_groups=counts.unscored, **numbers, **rates)
        self._decide(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Without a trainer to look into: take the logged entropy, that of rank 0 on all ranks."""
        if self._rule is None:
            return
        self._restorer.hold(args, state)  # evaluation may have named another checkpoint since
        if self._probe is not None or not logs or "entropy" not in logs:
            return
        from accelerate.utils import broadcast_object_list

        entropy = broadcast_object_list([number(logs["entropy"])])[0]
        self.memory.read(state.global_step, entropy)
        self._write_step(state, entropy)
        self._decide(args, state, control)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Remember the last checkpoint from before a collapse."""
        assert self._rule is not None
        if self.policy == "stop-and-restore" and self.decision.verdict == WAITING:
            drop = self._rule.drop_at(self.memory.readings, state.global_step)
            if drop is None or drop <= self._rule.tau_2:
                self.memory.healthy_step = state.global_step
                self._restorer.keep(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Plot the run, and give the trainer its methods back."""
        if state.is_world_process_zero and self._log_file.is_file():
            from entropyfloor.io import write_pictures
            from entropyfloor.rl.monitor_plot import write_monitor_plot

            log = read_log(self._log_file)
            write_pictures({self._log_file.with_suffix(".png"): partial(write_monitor_plot, log)})
        if self._probe is not None:
            self._probe.detach()
            self._probe = None
        self._restorer.finish(args)

    def _rule_for(self, max_steps: int) -> CollapseRule:
        return CollapseRule.for_run(
            max_steps,
            tau_2=self.tau_2,
            early_step=self.early_step,
            late_step=self.late_step,
            window=self.window,
        )

    def _take_up(self, state: TrainerState) -> None:
        """Begin afresh, or go on with what the resumed checkpoint remembers."""
        kept = (state.stateful_callbacks or {}).get(type(self).__name__)
        if isinstance(kept, list):
            raise ValueError(
                "the trainer has more than one CollapseMonitor, and their states cannot be told "
                "apart in a checkpoint; keep one"
            )
        self.memory, self._restorer = MonitorMemory(), Restorer()
        if state.global_step > 0 and kept is not None:
            self.remembered = kept["attributes"]["remembered"]
        if self.stopped_at is not None and self.policy != "warn":
            raise ValueError(
                f"the checkpoint of step {state.global_step} is where a run was stopped. "
                f"{self.message} Resume it with policy='warn' to go on all the same, or resume an "
                "earlier one"
            )
        self.memory.stopped_at = None

    def _start_record(self, state: TrainerState) -> dict[str, Any]:
        assert self._rule is not None
        record: dict[str, Any] = {
            "from_step": state.global_step,
            "max_steps": state.max_steps,
            "policy": self.policy,
            "early_step": self._rule.early_step,
            "late_step": self._rule.late_step,
            "tau_2": self._rule.tau_2,
            "window": self._rule.window,
            "temperature": self.memory.temperature,
            "entropy_from": "logs" if self._probe is None else "every step",
        }
        if self._probe is not None:
            record |= {
                "group_size": int(self._probe.trainer.num_generations),
                "rewards": list(self._probe.trainer.reward_func_names),
                "success_reward": self._probe.success_reward,
                "success_threshold": self.success_threshold,
            }
        return record

    def _write_step(self, state: TrainerState, entropy: float | None, **numbers: Any) -> None:
        if state.is_world_process_zero:
            record = {"event": "step", "step": state.global_step, "entropy_nats": entropy}
            append_log(
                self._log_file, {**record, "temperature": self.memory.temperature, **numbers}
            )

    def _decide(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        assert self._rule is not None
        memory = self.memory
        step, steps = state.global_step, state.max_steps
        if not memory.judge(self._rule, step, self.tau_h):
            return
        verdict = self.decision.verdict
        action = f"Step {step} of {steps}, {verdict}"
        if verdict == COLLAPSED and self.policy != "warn":
            memory.stopped_at = step
            control.should_training_stop = True
            share = saved_share(step, steps)
            action = f"Stopped at step {step} of {steps}, which saved {share:.1%} of the run"
            if self.policy == "stop-and-restore":
                memory.restored = self._restorer.choose(args, state, memory.healthy_step)
                action += (
                    f", and restored the weights of {memory.restored}"
                    if memory.restored
                    else ", and restored nothing: no checkpoint from before the collapse is there"
                )
            elif args.save_strategy != SaveStrategy.NO:
                control.should_save = True
        elif self.policy == "stop-and-restore":
            self._restorer.release(args, state)
        memory.message = f"{action}: {self.decision.reason}{memory.note_on_temperature}."
        if state.is_world_process_zero:
            level = logging.WARNING if verdict in (COLLAPSED, UNKNOWN) else logging.INFO
            _log.log(level, "CollapseMonitor: %s", memory.message)
            append_log(self._log_file, memory.verdict_record(step, steps))
