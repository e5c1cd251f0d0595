"""Rescue a collapsed checkpoint: the smallest step back towards its base that clears the floor.

Weights on the line between checkpoint and base are screened like any checkpoint; the share of the
base is found by bisection. That entropy rises along the line is an assumption: the screened points
are all reported, so that a reader sees where it fails.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from entropyfloor.io import check_settings, save_json
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.interpolation import check_same_shapes, write_interpolated
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name, reward_name
from entropyfloor.rollouts.rollout_store import checkpoint_digest, source_digest
from entropyfloor.screening.options import Judging, RescueOptions
from entropyfloor.screening.report import CheckpointScreening
from entropyfloor.screening.screen import screen

_RECORD = "rescue.json"


@dataclass(frozen=True)
class RescuePoint:
    """One screened point of the line."""

    share: float  # of the base, 0 is the checkpoint
    entropy_nats: float  # of its rollouts
    entropy_low: float  # lower end of the 95 % interval
    pass_at_1: float | None  # with a reward, else None
    degenerate_fraction: float | None  # with a reward, else None
    clears: bool  # the interval's lower end is at or above the floor


@dataclass(frozen=True)
class Rescue:
    """What was found."""

    share: float  # of the base in the rescued checkpoint; 0 if there was nothing to rescue
    path: Path  # the rescued checkpoint
    floor: float  # nats
    points: tuple[RescuePoint, ...]  # every screened point, by share


def rescue(
    checkpoint: str | Path,
    prompts: PromptSet,
    reward: RewardFunction | str | None = None,
    *,
    options: RescueOptions,
    sampling: Sampling = Sampling(),
    loading: Loading = Loading(),
    output: Output,
    say: Callable[[str], None] = lambda line: None,
) -> Rescue:
    """Find and write the smallest step towards the base that clears the floor.

    Args:
        checkpoint: full model or LoRA adapter.
        prompts: held-out prompts to screen on.
        reward: as in ``screen``; entropy alone decides.
        options: the base, the floor, and how closely the share is found.
        sampling: of every screening.
        loading: how models are loaded.
        output: its folder gets ``rescued/`` (the checkpoint), ``rescue.json`` and the screenings; a
            rerun goes on where it was stopped.
        say: gets a line per screened point.

    Raises:
        ValueError: bad arguments, models that do not correspond, or a base below the floor.

    """
    if len(prompts) < 2:
        raise ValueError(
            f"{prompts.source} has one prompt, which gives no interval of the entropy; give at "
            "least two"
        )
    trust, base, floor = loading.trust_remote_code, str(options.base), options.floor
    source, origin = (check_checkpoint(p, trust_remote_code=trust) for p in (checkpoint, base))
    check_same_shapes(source, origin)
    folder = output.folder
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    determines = {
        "checkpoint": checkpoint_digest(source),
        "base": checkpoint_digest(origin),
        "prompts": prompts.full_digest,
        "floor": floor,
        "group_size": options.group_size,
        "reward": None if reward is None else reward_name(reward),
        "reward's source file": source_digest(function),
        "screening": {
            name: value
            for name, value in {**asdict(sampling), **asdict(loading)}.items()
            if name != "batch_size"  # changes speed alone
        },
    }
    points = _known_points(folder, determines)

    def look(share: float) -> RescuePoint:
        if share in points:
            return points[share]
        name = f"share-{share}"  # in full: with a small tolerance shares are close to each other
        target = folder / "points" / name
        model: str | Path = checkpoint if share == 0 else base if share == 1 else target
        if model is target and not target.is_dir():
            write_interpolated(source, origin, share, target)
        report = screen(
            [model],
            prompts,
            reward,
            sampling=sampling,
            judging=Judging(tau_h=floor, group_size=options.group_size),
            loading=loading,
            output=Output(folder / "screening" / name, output.progress),
        )
        points[share] = point = _point(share, report.checkpoints[0], floor)
        _write(folder, determines, points, None)
        passed = "" if point.pass_at_1 is None else f", pass@1 {point.pass_at_1:.3f}"
        say(
            f"share {share:.3f} of the base: entropy {point.entropy_nats:.3f} nats (lower end "
            f"{point.entropy_low:.3f}){passed}"
        )
        return point

    low, high = 0.0, 1.0
    if look(0.0).clears:
        high = 0.0
    elif not look(1.0).clears:
        raise ValueError(
            f"the base itself has entropy {points[1.0].entropy_nats:.3f} nats (lower end "
            f"{points[1.0].entropy_low:.3f}) on these prompts, so no step towards it clears the "
            f"floor {floor}; lower the floor, or give more prompts or samples"
        )
    while high - low > options.tolerance:
        middle = (low + high) / 2
        if look(middle).clears:
            high = middle
        else:
            low = middle
    rescued = folder / "rescued"
    write_interpolated(source, origin, high, rescued)
    shutil.rmtree(folder / "points", ignore_errors=True)
    _write(folder, determines, points, high)
    return Rescue(high, rescued, floor, tuple(points[share] for share in sorted(points)))


def _point(share: float, screened: CheckpointScreening, floor: float) -> RescuePoint:
    low = screened.intervals["entropy_nats"].low
    return RescuePoint(
        share=share,
        entropy_nats=screened.entropy_nats,
        entropy_low=low,
        pass_at_1=screened.pass_at_1,
        degenerate_fraction=screened.degenerate_fraction,
        clears=low >= floor,
    )


def _known_points(folder: Path, determines: dict[str, Any]) -> dict[float, RescuePoint]:
    """What an earlier run into the same folder has screened."""
    path = folder / _RECORD
    if not path.is_file():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    check_settings(folder, record["determines"], determines, holds="holds a rescue")
    return {point["share"]: RescuePoint(**point) for point in record["points"]}


def _write(
    folder: Path,
    determines: dict[str, Any],
    points: dict[float, RescuePoint],
    share: float | None,
) -> None:
    record = {
        "share": share,
        "points": [asdict(points[key]) for key in sorted(points)],
        "determines": determines,
    }
    save_json(folder / _RECORD, record)
