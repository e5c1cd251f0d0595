"""What a recipe is checked for before anything is computed; every refusal names its key."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from entropyfloor.rollouts.options import check_known
from entropyfloor.screening.options import check_tau_h, screening_arguments

Recipe = Any  # that of `recipe`, which imports this file
# What the echelon itself decides; a recipe that set it would be ignored, or break resuming.
_DECIDED_SFT = (
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "seed",
    "data_seed",
    "save_strategy",
    "save_steps",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "report_to",
)
_DECIDED_GRPO = {
    "max_steps": "steps",
    "save_steps": "save_every",
    "num_generations": "group_size",
    "max_completion_length": "screening: max_new_tokens",
    "seed": "seeds",
    "output_dir": "--output-dir",
    "shuffle_dataset": "nothing: prompts are shuffled by the seed",
    "report_to": "nothing: the curve is kept beside the checkpoints",
}
GFT_KEYS = ("trainer", "teacher", "teacher_samples")
_CONSTANT = ("constant", "constant_with_warmup")
TEACHER_SAMPLES = 3  # per prompt, in the GFT paper's groups of eight


_KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}


def check_kinds(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], where: str, **optional: type
) -> None:
    """Raise ValueError for a value of another kind than the default's.

    Args:
        settings: name -> value.
        defaults: name -> default; names that are not in it are not checked.
        where: for the message.
        **optional: kinds of what is None by default, and may be.

    """
    kinds = {name: type(default) for name, default in defaults.items()} | optional
    for name, value in settings.items():
        kind = kinds.get(name)
        if kind not in _KINDS or (value is None and name in optional):
            continue
        types, words = _KINDS[kind]
        if not isinstance(value, types) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{where}: {name} must be {words}; got {value!r}")


def check_recipe(recipe: Recipe) -> None:
    """Raise ValueError for whatever would fail or be ignored later."""
    _check_depths(recipe.depths)
    if not recipe.losses:
        raise ValueError("losses is empty; name at least one, such as `ce: {loss: ce}`")
    for name in recipe.losses:
        letters = str(name).replace("-", "").replace("_", "").replace(".", "")
        if not isinstance(name, str) or not letters.isalnum() or len(name.encode()) > 128:
            raise ValueError(
                f"losses: {name!r} becomes part of file names; use letters, digits, - _ . and at "
                "most 128 bytes"
            )
    seeds = recipe.seeds
    if not seeds or len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
        raise ValueError(f"seeds are different numbers from 0 to 2**32 - 1; got {list(seeds)}")
    if recipe.threads < 1:
        raise ValueError(f"threads must be at least 1; got {recipe.threads}")
    check_tau_h(recipe.tau_h)
    _check_samples(recipe)
    for name in recipe.losses:
        _check_loss(recipe, name)
    recipe.lora_config()
    if recipe.grpo is not None:
        _check_grpo(recipe, recipe.grpo)


def _check_samples(recipe: Recipe) -> None:
    for after_rl in (False, True):
        options = recipe.screening_options(after_rl=after_rl)
        where, ks = "evaluation" if after_rl else "screening", options["ks"]
        if options["num_samples"] < options["group_size"]:
            raise ValueError(
                f"num_samples {options['num_samples']} is below group_size "
                f"{options['group_size']}: degenerate groups need a whole group of rollouts"
            )
        if ks is not None:
            if not isinstance(ks, list | tuple) or {type(k) for k in ks} != {int} or min(ks) < 1:
                raise ValueError(f"{where}: ks must be whole numbers from 1 on, [1, 8]; got {ks!r}")
            if max(ks) > options["num_samples"]:
                raise ValueError(
                    f"ks {ks} need at least as many num_samples; got {options['num_samples']}"
                )
        prompts = options.pop("prompts")
        if prompts is not None and prompts < 1:
            raise ValueError(f"{where}: prompts must be at least 1; got {prompts}")
        del options["kl_to_base"]
        try:
            screening_arguments(**{k: v for k, v in options.items() if v is not None})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if recipe.k not in recipe.ks:
        raise ValueError(f"outcome_k {recipe.k} is not among the ks that are measured: {recipe.ks}")


def _check_loss(recipe: Recipe, name: str) -> None:
    trainer = recipe.losses[name].get("trainer", "sft")
    if trainer not in ("sft", "gft"):
        raise ValueError(f"losses: {name}: trainer is {trainer!r}; choose sft or gft")
    misplaced = [k for k in GFT_KEYS[1:] if k in recipe.losses[name] and trainer == "sft"]
    if misplaced:
        raise ValueError(f"losses: {name}: {misplaced[0]} needs `trainer: gft` beside it")
    if trainer == "gft":
        _check_teacher(recipe, name, recipe.losses[name].get("teacher"))
    options = recipe.sft_options(name)
    decided = [key for key in options if key in _DECIDED_SFT]
    if decided:
        raise ValueError(
            f"{', '.join(decided)} (loss {name}) is decided by the echelon: depths, seeds and "
            "the output folder say it"
        )
    check_known(options, config_fields(gft=trainer == "gft"), f"losses: {name}, sft")
    schedule = options.get("lr_scheduler_type", "constant")
    if schedule not in _CONSTANT:
        raise ValueError(
            f"lr_scheduler_type {schedule!r} (loss {name}): one run leaves all depths, which "
            "are comparable with a constant learning rate only; choose "
            f"{' or '.join(_CONSTANT)}"
        )
    options = {"output_dir": "unused", "use_cpu": True, "bf16": False, **options}
    _check_config(f"loss {name}", lambda: config_class(gft=trainer == "gft")(**options))


def _check_config(where: str, build: Callable[[], Any]) -> None:
    """Raise ValueError, which begins with ``where``, for what a trainer's configuration refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are the run's to give
            build()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_teacher(recipe: Recipe, name: str, teacher: Any) -> None:
    where = f"losses: {name}: teacher"
    if teacher is None:
        if recipe.losses[name].get("num_teacher") != 0:
            raise ValueError(
                f"{where} is missing: a rung such as {{loss: ce, depth: 2}}, a checkpoint's "
                "directory or hub id; or num_teacher: 0 for groups without one"
            )
        return
    samples = recipe.losses[name].get("teacher_samples", TEACHER_SAMPLES)
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"{where}_samples must be a whole number from 1 on; got {samples!r}")
    if not isinstance(teacher, Mapping):
        return
    if set(teacher) != {"loss", "depth"}:
        raise ValueError(f"{where}: a rung has loss and depth, as {{loss: ce, depth: 2}}")
    loss, depth = teacher["loss"], teacher["depth"]
    if loss not in recipe.losses or recipe.is_gft(loss) or depth not in recipe.depths:
        names = [loss for loss in recipe.losses if not recipe.is_gft(loss)]
        raise ValueError(
            f"{where}: there is no rung {loss}, depth {depth}, or it is GFT's own; choose a "
            f"loss among {', '.join(names) or 'none'} and a depth among "
            f"{', '.join(f'{depth:g}' for depth in recipe.depths)}"
        )
    if recipe.grpo is None:
        raise ValueError(
            f"{where}: a rung teaches as it is after GRPO, and the recipe has no grpo section; "
            "add one, or give a checkpoint"
        )


def _check_grpo(recipe: Recipe, grpo: Mapping[str, Any]) -> None:
    from trl import GRPOConfig

    from entropyfloor.rl.dapo import dapo_config

    for key, instead in _DECIDED_GRPO.items():
        if key in grpo:
            raise ValueError(f"grpo: {key} is set by {instead}; leave it out")
    training, _ = recipe.grpo_options()
    names = {f.name for f in fields(GRPOConfig) if f.init}
    check_known(grpo, names | {f.name for f in fields(training)}, "grpo")
    rollouts = training.group_size * training.prompts_per_step
    at_once = grpo.get("per_device_train_batch_size", rollouts)
    if at_once * grpo.get("gradient_accumulation_steps", 1) != rollouts:
        raise ValueError(
            f"grpo: a step has group_size × prompts_per_step = {rollouts} rollouts; "
            "per_device_train_batch_size × gradient_accumulation_steps must be as many"
        )
    _check_config("grpo", lambda: dapo_config("unused", **recipe.grpo_config(on_gpu=False)))


def _check_depths(depths: Sequence[float]) -> None:
    ascending = list(depths) == sorted(set(depths))
    if not depths or not ascending or not 0 < depths[0] <= depths[-1] < math.inf:
        raise ValueError(
            "depths are numbers of epochs above 0, in ascending order, such as 1 1.9 4; got "
            f"{' '.join(map(str, depths)) or 'none'}"
        )


def config_class(*, gft: bool) -> Any:
    """GFTConfig or SEDConfig."""
    from entropyfloor import GFTConfig, SEDConfig

    return GFTConfig if gft else SEDConfig


def config_fields(*, gft: bool) -> set[str]:
    """What can be set in it."""
    return {f.name for f in fields(config_class(gft=gft)) if f.init}


def fast_bf16() -> bool:
    """Whether bf16 autocast pays: on CUDA with bf16, and on a CPU that has bf16 instructions."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
