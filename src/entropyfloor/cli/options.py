"""Options that several verbs share, so that they read and mean the same."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropyfloor.rollouts.prompts import PromptSet

Target = Any  # an ArgumentParser or one of its groups


def add_prompts(parser: Target, *, required: bool, size: int = 24) -> None:
    """``--prompts`` and how they are rendered; read them with :func:`chosen_prompts`."""
    parser.add_argument(
        "--prompts",
        required=required,
        metavar="SPEC",
        help="JSONL file, directory written by datasets' save_to_disk, or "
        f"'reasoning_gym:TASK?size={size}&seed=7'; rows need a column 'prompt'",
    )
    parser.add_argument(
        "--chat", action="store_true", help="send plain prompts as a user message (chat template)"
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="system message of conversations that have none"
    )
    parser.add_argument(
        "--chat-template-kwargs",
        "--chat_template_kwargs",
        type=_json_object,
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'; a row's "
        "column chat_template_kwargs wins",
    )


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


_json_object.__name__ = "JSON object"  # how argparse names it in a usage error


def chosen_prompts(arguments: argparse.Namespace, spec: str | None = None) -> "PromptSet":
    """The prompts that :func:`add_prompts`' options name, or others, rendered as they are."""
    from entropyfloor.rollouts.prompts import load_prompts

    return load_prompts(spec or arguments.prompts).with_chat_options(
        chat=arguments.chat,
        system=arguments.system,
        chat_template_kwargs=arguments.chat_template_kwargs,
    )


def add_dry_run(parser: Target) -> None:
    """``--dry-run``; see ``entropyfloor.cli.dry_run``."""
    parser.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="check and print what would be done, the first prompt as the model reads it "
        "included, and stop before weights are loaded",
    )


def add_sampling(parser: Target) -> None:
    """``--max-new-tokens``, ``--temperature``, ``--top-p`` and ``--top-k``: GRPO's defaults."""
    parser.add_argument("--max-new-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--top-p", type=float, default=1.0, help="default: %(default)s, off")
    parser.add_argument("--top-k", type=int, default=0, help="default: %(default)s, off")


def add_batches(parser: Target) -> None:
    """``--seed`` and ``--batch-size``."""
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        help="rollouts at once; changes speed and memory only (default: %(default)s)",
    )


def add_loading(parser: Target) -> None:
    """``--dtype``, ``--device`` and ``--trust-remote-code``."""
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto keeps the checkpoint's; on a CPU half precision is computed in float32",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is one)")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code that travels with a checkpoint",
    )


def add_engine(parser: Target) -> None:
    """``--engine``."""
    parser.add_argument(
        "--engine",
        default="transformers",
        choices=["transformers", "vllm", "auto"],
        help="what draws rollouts; auto is vllm where it is installed and can, on a GPU "
        "(default: %(default)s)",
    )
