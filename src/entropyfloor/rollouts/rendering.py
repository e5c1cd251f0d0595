"""A prompt row to token ids: the one place, for screening, the floor's probe, RL and coupling.

A conversation goes through the tokenizer's chat template, with

    tools                   of the row: JSON schemas, a list or its JSON text
    chat_template_kwargs    of the row: variables of the template, ``{"enable_thinking": false}``

and with the generation prompt behind it; one that ends with an assistant message is continued. Text
is tokenised as it is. Columns and ids are those of trl's ``SFTTrainer`` and ``GRPOTrainer``, but
for three things: trl 1.16's GRPO does not read the two columns, it closes an assistant message that
ends a prompt, and it keeps an end-of-sequence token that a tokenizer appends to a text prompt (SFT
trains without it). ``entropyfloor.rl.prompt_rows`` makes GRPO and GFT render as is done here.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from entropyfloor.rollouts.prompts import PromptSet

_log = logging.getLogger(__name__)


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


def encode_prompts(prompts: PromptSet, tokenizer: Any, *, where: str) -> list[list[int]]:
    """Token ids of every prompt; ``where`` says whose tokenizer it is.

    Raises:
        ValueError: a conversation for a tokenizer without chat template, or one that the template
            refuses, or a prompt of no tokens; named by row.

    """
    if prompts.conversational and not tokenizer.chat_template:
        raise ValueError(
            f"{prompts.source} holds conversations but the tokenizer of {where} has no chat "
            "template; give plain prompts, or save a tokenizer with a chat template beside the "
            "checkpoint"
        )
    encoded: list[list[int]] = []
    for index, row in enumerate(prompts.rows):
        with template_refusals(f"{prompts.source}, row {index}", where):
            ids = encode_row(row, tokenizer, where=where)
        if not ids:
            raise ValueError(
                f"{prompts.source}, row {index}: the tokenizer of {where} turns it into no tokens"
            )
        encoded.append(ids)
    return encoded


def encode_row(row: Mapping[str, Any], tokenizer: Any, *, where: str) -> list[int]:
    """Token ids of one row's prompt; ``where`` says whose tokenizer it is, for a warning."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        end = tokenizer.eos_token_id
        if len(ids) > 1 and ids[-1] == end and _appends_end(tokenizer):
            _warn_of_end(where)
            del ids[-1]
        return ids
    continues = prompt[-1]["role"] == "assistant"
    return encode_messages(
        prompt,
        row,
        tokenizer,
        add_generation_prompt=not continues,
        continue_final_message=continues,
    )


def encode_messages(
    messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], tokenizer: Any, **options: Any
) -> list[int]:
    """Token ids of a conversation, with the tools and the template's variables of its row."""
    # A column of Arrow gives each row the names of all rows, and None where the row has none.
    variables = {
        name: value
        for name, value in (row.get("chat_template_kwargs") or {}).items()
        if value is not None
    }
    tools = row.get("tools")
    rendered = tokenizer.apply_chat_template(
        list(messages),
        tools=(json.loads(tools) if isinstance(tools, str) else tools) or None,
        tokenize=True,
        return_dict=True,
        **{**options, **variables},
    )
    return list(rendered["input_ids"])


def rendered_text(ids: Sequence[int], tokenizer: Any) -> str:
    """What the model reads, special tokens included."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _appends_end(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


@lru_cache(maxsize=64)  # once for a model, not once for a row
def _warn_of_end(where: str) -> None:
    _log.warning(
        "the tokenizer of %s appends its end-of-sequence token to prompts; it is left out, as a "
        "model that has read it takes the text to be over. Switch it off (add_eos_token=False)",
        where,
    )
