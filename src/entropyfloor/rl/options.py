"""Which prompts the calibration band keeps; no torch here."""

from dataclasses import dataclass
from typing import ClassVar

from entropyfloor.rollouts.options import described, flag
from entropyfloor.stats.groups import check_success_threshold


@described
@dataclass(frozen=True)
class BandOptions:
    """Edges of the band in passes; see ``entropyfloor.rl.band.band_edges``.

    Raises:
        ValueError: a threshold that no reward can be compared with.

    """

    _argument_group_name: ClassVar[str] = "band"
    lowest: int | None = flag(None, "fewest passes to keep (default: 1 of 16)")
    highest: int | None = flag(None, "most passes to keep (default: 14 of 16)")
    success_threshold: float = flag(1.0, "a rollout passes if its reward is at least this")

    def __post_init__(self) -> None:
        check_success_threshold(self.success_threshold)
