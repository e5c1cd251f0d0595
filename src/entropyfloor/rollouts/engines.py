"""What draws rollouts, transformers or vLLM, after all that can be checked without a model.

Whatever draws them, entropies are exact, at temperature 1 and over the whole vocabulary:
transformers' are recorded from the logits of each step. vLLM hands out the largest
log-probabilities only, so the checkpoint, loaded beside it, reads each finished rollout once more,
teacher-forced, through the same chunked head as held-out loss and KL. Reading is one forward pass;
generating, which vLLM makes fast, is hundreds of steps.

Every rollout has its own seed from (seed, prompt, sample). vLLM's tokens are not those of
transformers: the generators differ, and so do the last bits of the logits.
"""

import hashlib
import importlib.util
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from entropyfloor import __version__
from entropyfloor.models.checkpoint_sources import CheckpointSource, find_checkpoints
from entropyfloor.models.checkpoints import (
    LoadedCheckpoint,
    check_token_ids,
    context_length,
    dtype_record,
    load_checkpoint,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    tokenizer_directory,
)
from entropyfloor.rollouts.options import Loading, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.rendering import encode_prompts, rendered_text
from entropyfloor.rollouts.rewards import RewardFunction, check_references, reward_name
from entropyfloor.rollouts.rollouts import (
    Rollout,
    check_lengths,
    finished_rollout,
    generate_rollouts,
    request_batches,
    until_end,
)
from entropyfloor.rollouts.teacher_forced import (
    Completion,
    check_held_out,
    encode_held_out,
    token_entropies,
)

# Files of a checkpoint that cannot belong to its tokenizer, and are large.
_WEIGHTS = {".safetensors", ".pt", ".pth", ".bin", ".gguf", ".h5", ".msgpack"}


@dataclass(frozen=True)
class Task:
    """One checkpoint, checked and tokenised, waiting to be loaded."""

    source: CheckpointSource  # where it is
    encoded: list[list[int]]  # token ids per prompt
    held_out: tuple[Completion, ...]  # held-out completions in its tokens; empty without any
    example: str = ""  # the first prompt as the model reads it, special tokens included


def prepare(
    checkpoints: Sequence[str | Path],
    prompts: PromptSet,
    held_out: PromptSet | None,
    *,
    max_new_tokens: int,
    trust_remote_code: bool,
) -> list[Task]:
    """Find and tokenise; everything that a checkpoint can get wrong before its weights are read.

    Raises:
        ValueError: no tokenizer, no chat template, prompts or completions that exceed the context.
        FileNotFoundError: no such checkpoint.

    """
    tasks = []
    # Checkpoints of one run have one tokenizer: its work is done once.
    known: dict[str, tuple[list[list[int]], tuple[Completion, ...], str]] = {}
    for source in find_checkpoints(checkpoints, trust_remote_code=trust_remote_code):
        digest = _tokenizer_digest(source)
        if digest not in known:
            tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
            encoded = encode_prompts(prompts, tokenizer, where=source.path)
            completions: tuple[Completion, ...] = ()
            if held_out is not None:
                prefixes = encode_prompts(held_out, tokenizer, where=source.path)
                completions = tuple(encode_held_out(held_out, prefixes, tokenizer))
            known[digest] = encoded, completions, rendered_text(encoded[0], tokenizer)
        encoded, completions, example = known[digest]
        check_token_ids(encoded, source, prompts.source)
        rows = [(*row.prompt_ids, *row.ids) for row in completions]
        if held_out is not None:
            check_token_ids(rows, source, held_out.source)
        context = context_length(source, trust_remote_code=trust_remote_code)
        check_lengths(
            encoded, context_length=context, max_new_tokens=max_new_tokens, where=source.path
        )
        if held_out is not None and context is not None:
            row, most = max(enumerate(map(len, rows)), key=lambda pair: pair[1])
            if most > context:
                raise ValueError(
                    f"{held_out.source}, row {row}: prompt and completion have {most} tokens, "
                    f"more than the context of {source.path}, {context}: shorten or drop the row"
                )
        tasks.append(Task(source, encoded, completions, example))
    return tasks


def versions() -> dict[str, str]:
    """Of what numbers depend on, for reports."""
    return {
        "entropyfloor": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _tokenizer_digest(source: CheckpointSource) -> str:
    """Changes with anything that a tokenizer is built from (``config.json`` names its class)."""
    digest = hashlib.sha256()
    for file in sorted(tokenizer_directory(source).glob("*")):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name != "trainer_state.json":
            digest.update(f"{file.name}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


ENGINES = ("transformers", "vllm", "auto")
# Of the GPU, for vLLM's weights and cache; the rest is for the checkpoint that reads rollouts.
_MEMORY_SHARE = 0.6
# Arguments of vllm.LLM that say which model draws, and that the one which reads it must share.
_FIXED = ("model", "tokenizer", "dtype", "load_format", "trust_remote_code")

# One checkpoint, ready to generate this process's share of the requested rollouts, a batch at a
# time: token ids per prompt, (prompt index, sample index) of every rollout wanted, how, with whom.
Engine = Callable[
    [Sequence[Sequence[int]], Sequence[tuple[int, int]], Sampling, Processes],
    Iterator[list[Rollout]],
]


def choose_engine(
    engine: str,
    *,
    sources: Sequence[CheckpointSource],
    device: torch.device,
    processes: Processes,
) -> str:
    """``transformers`` or ``vllm``; ``auto`` takes vLLM where it can do this screening on a GPU.

    Raises:
        ValueError: unknown engine, or vLLM where it is not installed or cannot do it.

    """
    if engine not in ENGINES:
        raise ValueError(f"unknown engine {engine!r}; give one of {', '.join(ENGINES)}")
    if engine == "transformers":
        return engine
    against = _against_vllm(sources, device, processes)
    if engine == "auto":
        return "transformers" if against or device.type != "cuda" else "vllm"
    if against:
        raise ValueError(f"the engine vllm cannot be used: {against}, or use transformers")
    return engine


def _against_vllm(
    sources: Sequence[CheckpointSource], device: torch.device, processes: Processes
) -> str:
    """Why vLLM cannot do it, and what to do; empty if it can."""
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed; pip install vllm"
    adapters = [source.path for source in sources if source.base is not None]
    if adapters:
        return (
            f"{adapters[0]} is an adapter; merge it into its base first (peft: merge_and_unload, "
            "then save_pretrained)"
        )
    if processes.count > 1:
        return f"it runs in one process, and {processes.count} were started; start one"
    if device.index not in (None, 0):
        return (
            f"it takes the first GPU that it sees, not {device}; set CUDA_VISIBLE_DEVICES="
            f"{device.index}"
        )
    return ""


@dataclass(frozen=True)
class ReadyToDraw:
    """Checkpoints that were checked and tokenised, and what draws from them."""

    tasks: list[Task]  # a checkpoint each
    device: torch.device  # that they are loaded to
    settings: dict[str, Any]  # sampling, reward, dtype, device and engine; JSON data for reports
    load: Callable[[CheckpointSource], LoadedCheckpoint]  # loads a checkpoint
    trust_remote_code: bool  # run model code that travels with a checkpoint

    def engine(self, task: Task, checkpoint: Callable[[], LoadedCheckpoint]) -> Engine:
        """The engine of one checkpoint, which ``checkpoint`` gives loaded."""
        loaded = checkpoint()
        if self.settings["engine"] == "transformers":
            return partial(generate_rollouts, loaded)
        from vllm import LLM

        llm = LLM(
            model=str(task.source.directory),
            tokenizer=str(task.source.directory),
            dtype=str(loaded.inner_model.dtype).removeprefix("torch."),
            load_format="safetensors",
            trust_remote_code=self.trust_remote_code,
            # The checkpoint's own generation config may hold a repetition penalty, or top-p.
            **{
                "generation_config": "vllm",
                "gpu_memory_utilization": _MEMORY_SHARE,
                "max_model_len": max(map(len, task.encoded)) + self.settings["max_new_tokens"],
                **self.settings.get("engine_args", {}),
            },
        )
        return partial(_generate_with_vllm, llm, loaded)


def ready_to_draw(
    checkpoints: Sequence[str | Path],
    prompts: PromptSet,
    reward: RewardFunction | None,
    *,
    held_out: PromptSet | None = None,
    sampling: Sampling,
    loading: Loading,
    processes: Processes,
) -> ReadyToDraw:
    """Check all that can be checked before a model is loaded.

    Raises:
        ValueError: something that cannot work.
        FileNotFoundError: no such checkpoint.

    """
    if reward is not None:
        check_references(reward, prompts)
    resolve_dtype(loading.dtype)
    fixed = [name for name in loading.engine_args or {} if name in _FIXED]
    if fixed:
        raise ValueError(
            f"engine_args holds {', '.join(fixed)}, which the checkpoint, dtype and "
            "trust_remote_code decide; leave it out"
        )
    device = processes.local_device(resolve_device(loading.device))
    if held_out is not None:
        check_held_out(held_out)
    tasks = prepare(
        checkpoints,
        prompts,
        held_out,
        max_new_tokens=sampling.max_new_tokens,
        trust_remote_code=loading.trust_remote_code,
    )
    engine = choose_engine(
        sampling.engine,
        sources=[task.source for task in tasks],
        device=device,
        processes=processes,
    )
    settings = {
        **asdict(sampling),
        "reward": None if reward is None else reward_name(reward),
        "dtype": dtype_record(loading.dtype, device),
        "device": device.type,
        "engine": engine,
    }
    if loading.engine_args:
        if engine != "vllm":
            raise ValueError(
                f"engine_args are arguments of vLLM, and the engine is {engine}; give engine vllm, "
                "or leave engine_args out"
            )
        settings["engine_args"] = loading.engine_args
    load = partial(
        load_checkpoint,
        dtype=loading.dtype,
        device=device,
        trust_remote_code=loading.trust_remote_code,
    )
    return ReadyToDraw(tasks, device, settings, load, loading.trust_remote_code)


def _generate_with_vllm(
    llm: Any,
    checkpoint: LoadedCheckpoint,
    encoded: Sequence[Sequence[int]],
    requests: Sequence[tuple[int, int]],
    settings: Sampling,
    processes: Processes,
) -> Iterator[list[Rollout]]:
    from vllm import SamplingParams

    ends = checkpoint.eos_token_ids
    for batch in processes.share(request_batches(requests, encoded, settings.batch_size)):
        outputs = llm.generate(
            [{"prompt_token_ids": list(encoded[prompt])} for prompt, _ in batch],
            [
                SamplingParams(
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    top_k=settings.top_k or -1,  # -1 is off in every version, 0 in newer ones
                    max_tokens=settings.max_new_tokens,
                    stop_token_ids=list(ends),
                    seed=_seed(settings.seed, *request),
                )
                for request in batch
            ],
            use_tqdm=False,
        )
        drawn = [until_end(list(output.outputs[0].token_ids), ends) for output in outputs]
        completions = [
            Completion(prompt, tuple(encoded[prompt]), ids)
            for (prompt, _), (ids, _) in zip(batch, drawn, strict=True)
        ]
        entropies = token_entropies(checkpoint, completions)
        yield [
            finished_rollout(checkpoint, request, ids, truncated, values)
            for request, (ids, truncated), values in zip(batch, drawn, entropies, strict=True)
        ]


def _seed(seed: int, prompt: int, sample: int) -> int:
    return int(np.random.SeedSequence((seed, prompt, sample)).generate_state(1)[0])
