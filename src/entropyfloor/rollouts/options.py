"""What every verb that draws rollouts is told, typed once: its flags, and arguments of the API.

The command's parser reads these dataclasses, and functions such as ``screen`` take their instances.
Nothing here needs torch, so that ``--help`` does not wait for it.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from inspect import getdoc
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from entropyfloor.rollouts.prompts import PromptSet, load_prompts

T = TypeVar("T")


def flag(default: Any, help: str, **metadata: Any) -> Any:
    """A field with what ``--help`` says of it; further metadata is argparse's."""
    told = {"help": help, **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=told)
    return field(default=default, metadata=told)


def described(kind: type[T]) -> type[T]:
    """End the docstring of a dataclass of flags with what ``--help`` says of each: written once."""
    said = (f"    {part.name}: {part.metadata['help']}" for part in fields(kind))  # type: ignore[arg-type]
    kind.__doc__ = "\n".join([f"{getdoc(kind)}\n", "Attributes:", *said, ""])
    return kind


def json_object(value: dict[str, Any] | str | None, flag: str) -> dict[str, Any] | None:
    """What a flag that takes a JSON object was given, read.

    Raises:
        ValueError: text that is no JSON object.

    """
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        read = value
    if read is not None and not isinstance(read, dict):
        raise ValueError(
            f"{flag} is no JSON object: {value}; give one such as '{{\"enable_thinking\": false}}'"
        )
    return read


def check_known(settings: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ValueError for a key that is not known, with the nearest that is."""
    names = sorted(known)
    for key in settings:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            allowed = f" (allowed: {', '.join(names)})" if len(names) < 20 else ""
            raise ValueError(f"{where} has no setting {key!r}{hint}{allowed}")


def arranged(flat: Mapping[str, Any], **kinds: type) -> dict[str, Any]:
    """Keyword arguments of a function that takes dataclasses, from one flat mapping.

    ``arranged({"seed": 1, "reward": "math"}, sampling=Sampling)`` gives ``{"sampling":
    Sampling(seed=1), "reward": "math"}``; what no dataclass has stays as it is.
    """
    rest, records = dict(flat), {}
    for keyword, kind in kinds.items():
        told = {part.name: rest.pop(part.name) for part in fields(kind) if part.name in rest}
        if told:
            records[keyword] = kind(**told)
    return {**rest, **records}


@described
@dataclass(frozen=True)
class Sampling:
    """How rollouts are drawn. The defaults are what GRPO samples with: T = 1, no top-p, no top-k.

    ``batch_size`` changes speed and memory, not the rollouts, and more ``num_samples`` extend what
    there is.

    Raises:
        ValueError: a number out of its range.

    """

    _argument_group_name: ClassVar[str] = "rollouts (the defaults are what GRPO samples with)"
    num_samples: int = flag(8, "rollouts per prompt")
    max_new_tokens: int = flag(256, "length limit of a rollout; one that hits it is truncated")
    temperature: float = flag(1.0, "of sampling; entropies are always those at temperature 1")
    top_p: float = flag(1.0, "nucleus; 1 is off")
    top_k: int = flag(0, "most probable tokens to sample from; 0 is off")
    batch_size: int = flag(64, "rollouts at once; changes speed and memory only")
    seed: int = flag(0, "of the rollouts, and of the bootstrap")
    engine: Literal["transformers", "vllm", "auto"] = flag(
        "transformers", "what draws; auto is vllm where it is installed and can, on a GPU"
    )

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if not 0.0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be positive and finite; got {self.temperature} (GRPO samples "
                "at 1.0)"
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1], 1 turns it off; got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or positive; got {self.top_k}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or positive; got {self.seed}")


@described
@dataclass(frozen=True)
class Loading:
    """How checkpoints are loaded; see ``entropyfloor.models.checkpoints.load_checkpoint``."""

    _argument_group_name: ClassVar[str] = "loading"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = flag(
        "auto", "auto keeps the checkpoint's; on a CPU half precision is computed in float32"
    )
    device: str | None = flag(None, "such as cpu or cuda:1 (default: CUDA if there is one)")
    trust_remote_code: bool = flag(False, "run model code that travels with a checkpoint")
    engine_args: dict[str, Any] | str | None = flag(
        None,
        "further arguments of vllm.LLM, such as '{\"enable_chunked_prefill\": false}'",
        metavar="JSON",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine_args", json_object(self.engine_args, "--engine_args"))


@described
@dataclass(frozen=True)
class Output:
    """Where results go, and whether the way there is shown."""

    _argument_group_name: ClassVar[str] = "output"
    output_dir: Path | str | None = flag(
        None,
        "gets reports and, batch by batch, rollouts; given again after a kill, a run goes on where "
        "it was",
        metavar="DIR",
    )
    progress: bool = flag(True, "show a progress bar")

    @property
    def folder(self) -> Path:
        """``output_dir``, where one must be given.

        Raises:
            ValueError: it is not.

        """
        if self.output_dir is None:
            raise ValueError("output_dir is missing: a folder for rollouts and results")
        return Path(self.output_dir)


@described
@dataclass
class ChatOptions:
    """How prompts are rendered, and ``dry_run``, which shows them; of training verbs too."""

    chat: bool = flag(False, "send plain prompts as a user message (chat template)")
    system: str | None = flag(None, "system message of conversations that have none")
    dry_run: bool = flag(
        False,
        "check and print what would be done, the first prompt as the model reads it included, and "
        "stop before weights are loaded",
    )


@described
@dataclass
class TemplateOptions(ChatOptions):
    """And the variables of the chat template, which trl's own configurations of RL have.

    Raises:
        ValueError: text that is no JSON object.

    """

    chat_template_kwargs: dict[str, Any] | str | None = flag(
        None,
        "variables of the chat template, such as '{\"enable_thinking\": false}'; a row's column "
        "chat_template_kwargs wins",
        metavar="JSON",
    )

    def __post_init__(self) -> None:
        self.chat_template_kwargs = json_object(self.chat_template_kwargs, "--chat_template_kwargs")


@described
@dataclass
class PromptOptions(TemplateOptions):
    """Prompts, how they are rendered, and what scores the answers."""

    _argument_group_name: ClassVar[str] = "prompts and reward"
    prompts: str | None = flag(
        None,
        "JSONL file, directory written by datasets' save_to_disk, or "
        "'reasoning_gym:TASK?size=24&seed=7'; rows need a column 'prompt'",
        metavar="SPEC",
    )
    reward: str | None = flag(
        None,
        "exact_match, math, reasoning_gym, unit_tests or module:function; without one only entropy "
        "is measured",
        metavar="NAME",
    )

    def load(self, spec: str | None = None) -> PromptSet:
        """The prompts, or those of another spec, rendered as the options say."""
        spec = spec or self.prompts
        if spec is None:
            raise ValueError("--prompts is missing: a JSONL file, a folder or reasoning_gym:TASK")
        return load_prompts(spec).with_chat_options(
            chat=self.chat,
            system=self.system,
            chat_template_kwargs=self.chat_template_kwargs,  # type: ignore[arg-type]
        )
