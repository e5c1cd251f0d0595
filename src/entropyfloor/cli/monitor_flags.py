"""Flags of the training commands that put a `CollapseMonitor` beside the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_POLICIES = {"warn": "warn", "stop": "stop", "restore": "stop-and-restore"}


def monitor_field(default: str) -> str:
    """The flag --monitor, with a command's own default."""
    flag: str = field(
        default=default,
        metadata={
            "help": "When the entropy collapses: warn, stop, restore (stop with the last "
            "checkpoint from before) or off.",
            "choices": [*_POLICIES, "off"],
        },
    )
    return flag


@dataclass
class MonitorArguments:
    """What a monitor compares; the command adds --monitor."""

    monitor_tau_2: float = field(
        default=0.5, metadata={"help": "Relative entropy drop that is a collapse."}
    )
    monitor_early_step: int | None = field(
        default=None, metadata={"help": "First step compared (default: 10 of 400, scaled)."}
    )
    monitor_late_step: int | None = field(
        default=None, metadata={"help": "Second step compared (default: 150 of 400, scaled)."}
    )
    monitor_window: int = field(default=1, metadata={"help": "Steps averaged for each of the two."})


def monitor_of(script: Any, *, threshold: float, reward: str | None = None) -> Any:
    """The monitor that the flags ask for, or None.

    Args:
        script: `MonitorArguments` with ``monitor``.
        threshold: a rollout passes if its reward is at least this.
        reward: name of the reward function that says so; default: the first.

    """
    if script.monitor == "off":
        return None
    from entropyfloor.rl.collapse_monitor import CollapseMonitor

    return CollapseMonitor(
        _POLICIES[script.monitor],
        tau_2=script.monitor_tau_2,
        early_step=script.monitor_early_step,
        late_step=script.monitor_late_step,
        window=script.monitor_window,
        success_threshold=threshold,
        success_reward=reward,
    )


def say_verdict(monitor: Any, say: Any) -> None:
    """The monitor's sentence at the end of a run, if it has one."""
    if monitor is not None and monitor.message:
        say(f"Monitor: {monitor.message}")
