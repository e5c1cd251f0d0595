"""Which responses go into a group beside the teacher's; no torch here."""

from dataclasses import dataclass
from typing import ClassVar

from entropyfloor.rollouts.options import described, flag
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.stats.groups import check_success_threshold


@described
@dataclass(frozen=True)
class GroupOptions:
    """Where responses stand in the data, and which are kept and counted as right.

    Raises:
        ValueError: a threshold that no reward can be compared with.

    """

    _argument_group_name: ClassVar[str] = "groups"
    expert_column: str | None = flag(
        None, "column of the experts' responses (default: completion, if there is one)"
    )
    other_columns: list[str] = flag([], "columns of further responses, of the source 'other'")
    other: PromptSet | str | None = flag(
        None,
        "further responses: JSONL or save_to_disk folder with prompt, completion and, if it is not "
        "'other', source (expert, teacher, other)",
        metavar="SPEC",
    )
    keep_truncated: bool = flag(
        False, "keep samples that hit --max_new_tokens; training ends them there"
    )
    success_threshold: float = flag(1.0, "a response passes if its reward is at least this")

    def __post_init__(self) -> None:
        check_success_threshold(self.success_threshold)
