"""Conversations of users, checked before a chat template sees them.

A message is ``{"role": ..., "content": ...}``. Content is text, or a list of text parts
(``{"type": "text", "text": ...}``), which are joined: to a language model they are one text. A part
of another type (an image, say) is refused by name. Content may be missing or null only where the
message has ``tool_calls``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError


def text_messages(messages: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The messages of a conversation, or of a completion, with text as content.

    Raises:
        ValueError: no messages, a message without role or content, or content that is no text;
            ``where`` names file, row and column.

    """
    if not messages:
        raise ValueError(f"{where} is empty (no messages); remove the row or fill it in")
    return [_checked(message, f"{where}, message {n}") for n, message in enumerate(messages)]


@contextmanager
def template_refusals(row: str, where: str) -> Iterator[None]:
    """Name the row whose conversation a chat template refuses, by its own words or by failing.

    ``row`` says file and row, ``where`` the checkpoint whose template it is.
    """
    try:
        yield
    except (TemplateError, TypeError) as error:
        raise ValueError(
            f"{row}: the chat template of {where} refuses the conversation ({error}); change its "
            "roles (many templates take no system message, or want user and assistant in turn), or "
            "save another template beside the checkpoint"
        ) from error


def _checked(message: Any, where: str) -> dict[str, Any]:
    fields = message if isinstance(message, Mapping) else {}
    calls, content = fields.get("tool_calls"), fields.get("content")
    if "role" not in fields or ("content" not in fields and not calls):
        got = sorted(message) if isinstance(message, Mapping) else type(message).__name__
        raise ValueError(f"{where}: each message needs 'role' and 'content', got {got}")
    role = fields["role"]
    if not isinstance(role, str) or not role:
        raise ValueError(f"{where} has the role {role!r}; a role is text, such as 'user'")
    if isinstance(content, str) or (content is None and calls):
        return dict(fields)
    if isinstance(content, Sequence) and content:
        return {**fields, "content": "".join(_text_of(part, where) for part in content)}
    raise ValueError(
        f"{where} has {_named(content)} as content; content is text or a list of text parts"
    )


def _text_of(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
        raise ValueError(f"{where} has a text part with {_named(text)} in place of its text")
    kind = repr(part.get("type")) if isinstance(part, Mapping) else _named(part)
    raise ValueError(
        f"{where} has a content part of type {kind}; a language model reads text parts only: "
        "remove the part, or the row"
    )


def _named(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value!r:.40} ({type(value).__name__})" if value != [] else "an empty list"
