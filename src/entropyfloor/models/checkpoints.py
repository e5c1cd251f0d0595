"""Load a checkpoint for measuring: safetensors only, and no code of its own unless asked for."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from entropyfloor.models.checkpoint_sources import (
    CheckpointSource,
    check_checkpoint,
    weight_files,
)

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
# Input embeddings as transformers' families name them, plain, in an adapter, or resized by one.
_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)"
    r"(\.token_adapter|\.base_layer|\.modules_to_save|\.original_module)*\.weight$"
)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A causal language model in evaluation mode, with its tokenizer."""

    name: str  # what reports and errors call it
    path: str  # what the user gave
    model: Any  # a transformers model, or a PEFT model around one (the adapter is not merged)
    tokenizer: Any  # the checkpoint's own; for an adapter without one, its base's

    @property
    def inner_model(self) -> Any:
        """The transformers model, inside PEFT's wrapper if there is one."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a sequence: the generation config's and the tokenizer's."""
        configured = self.inner_model.generation_config.eos_token_id
        ids = list(configured) if isinstance(configured, list | tuple) else [configured]
        if self.tokenizer.eos_token_id is not None:
            ids = [*ids, self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(int(token) for token in ids if token is not None))

    @property
    def pad_token_id(self) -> int:
        """Fills the left of short rows, masked out; any token does if none is named."""
        if self.tokenizer.pad_token_id is not None:
            return int(self.tokenizer.pad_token_id)
        return self.eos_token_ids[0] if self.eos_token_ids else 0

    @property
    def pads(self) -> bool:
        """Whether rows of different lengths may share a batch.

        Prompt learning (PEFT 0.21) drops the position ids that left padding needs: the distance
        between virtual tokens and prompt would count the padding.
        """
        adapter = getattr(self.model, "active_peft_config", None)
        return adapter is None or not adapter.is_prompt_learning

    @contextmanager
    def generating(self, defaults: GenerationConfig) -> Iterator[None]:
        """Set the model up for ``generate``, and put everything back afterwards.

        ``generate`` fills every field that its caller left open from the model's generation
        config, which may hold a repetition penalty, suppressed tokens or a forced length: the
        rollouts would not be the policy's. ``defaults`` takes its place.

        A mixture of experts that was trained with its auxiliary loss still asks for router logits,
        and its load-balancing loss fails on a cached step (transformers 5.23).
        """
        holders = [self.model] if self.model is self.inner_model else [self.model, self.inner_model]
        before = [holder.generation_config for holder in holders]
        config = self.inner_model.config.get_text_config()
        router_logits = getattr(config, "output_router_logits", None)
        try:
            for holder in holders:
                holder.generation_config = defaults
            if router_logits:
                config.output_router_logits = False
            yield
        finally:
            for holder, original in zip(holders, before, strict=True):
                holder.generation_config = original
            if router_logits:
                config.output_router_logits = router_logits


def load_checkpoint(
    path_or_id: str | Path | CheckpointSource,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> LoadedCheckpoint:
    """Load one checkpoint in evaluation mode.

    Args:
        path_or_id: model directory, PEFT adapter directory, hub id, or what ``find_checkpoints``
            returned.
        dtype: ``"auto"`` keeps the checkpoint's, but computes in float32 what is stored in half
            precision and runs on a CPU; else float32, bfloat16 or float16.
        device: the first CUDA device if there is one, else the CPU, when left out.
        trust_remote_code: run model code that travels with the checkpoint.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: pickled weights, weights that do not fit the configuration, no tokenizer,
            unknown dtype or device.

    """
    torch_dtype = resolve_dtype(dtype)
    torch_device = resolve_device(device)
    source = (
        path_or_id
        if isinstance(path_or_id, CheckpointSource)
        else check_checkpoint(path_or_id, trust_remote_code=trust_remote_code)
    )
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    model = _load_model(source.base or source, torch_dtype, trust_remote_code=trust_remote_code)
    if torch_dtype == "auto" and torch_device.type == "cpu" and _is_half(model):
        # Most CPUs generate in bfloat16 many times slower, and every half-precision weight is
        # exactly a float32 number.
        model = model.float()
    if source.base is not None:
        model = _load_adapter(model, source)
    model = model.to(torch_device).eval()
    return LoadedCheckpoint(source.name, source.path, model, tokenizer)


def load_tokenizer(source: CheckpointSource, *, trust_remote_code: bool = False) -> Any:
    """Load the checkpoint's tokenizer; for an adapter without one, its base's.

    Raises:
        ValueError: there is none.

    """
    directory = tokenizer_directory(source)
    try:
        return AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source.path} has no tokenizer that can be loaded ({reason}); save it beside the "
            "weights with tokenizer.save_pretrained(directory)"
        ) from error


def tokenizer_directory(source: CheckpointSource) -> Path:
    """Where the tokenizer lies: with the checkpoint; for an adapter without one, with its base."""
    if source.base is not None and not (source.directory / "tokenizer_config.json").is_file():
        return source.base.directory
    return source.directory


def context_length(source: CheckpointSource, *, trust_remote_code: bool = False) -> int | None:
    """Positions for prompt and completion together, or None if the configuration does not say.

    Raises:
        ValueError: a configuration that transformers cannot read.

    """
    config = _configuration(source.base or source, trust_remote_code)
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int) or length <= 0:
        return None
    return length - source.virtual_tokens


def _configuration(source: CheckpointSource, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(
            str(source.directory), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{source.path} has a configuration that cannot be read: {error}"
        ) from error


def vocabulary_size(source: CheckpointSource) -> int | None:
    """Rows of the input embeddings, or None if they go by a name that is not known here.

    Read from the weights' headers, those of an adapter first: training may have resized them.
    """
    resized = _embedding_rows(source, "adapter_model") if source.base is not None else None
    return resized or _embedding_rows(source.base or source, "model")


def _embedding_rows(source: CheckpointSource, stem: str) -> int | None:
    rows = []
    for file in weight_files(source.directory, stem):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if _EMBEDDINGS.search(name)]  # noqa: SIM118
            rows += [weights.get_slice(name).get_shape()[0] for name in names]
    return max(rows, default=None)


def check_token_ids(encoded: Iterable[Sequence[int]], source: CheckpointSource, what: str) -> None:
    """Raise ValueError, by row, for a token without an embedding; ``what`` names the rows."""
    rows = vocabulary_size(source)
    for index, ids in enumerate(encoded):
        largest = max(ids, default=0)
        if rows is not None and largest >= rows:
            raise ValueError(
                f"{what}, row {index}: the tokenizer of {source.path} gives the token number "
                f"{largest}, and the model has embeddings for {rows} tokens only: the tokenizer is "
                "larger than the model. Save the tokenizer that the model was trained with beside "
                "it, or resize the model's embeddings (resize_token_embeddings) and train them"
            )


def resolve_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """``"auto"`` or a torch dtype; ValueError for anything but float32, bfloat16 and float16."""
    if dtype == "auto" or dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    raise ValueError(f"unknown dtype {dtype!r}; give auto, {', '.join(DTYPES)}")


def dtype_record(dtype: str | torch.dtype, device: torch.device) -> str:
    """How a run record writes what :func:`load_checkpoint` does with ``dtype``."""
    if dtype == "auto" and device.type == "cpu":
        return "auto (half precision computed in float32)"
    return str(dtype).removeprefix("torch.")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Check the device; None is the first CUDA device or else the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason})") from error
    return resolved


def _load_model(
    source: CheckpointSource, dtype: str | torch.dtype, *, trust_remote_code: bool
) -> Any:
    try:
        model, info = _model_class(source, trust_remote_code).from_pretrained(
            str(source.directory),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{source.path} cannot be loaded as a causal language model: {error}"
        ) from error
    absent = sorted(info["missing_keys"])
    if absent:  # transformers would go on with random numbers in their place
        raise ValueError(
            f"{source.path} lacks {len(absent)} of its model's weights, {absent[0]} among them; "
            "it is not a complete causal language model"
        )
    return model


def _model_class(source: CheckpointSource, trust_remote_code: bool) -> Any:
    """A causal language model; a vision-language model, read as one of text, where it is none."""
    # By name: looking a class up in the mappings themselves imports every family's configuration.
    kind = _configuration(source, trust_remote_code).model_type
    only_sees = (
        kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
        and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    )
    return AutoModelForImageTextToText if only_sees else AutoModelForCausalLM


def _check_head_is_there(base: Any, source: CheckpointSource, rows: int) -> None:
    """Refuse an adapter with new rows of the embeddings whose head's new rows were not saved."""
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if rows <= embeddings.num_embeddings or head.weight is embeddings.weight:
        return
    name = next(name for name, module in base.named_modules() if module is head)
    for file in weight_files(source.directory, "adapter_model"):
        with safe_open(file, "pt") as weights:
            if any(
                f".{name}." in key and key.endswith(".weight") and ".lora_" not in key
                for key in weights.keys()  # noqa: SIM118 - not a mapping
            ):
                return
    raise ValueError(
        f"the adapter {source.path} was trained with {rows} embeddings and its base has "
        f"{embeddings.num_embeddings}; it holds the new input embeddings but not the rows of "
        f"{name} that belong to them. Give the merged model (in training: merge_and_unload, "
        f"then save_pretrained), or train again with {name} in target_modules or modules_to_save"
    )


def _is_half(model: Any) -> bool:
    # Quantised weights are what they are: they cannot be cast.
    quantised = getattr(model, "is_quantized", False)
    return not quantised and model.dtype in (torch.bfloat16, torch.float16)


def _load_adapter(base: Any, source: CheckpointSource) -> Any:
    from peft import PeftModel

    rows = _embedding_rows(source, "adapter_model")
    if rows not in (None, base.get_input_embeddings().num_embeddings):
        # Training resized them (tokens were added, rows padded or cut off) and the adapter holds
        # all of them, so what stands in new rows here is of no account.
        _check_head_is_there(base, source, rows)
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        return PeftModel.from_pretrained(base, str(source.directory), is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"the adapter {source.path} does not fit its base "
            f"{source.base and source.base.path}: {error}"
        ) from error
