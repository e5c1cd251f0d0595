"""Rows of supervised fine-tuning, checked and named before a model is loaded.

Formats are trl's: ``messages`` (or ``conversations``), ``prompt`` with ``completion``, a column of
text, or ``input_ids``. Content in text parts is joined, see `entropyfloor.rollouts.reading`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, concatenate_datasets

from entropyfloor.rollouts.prompts import row_with_chat_options
from entropyfloor.rollouts.reading import as_written, is_json, read_rows, text_messages
from entropyfloor.rollouts.rendering import encode_messages, template_refusals

logger = get_logger(__name__)

_RENDERED = ("tools", "chat_template_kwargs")  # columns that a chat template reads
_SEEN = ("image", "images")  # rows of a vision-language model: its processor reads the parts


def checked_rows(
    dataset: Any,
    name: str,
    *,
    text_field: str = "text",
    tokenizer: Any = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The dataset, with text content, or ValueError by row.

    Args:
        dataset: ``datasets.Dataset``, a list of rows, or an ``IterableDataset``, whose rows are
            checked as they come.
        name: file, for errors.
        text_field: column of text.
        tokenizer: whose chat template the conversations are to pass; not tried when left out, nor
            on a streamed set.
        options: of ``row_with_chat_options``, with which they will be rendered.

    Raises:
        ValueError: no rows, no column to train on, a value of the wrong kind, a conversation that
            the template refuses.

    """
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{name} has no rows; at least one is needed to train on")
    columns = _columns(first, name, text_field)
    if not columns:
        return dataset
    streamed = not hasattr(dataset, "__len__")
    if streamed:
        return dataset.map(
            lambda row, index: _checked(row, columns, f"{name}, row {index}"), with_indices=True
        )
    joins = False
    by_roles: dict[tuple[str, ...], tuple[int, Mapping[str, Any]]] = {}
    read = [*columns, *(column for column in _RENDERED if column in first)]
    rows = dataset if isinstance(dataset, list) else dataset.select_columns(read)
    for index, row in enumerate(rows):
        checked = _checked(row, columns, f"{name}, row {index}")
        joins = joins or checked != row
        if tokenizer is not None:
            rendered = row_with_chat_options(checked, **(options or {}))
            roles = tuple(message["role"] for message in _conversation(rendered, columns))
            by_roles.setdefault(roles, (index, rendered))
    for index, row in by_roles.values():
        _try_template(row, columns, f"{name}, row {index}", tokenizer)
    if not joins:
        return dataset
    if isinstance(dataset, list):
        return [_checked(row, columns, name) for row in dataset]
    return dataset.map(lambda row: _checked(row, columns, name))


def checked_file(dataset: Any, path: str | None, name: str, **options: Any) -> Any:
    """:func:`checked_rows` of what `datasets` made of a file, with text as it stands in the file.

    Where a column mixes text with lists or numbers, datasets 5.2 keeps it as JSON and turns the
    text "2" into the number 2.

    Args:
        dataset: read from ``path``.
        path: a JSON file, or anything else (a hub id), of which nothing is known here.
        name: for errors.
        **options: of :func:`checked_rows`.

    """
    with as_written(path, partial(checked_rows, name=name, **options)):
        features = getattr(dataset, "features", None) or {}
        mixed = [column for column, feature in features.items() if "Json(" in repr(feature)]
        if path is None or not (mixed and is_json(path) and hasattr(dataset, "__len__")):
            return checked_rows(dataset, name, **options)
        rows = checked_rows(list(read_rows(path)), name, **options)
        # Text beside conversations becomes conversations where --chat asks for it.
        rows = [row_with_chat_options(row, **(options.get("options") or {})) for row in rows]
        read = _columns(rows[0], name, options.get("text_field", "text"))
        texts = {column: [row[column] for row in rows] for column in read if column in mixed}
        for column, values in texts.items():
            _check_one_kind(column, values, name)
        others = dataset.remove_columns(list(texts))
        as_text = Dataset.from_dict(texts)
        parts = [part for part in (others, as_text) if part.column_names]
        return concatenate_datasets(parts, axis=1)


def _check_one_kind(column: str, values: list[Any], name: str) -> None:
    """Raise ValueError, by row, for a column of texts and conversations: a table has one kind."""
    plain = [isinstance(value, str) for value in values]
    if any(plain) and not all(plain):
        raise ValueError(
            f"{name}, row {plain.index(True)}: {column!r} is text, and a conversation in row "
            f"{plain.index(False)}; send text as messages too (--chat), or train on one kind"
        )


def _columns(row: Mapping[str, Any], name: str, text_field: str) -> list[str]:
    """The columns that are trained on; none where they are not ours to check."""
    if "input_ids" in row or "conversations" in row or any(column in row for column in _SEEN):
        return []
    for columns in (["prompt", "completion"], ["messages"], [text_field]):
        if all(column in row for column in columns):
            return columns
    raise ValueError(
        f"{name} has the columns {', '.join(map(repr, row)) or 'of nothing'} and none to train on: "
        f"name one 'messages', two 'prompt' and 'completion', or one {text_field!r} "
        "(--dataset_text_field)"
    )


def _checked(row: Mapping[str, Any], columns: list[str], where: str) -> dict[str, Any]:
    normalised = dict(row)
    for column in columns:
        value = row.get(column)
        if isinstance(value, list):
            normalised[column] = text_messages(value, f"{where}, {column}")
        elif not isinstance(value, str) or column == "messages":
            raise ValueError(
                f"{where} has {value!r:.40} ({type(value).__name__}) as {column!r}; it must be "
                f"{'a list of messages' if column == 'messages' else 'text or a list of messages'}"
            )
    if len({isinstance(normalised[column], list) for column in columns}) > 1:
        raise ValueError(f"{where}: prompt and completion must both be text, or both messages")
    return normalised


def row_ids(row: Mapping[str, Any], tokenizer: Any, text_field: str) -> list[int]:
    """Token ids of a whole row; none of a row that is not ours to read."""
    columns = _columns(row, "a row", text_field)
    if messages := _conversation(row, columns):
        return encode_messages(messages, row, tokenizer)
    return list(tokenizer("".join(row[column] for column in columns))["input_ids"])


def _conversation(row: Mapping[str, Any], columns: list[str]) -> list[Any]:
    """All messages of a row; none where it is text."""
    values = [row[column] for column in columns]
    return [message for value in values if isinstance(value, list) for message in value]


def _try_template(row: Mapping[str, Any], columns: list[str], where: str, tokenizer: Any) -> None:
    """Render one row of each sequence of roles: what templates refuse is roles."""
    messages = _conversation(row, columns)
    if not messages:
        return
    name = getattr(tokenizer, "name_or_path", "") or "the model"
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where} is a conversation but the tokenizer of {name} has no chat template; give "
            "plain text, or --chat_template_path"
        )
    with template_refusals(where, name):
        encode_messages(messages, row, tokenizer)


def check_rows_left(before: Any, after: Any, args: Any, name: str) -> None:
    """Say how many rows trl dropped, which it does in silence; ValueError if it was all of them.

    Args:
        before: the dataset as given, or a dict of several.
        after: the trainer's own, tokenised.
        args: its ``SFTConfig``.
        name: of the dataset, for messages.

    """
    if isinstance(after, Mapping) and isinstance(before, Mapping):
        for key, dataset in after.items():
            check_rows_left(before.get(key), dataset, args, f"{name} {key!r}")
        return
    if not (hasattr(before, "__len__") and hasattr(after, "__len__")):
        return
    dropped = len(before) - len(after)
    why = (
        f"no scored token is left of them when they are cut to max_length = {args.max_length} "
        f"({args.truncation_mode}): raise max_length, or shorten the prompts"
    )
    if not len(after):
        raise ValueError(f"{name} has no rows left to train on: all {dropped} were dropped; {why}")
    if dropped > 0 and not args.packing:
        logger.warning(f"{name}: {dropped} of {len(before)} rows were dropped; {why}")


def check_metric_for_best_model(args: Any, evaluation: Any) -> None:
    """ValueError where the best of several evaluation sets is asked for and none is named."""
    metric = args.metric_for_best_model
    if metric is None or not isinstance(evaluation, Mapping):
        return
    starts = [f"eval_{name}_" for name in evaluation]
    if not f"eval_{metric.removeprefix('eval_')}".startswith(tuple(starts)):
        raise ValueError(
            f"metric_for_best_model is {metric!r} and there are several evaluation sets; name one: "
            f"{', '.join(f'{start}loss' for start in starts)}"
        )
