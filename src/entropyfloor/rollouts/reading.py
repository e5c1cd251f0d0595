"""Files of rows and conversations that users wrote, read so that a mistake is named by its place.

    .jsonl             one JSON object per line; empty lines are skipped, CR LF is a line end
    .json              the same, or one array of objects
    .jsonl.gz ...      either of them, compressed

Text is UTF-8, with or without a byte order mark. Every verb reads through here or, where `datasets`
reads a file that may be larger than memory, asks here what is wrong with one that it refused.

A message is ``{"role": ..., "content": ...}``. Content is text, or a list of text parts
(``{"type": "text", "text": ...}``), which are joined: to a language model they are one text. A part
of another type (an image, say) is refused by name. Content may be missing or null only where the
message has ``tool_calls``.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_UTF_16_OR_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
EXAMPLE = '{"prompt": "...", "answer": "..."}'


def is_json(path: str | Path) -> bool:
    """Whether the name says JSON or JSON Lines, compressed or not."""
    return Path(str(path).removesuffix(".gz")).suffix in {".json", ".jsonl"}


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON or JSON Lines file, in order.

    Raises:
        ValueError: not UTF-8, not JSON, not an object, or damaged compression; names the line.
        OSError: the file cannot be opened.

    """
    try:
        with _open(Path(path)) as file:
            first = file.readline()
            _check_encoding(path, first)
            first = first.removeprefix(codecs.BOM_UTF8)
            if first.lstrip().startswith(b"["):
                yield from _array(path, first + file.read())
            else:
                yield from _lines(path, first, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a whole gzip file ({error}); compress or copy it again"
        ) from error


@contextmanager
def as_written(
    path: str | Path | None, check: Callable[[list[dict[str, Any]]], Any]
) -> Iterator[None]:
    """Where something fails on what `datasets` made of a JSON file, look at the file itself first.

    `datasets` names no line, and converts: beside a number it makes the text "2" a number too.

    Args:
        path: nothing more is done where this is no JSON file.
        check: raises ValueError, by row, for rows as they stand in the file.

    Raises:
        ValueError: of :func:`read_rows`, of no rows, or of ``check``; else what was raised.

    """
    try:
        yield
    except Exception:
        if path is not None and is_json(path) and Path(path).is_file():
            rows = list(read_rows(path))
            if not rows:
                raise ValueError(f"{path} has no rows; at least one is needed") from None
            check(rows)
        raise


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _check_encoding(path: str | Path, first: bytes) -> None:
    if first.startswith(_UTF_16_OR_32) or b"\0" in first:
        raise ValueError(
            f"{path}, line 1 is not UTF-8 text but looks like UTF-16; convert the file: "
            f"iconv -f UTF-16 -t UTF-8 {path} > utf8.jsonl"
        )


def _lines(path: str | Path, first: bytes, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    line, number = first, 1
    while line:
        if line.strip():
            where = f"{path}, line {number}"
            hint = "; a JSONL file has one object a line"
            if not line.endswith(b"\n"):
                hint = ", and the last of the file: was it cut off?"
            yield _object(_parsed(line, where, hint), where)
        line, number = file.readline(), number + 1


def _array(path: str | Path, content: bytes) -> Iterator[dict[str, Any]]:
    items = _parsed(content, f"{path}, a JSON array,", "; is the file whole?")
    for index, item in enumerate(items):
        yield _object(item, f"{path}, row {index}")


def _parsed(content: bytes, where: str, hint: str) -> Any:
    try:
        return json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 text ({error.reason} at byte {error.start}); save the file as "
            "UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"{where} is not JSON ({error.msg}{place}){hint}") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:  # Python refuses to read an integer of 4,300 digits
        raise ValueError(f"{where} cannot be read ({error}); write the number as text") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(
        f"{where} is a JSON {type(value).__name__}; each must be an object such as {EXAMPLE}"
    )


def text_messages(messages: Sequence[Any], where: str) -> list[dict[str, Any]]:
    """The messages of a conversation, or of a completion, with text as content.

    Raises:
        ValueError: no messages, a message without role or content, or content that is no text;
            ``where`` names file, row and column.

    """
    if not messages:
        raise ValueError(f"{where} is empty (no messages); remove the row or fill it in")
    return [_checked(message, f"{where}, message {n}") for n, message in enumerate(messages)]


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
        check_unicode(content or "", where)
        return dict(fields)
    if isinstance(content, Sequence) and content:
        text = "".join(_text_of(part, where) for part in content)
        check_unicode(text, where)
        return {**fields, "content": text}
    raise ValueError(
        f"{where} has {_named(content)} as content; content is text or a list of text parts"
    )


def check_unicode(text: str, where: str) -> None:
    """Raise ValueError for half a surrogate pair, which JSON can hold and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds {text[error.start]!a}, half of a character that was cut in two; "
            "mend the text or remove the row"
        ) from error


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
