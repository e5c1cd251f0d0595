"""Flags of the training verbs that say how prompts are rendered, and ``--dry_run``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PromptArguments:
    """The same in ``sft``, ``grpo`` and ``gft``, and spelled as in ``screen``."""

    chat: bool = field(
        default=False, metadata={"help": "Send plain prompts as a user message (chat template)."}
    )
    system: str | None = field(
        default=None, metadata={"help": "System message of conversations that have none."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Check and print what would be done, the first prompt as the model reads it "
            "included, and stop before weights are loaded."
        },
    )


def chat_options(script: PromptArguments, chat_template_kwargs: Any) -> dict[str, Any]:
    """Keywords of ``row_with_chat_options``."""
    return {
        "chat": script.chat,
        "system": script.system,
        "chat_template_kwargs": chat_template_kwargs,
    }


def mapped_rows(rows: Any, options: dict[str, Any]) -> Any:
    """A dataset of ``datasets`` (or None) whose rows are as ``options`` ask for."""
    if rows is None or not any(options.values()):
        return rows
    from entropyfloor.rollouts.prompts import row_with_chat_options

    return rows.map(row_with_chat_options, fn_kwargs=options)
