"""Rows of the training verbs, rendered as their flags ask for it."""

from __future__ import annotations

from typing import Any

from entropyfloor.rollouts.options import ChatOptions


def chat_options(script: ChatOptions, chat_template_kwargs: Any) -> dict[str, Any]:
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
