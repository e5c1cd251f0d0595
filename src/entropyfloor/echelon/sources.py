"""What an echelon's stages of one seed start from: model, rows for SFT, prompts, reward.

Four tasks, named by ``data: {task: ...}``:

    small_sums    sums mod 100 in characters; options of ``modular_sums``
    worked_sums   three-term sums with worked solutions, for a chat model; options train_problems,
                  solutions_per_problem, held_out_problems, rl_problems, pretraining_problems (of
                  the model small_chat), digits (of a term, 1 or 2), subtraction (whether terms may
                  be subtracted) and ways (in how many ways problems are worked, 1 to 6; all when
                  left out)
    gsm_symbolic  reasoning-gym's word problems with worked solutions; options train_problems,
                  held_out_problems, rl_problems, solution_characters and prompt_characters, which a
                  problem may have at most, and chat (true; false writes them as plain text, for a
                  base model)
    files         rows of your own: ``train`` (prompt and completion, or messages), ``held_out`` and
                  ``rl`` (prompt and the reward's columns) as JSON Lines or ``save_to_disk``
                  folders, and ``reward``: a name or module:function

Test prompts are never trained on; an entropy floor is probed on the prompts for RL. ``validation``
(of small_sums), ``validation_problems`` (of the two other built tasks) or ``validation`` (a file of
rows like ``train``) are what ``entropy_floor: auto`` is read off. Without, a part of the training
set is held out for it, and other losses train on more rows.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from entropyfloor.echelon.built_models import character_model, chat_model
from entropyfloor.echelon.fingerprints import checkpoint_fingerprint, digest
from entropyfloor.echelon.gsm_symbolic import gsm_symbolic_rows
from entropyfloor.echelon.modular_sums import MAX_NEW_TOKENS as SMALL_TOKENS
from entropyfloor.echelon.modular_sums import modular_sums
from entropyfloor.echelon.recipe import Recipe
from entropyfloor.echelon.recipe_checks import check_kinds
from entropyfloor.echelon.worked_sums import draw_problems, worked_rows
from entropyfloor.io import write_atomic
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.checkpoints import check_token_ids, load_tokenizer
from entropyfloor.models.smollm2 import smollm2_directory
from entropyfloor.rollouts.engines import prepare
from entropyfloor.rollouts.options import check_known
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.reading import as_written
from entropyfloor.rollouts.rewards import check_references, reward_by_name
from entropyfloor.sft.floor.options import AUTO
from entropyfloor.sft.training_rows import checked_file, checked_rows, row_ids

_RENDERED = ("prompt", "tools", "chat_template_kwargs")  # columns that a prompt is rendered from
_WORKED_TOKENS = 56  # the longest worked solution has 49 in SmolLM2's tokenizer
_TOKENS_PER_CHARACTER = 0.6  # SmolLM2's, in the densest worked solutions of gsm_symbolic (0.571)
_TASKS: dict[str, dict[str, Any]] = {
    "small_sums": dict(modular_sums.__kwdefaults__ or {}),
    "worked_sums": {
        "train_problems": 48,
        "solutions_per_problem": 2,
        "held_out_problems": 16,
        "rl_problems": 64,
        "validation_problems": 0,
        "pretraining_problems": 0,
        "digits": 2,
        "subtraction": False,
        "ways": None,
    },
    "gsm_symbolic": {
        "train_problems": 192,
        "held_out_problems": 64,
        "rl_problems": 256,
        "validation_problems": 0,
        "solution_characters": 150,
        "prompt_characters": 300,
        "chat": True,
    },
    "files": {"train": None, "validation": None, "held_out": None, "rl": None, "reward": None},
}
# Models that are built here: the task that each is pretrained for, and its default length.
_BUILT = {"small": ("small_sums", 325), "small_chat": ("worked_sums", 240)}


@dataclass(frozen=True)
class Sources:
    """Of one seed."""

    recipe: Recipe  # checked
    seed: int  # of the built tasks and models
    rows: tuple[Mapping[str, Any], ...]  # for SFT: prompt and completion, or any format of trl's
    # The same with the reward's columns, for response groups
    demonstrations: tuple[Mapping[str, Any], ...]
    test: PromptSet  # prompts of screening and evaluation
    rl: tuple[Mapping[str, Any], ...]  # rows of prompts for GRPO; empty without
    reward: str  # a name that screen and reward_by_name know
    max_new_tokens: int  # default length limit of a rollout
    # Rows like `rows` that nothing trains on: of an "auto" floor
    validation: tuple[Mapping[str, Any], ...] = ()
    # What a model that is built here learns from; empty for any other
    pretraining: tuple[Any, ...] = ()

    def prompts(self, *, after_rl: bool) -> PromptSet:
        """The prompts that are screened: as many as the recipe says."""
        count = self.recipe.screening_options(after_rl=after_rl)["prompts"]
        return self.test if count is None else PromptSet(self.test.rows[:count], self.test.source)

    def tokens(self, *, after_rl: bool) -> int:
        """Length limit of a rollout."""
        limit = self.recipe.screening_options(after_rl=after_rl)["max_new_tokens"]
        return self.max_new_tokens if limit is None else int(limit)

    @property
    def probe_prompts(self) -> list[Any] | None:
        """What an entropy floor is probed on; None: the trainer chooses."""
        rows = [{name: row[name] for name in _RENDERED if name in row} for row in self.rl]
        return [row["prompt"] if len(row) == 1 else row for row in rows] or None

    def validation_of(self, loss: str) -> tuple[Mapping[str, Any], ...]:
        """What a loss's floor is read off; nothing where it is not "auto"."""
        auto = self.recipe.sft_options(loss).get("entropy_floor") == AUTO
        return self.validation if auto else ()

    @cached_property
    def model_fingerprint(self) -> dict[str, Any]:
        """What determines the model that SFT starts from."""
        model = dict(self.recipe.model)
        if model["name"] not in _BUILT:
            return checkpoint_fingerprint(model["name"])
        _, steps = _BUILT[model["name"]]
        rows = [row if isinstance(row, dict) else row.entry for row in self.pretraining]
        return {"pretraining_steps": steps, **model, "rows": digest(rows), "seed": self.seed}

    def model(self, folder: Path) -> Path | str:
        """The model that SFT starts from; one that is built here is built at ``folder``, once."""
        model = self.recipe.model
        if model["name"] == "smollm2":
            return smollm2_directory()
        if model["name"] not in _BUILT:
            return str(model["name"])
        build: Callable[..., Path] = character_model if model["name"] == "small" else chat_model
        steps = model.get("pretraining_steps", _BUILT[model["name"]][1])
        return build(folder, self.pretraining, steps=steps, seed=self.seed)

    def write(self, folder: Path) -> None:
        """Write train.jsonl, held_out.jsonl and rl.jsonl, for the other commands."""
        parts = {"train": self.demonstrations, "held_out": self.test.rows, "rl": self.rl}
        if self.validation:
            parts["validation"] = self.validation
        for name, rows in parts.items():
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            write_atomic(folder / f"{name}.jsonl", "".join(lines))


def sources(recipe: Recipe, seed: int) -> Sources:
    """Read or draw what one seed starts from.

    Raises:
        ValueError: an unknown task or option, or a model that does not fit the task.
        FileNotFoundError: a file that does not exist.

    """
    options = dict(recipe.data)
    task = options.pop("task", None)
    if not isinstance(task, str) or task not in _TASKS:
        raise ValueError(f"data: task is {task!r}; choose one of {', '.join(_TASKS)}")
    check_known(options, _TASKS[task], f"data: {task}")
    files = dict.fromkeys(_TASKS["files"] if task == "files" else (), str)
    check_kinds(options, _TASKS[task], f"data: {task}", ways=int, **files)
    _check_model(recipe.model, task)
    read = {
        "small_sums": _small_sums,
        "worked_sums": _worked_sums,
        "gsm_symbolic": _gsm_symbolic,
        "files": _files,
    }[task]
    return read(recipe, seed, {**_TASKS[task], **options})


def check_sources(data: Sources) -> None:
    """Check rows, rewards and checkpoints once, before any stage runs.

    Raises:
        ValueError: rows without what the reward needs, too few prompts for RL, a model that cannot
            be trained on the task.
        FileNotFoundError: a model or teacher that does not exist.

    """
    recipe = data.recipe
    _check_checkpoints(recipe)
    if recipe.model["name"] not in {*_BUILT, "smollm2"}:
        _check_readable(data, recipe.model["name"])
    reward = reward_by_name(data.reward)
    check_references(reward, data.test)
    if any(recipe.is_gft(loss) for loss in recipe.losses):
        check_references(reward, PromptSet(data.demonstrations, "rows for GFT"))
    if recipe.grpo is None:
        return
    if not data.rl:
        raise ValueError("the recipe has a grpo section and no prompts for it: give data: rl")
    check_references(reward, PromptSet(data.rl, "prompts for RL"))
    needed = recipe.grpo_options()[0].prompts_per_step
    if len(data.rl) < needed:
        raise ValueError(
            f"a GRPO step takes {needed} prompts and there are {len(data.rl)}: give more, or lower "
            "prompts_per_step"
        )


def _check_readable(data: Sources, model: str) -> None:
    """Raise ValueError, by row, for what a model's chat template or its embeddings cannot read."""
    source = check_checkpoint(model)
    tokenizer = load_tokenizer(source)
    parts = {"train": data.rows}
    if data.validation:
        parts["validation"] = data.validation
    for part, rows in parts.items():
        where = str(data.recipe.data.get(part, f"the rows for SFT ({part})"))
        checked_rows(list(rows), where, tokenizer=tokenizer)
        check_token_ids((row_ids(row, tokenizer, "text") for row in rows), source, where)
    held_out = [(data.test, data.tokens(after_rl=False))]
    if data.rl:
        rl = PromptSet(data.rl, str(data.recipe.data.get("rl", "prompts for RL")))
        held_out.append((rl, data.tokens(after_rl=True)))
    for prompts, tokens in held_out:
        prepare([model], prompts, None, max_new_tokens=tokens, trust_remote_code=False)


def _check_model(model: Mapping[str, Any], task: str) -> None:
    name = str(model.get("name") or "")
    if not name:
        raise ValueError(
            "model: name is missing: small, small_chat, smollm2, a directory or a hub id"
        )
    options = {"pretraining_steps": 1} if name in _BUILT else {}
    check_known(model, {"name", *options}, f"model {name!r}")
    check_kinds(model, {"name": "small", **options}, "model")
    if model.get("pretraining_steps", 1) < 1:
        raise ValueError(f"model: pretraining_steps must be at least 1; got {model}")
    if name in _BUILT and task != _BUILT[name][0]:
        raise ValueError(
            f"model {name!r} is built for data {_BUILT[name][0]!r}, and only that; got {task!r}"
        )
    if name == "smollm2" and task == "small_sums":
        raise ValueError(
            "small_sums is a task for a character model: take the model `small`, or a checkpoint "
            "of it"
        )


def _check_checkpoints(recipe: Recipe) -> None:
    """Whether models that are not built here are there, and can be trained on the task."""
    teachers = [recipe.teacher(loss) for loss in recipe.losses]
    for teacher in teachers:
        if teacher is not None and teacher.checkpoint is not None:
            check_checkpoint(teacher.checkpoint)
    name = recipe.model["name"]
    if name in _BUILT or name == "smollm2":
        return
    source = check_checkpoint(name)
    if source.base is not None:
        raise ValueError(
            f"{name} is a PEFT adapter, and SFT starts from a whole model here: give its base, or "
            "merge it first (merge_and_unload, then save_pretrained)"
        )
    task = recipe.data["task"]
    chat = task == "worked_sums" or (task == "gsm_symbolic" and recipe.data.get("chat", True))
    if chat and not load_tokenizer(source).chat_template:
        raise ValueError(
            f"the tokenizer of {name} has no chat template, which the conversations of {task} "
            "need; give an instruction-tuned model"
        )


def _columns(rows: Sequence[Mapping[str, Any]], *names: str) -> tuple[dict[str, Any], ...]:
    """Of each row no more than these."""
    return tuple({name: row[name] for name in names} for row in rows)


def _small_sums(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    task = modular_sums(seed=seed, **options)

    return Sources(
        recipe,
        seed,
        rows=_columns(task.demonstrations, "prompt", "completion"),
        demonstrations=task.demonstrations,
        test=PromptSet(task.test, "held-out sums mod 100"),
        rl=_columns(task.rl_prompts, "prompt", "answer"),
        reward="exact_match",
        max_new_tokens=SMALL_TOKENS,
        validation=_columns(task.validation, "prompt", "completion"),
        pretraining=task.pretraining,
    )


def _worked_sums(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    ways, solutions = options["ways"], options["solutions_per_problem"]
    if ways is not None and ways < solutions:
        raise ValueError(
            f"data: ways is {ways}; a problem has {solutions} solutions (solutions_per_problem), "
            "each worked in another way"
        )
    _check_counts(options, "solutions_per_problem", "pretraining_problems")
    built = recipe.model["name"] == "small_chat"
    if built and not options["pretraining_problems"]:
        raise ValueError("the model small_chat needs data: pretraining_problems, such as 400")
    # Held-out problems first: they do not depend on how many are trained on.
    parts = [
        f"{part}_problems" for part in ("held_out", "train", "rl", "pretraining", "validation")
    ]
    problems = draw_problems(
        sum(options[part] for part in parts),
        digits=options["digits"],
        subtraction=options["subtraction"],
        seed=seed,
    )
    rest = iter(problems)
    held_out, train, rl, pretraining, validation = (
        [next(rest) for _ in range(options[part])] for part in parts
    )
    rows = worked_rows(train, solutions_per_problem=solutions, seed=seed, ways=ways)
    # One worked solution each, which only the held-out loss reads.
    test = worked_rows(held_out, solutions_per_problem=1, seed=seed, ways=ways)
    validated = worked_rows(validation, solutions_per_problem=1, seed=seed, ways=ways)
    return Sources(
        recipe,
        seed,
        rows=_columns(rows, "prompt", "completion"),
        demonstrations=tuple(rows),
        test=PromptSet(tuple(test), "held-out three-term sums"),
        rl=tuple({"prompt": problem.prompt, "entry": problem.entry} for problem in rl),
        reward="reasoning_gym",
        max_new_tokens=_WORKED_TOKENS,
        validation=_columns(validated, "prompt", "completion"),
        pretraining=tuple(pretraining) if built else (),
    )


def _gsm_symbolic(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    _check_counts(options, "solution_characters", "prompt_characters")
    # Held-out problems first: they do not depend on how many are trained on.
    counts = [options[f"{part}_problems"] for part in ("held_out", "train", "rl", "validation")]
    names = ("solution_characters", "prompt_characters", "chat")
    limits = {name: options[name] for name in names}
    rows = gsm_symbolic_rows(sum(counts), seed=seed, **limits)
    rest = iter(rows)
    held_out, train, rl, validation = ([next(rest) for _ in range(count)] for count in counts)
    return Sources(
        recipe,
        seed,
        rows=_columns(train, "prompt", "completion"),
        demonstrations=tuple(train),
        test=PromptSet(tuple(held_out), "held-out problems of gsm_symbolic"),
        rl=_columns(rl, "prompt", "answer"),
        reward="exact_match",
        max_new_tokens=math.ceil(_TOKENS_PER_CHARACTER * options["solution_characters"]),
        validation=_columns(validation, "prompt", "completion"),
    )


def _check_counts(options: Mapping[str, Any], *others: str) -> None:
    """Refuse numbers of problems that cannot be, and ``others`` likewise."""
    optional = ("rl_problems", "validation_problems")
    for name in ("train_problems", "held_out_problems", *optional, *others):
        least = 0 if name in (*optional, "pretraining_problems") else 1
        if options[name] < least:
            raise ValueError(f"data: {name} must be at least {least}; got {options[name]}")


def _files(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    for key in ("train", "held_out", "reward"):
        if not options[key]:
            raise ValueError(f"data: files needs {key}")
    rows = tuple(_training_rows(options["train"]))
    return Sources(
        recipe,
        seed,
        rows=rows,
        demonstrations=rows,
        test=load_prompts(options["held_out"]),
        rl=() if options["rl"] is None else tuple(load_prompts(options["rl"]).rows),
        reward=options["reward"],
        max_new_tokens=256,
        validation=tuple(_training_rows(options["validation"])) if options["validation"] else (),
    )


def _training_rows(path: str) -> Sequence[Mapping[str, Any]]:
    """Checked by SEDTrainer, so that any format of trl's is taken."""
    from datasets import load_dataset, load_from_disk

    if Path(path).is_dir():
        return list(checked_rows(load_from_disk(path), path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"data: train: there is no file {path}")
    with as_written(path, lambda rows: checked_rows(rows, path)):
        dataset = load_dataset("json", data_files=path, split="train")
    return list(checked_file(dataset, path, path))
