"""What an echelon's cells of one seed start from: model, rows for SFT, prompts, reward.

Three tasks, named by ``data: {task: ...}``:

    small_sums    sums mod 100 for the model ``small``; options of ``small_task``
    worked_sums   the demo's three-term sums with worked solutions, for a chat model; options
                  train_problems, solutions_per_problem, held_out_problems, rl_problems, digits
                  (of a term, 1 or 2), subtraction (whether terms may be subtracted) and ways (in
                  how many ways problems are worked, 1 to 6; all when left out)
    files         rows of your own: ``train`` (prompt and completion, or messages), ``held_out`` and
                  ``rl`` (prompt and the reward's columns) as JSON Lines or ``save_to_disk``
                  folders, and ``reward``: a name or module:function

Test prompts are never trained on; an entropy floor is probed on the prompts for RL.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from entropyfloor.echelon.recipe import Recipe
from entropyfloor.echelon.small_model import small_model_directory
from entropyfloor.echelon.small_task import MAX_NEW_TOKENS as SMALL_TOKENS
from entropyfloor.echelon.small_task import SmallTask, small_task
from entropyfloor.echelon.tasks import sum_task
from entropyfloor.models.checkpoint_sources import check_checkpoint
from entropyfloor.models.smollm2 import smollm2_directory
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.references import check_references
from entropyfloor.rollouts.rewards import reward_by_name

_WORKED_TOKENS = 56  # the longest worked solution has 49 in SmolLM2's tokenizer
_SMALL = {
    "pretraining": 7000,
    "demonstrations": 100,
    "rl_prompts": 600,
    "test": 400,
    "random_share": 0.6,
}
_WORKED = {
    "train_problems": 48,
    "solutions_per_problem": 2,
    "held_out_problems": 16,
    "rl_problems": 64,
    "digits": 2,
    "subtraction": False,
    "ways": None,
}
_RENDERED = ("prompt", "tools", "chat_template_kwargs")  # columns that a prompt is rendered from
_FILES: dict[str, Any] = {"train": None, "held_out": None, "rl": None, "reward": None}
_TASKS: dict[str, dict[str, Any]] = {"small_sums": _SMALL, "worked_sums": _WORKED, "files": _FILES}
_SMALL_MODEL = {"pretraining_steps": 325}


@dataclass(frozen=True)
class Sources:
    """Of one seed.

    Attributes:
        recipe: checked.
        seed: of the built tasks and of the small model.
        rows: for SFT.
        test: prompts of screening and evaluation.
        rl: rows of prompts for GRPO; empty without.
        reward: a name that ``screen`` and ``reward_by_name`` know.
        max_new_tokens: default length limit of a rollout.
        small: the small task, where there is one.

    """

    recipe: Recipe
    seed: int
    rows: tuple[Mapping[str, Any], ...]
    test: PromptSet
    rl: tuple[Mapping[str, Any], ...]
    reward: str
    max_new_tokens: int
    small: SmallTask | None = None

    def prompts(self, *, after_rl: bool) -> PromptSet:
        """The prompts that are screened: as many as the recipe says."""
        count = self.recipe.screening_options(after_rl=after_rl)["prompts"]
        return self.test if count is None else PromptSet(self.test.rows[:count], self.test.source)

    def tokens(self, *, after_rl: bool) -> int:
        """Length limit of a rollout."""
        given = self.recipe.screening_options(after_rl=after_rl)["max_new_tokens"]
        return self.max_new_tokens if given is None else int(given)

    @property
    def probe_prompts(self) -> list[Any] | None:
        """What an entropy floor is probed on; None: SEDTrainer chooses."""
        rows = [{name: row[name] for name in _RENDERED if name in row} for row in self.rl]
        return [row["prompt"] if len(row) == 1 else row for row in rows] or None

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        """What determines the model that SFT starts from."""
        model = dict(self.recipe.model)
        if self.small is not None:
            rows = digest(list(self.small.pretraining))
            return {**_SMALL_MODEL, **model, "rows": rows, "seed": self.seed}
        if model["name"] == "smollm2":
            return {"name": smollm2_directory().name}
        if not Path(model["name"]).is_dir():
            return model  # a hub id
        directory = check_checkpoint(model["name"]).directory
        files = sorted(f for f in directory.iterdir() if f.suffix in {".safetensors", ".json"})
        return {"files": {f.name: _file_digest(f) for f in files}}

    def model(self, folder: Path) -> Path | str:
        """The model that SFT starts from; the small one is built at ``folder``, once."""
        model = self.recipe.model
        if self.small is not None:
            steps = {**_SMALL_MODEL, **model}["pretraining_steps"]
            return small_model_directory(
                folder, self.small.pretraining, steps=steps, seed=self.seed
            )
        return smollm2_directory() if model["name"] == "smollm2" else str(model["name"])


def digest(content: Any) -> str:
    """12 hex digits of plain data."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sources(recipe: Recipe, seed: int) -> Sources:
    """Read or draw what one seed starts from.

    Raises:
        ValueError: an unknown task or option, a model that does not fit the task, rows without what
            the reward needs, no prompts for RL.
        FileNotFoundError: a file that does not exist.

    """
    given = dict(recipe.data)
    task = given.pop("task", None)
    if task not in _TASKS:
        raise ValueError(f"data: task is {task!r}; choose one of {', '.join(_TASKS)}")
    unknown = sorted(set(given) - set(_TASKS[task]))
    if unknown:
        raise ValueError(
            f"data: {task} has no option {', '.join(unknown)}; it has {', '.join(_TASKS[task])}"
        )
    options: dict[str, Any] = {**_TASKS[task], **given}
    name = recipe.model.get("name")
    if not name:
        raise ValueError("model: name is missing: small, smollm2, a directory or a hub id")
    if (name == "small") != (task == "small_sums"):
        raise ValueError(
            f"model {name!r} with data {task!r}: the model `small` is a character model built for "
            "`small_sums`, and only that; use both or neither"
        )
    extra = sorted(set(recipe.model) - {"name"} - (set(_SMALL_MODEL) if name == "small" else set()))
    if extra:
        raise ValueError(f"model {name!r} has no option {', '.join(extra)}")
    found = {"small_sums": _small, "worked_sums": _worked, "files": _files}[task](
        recipe, seed, options
    )
    check_references(reward_by_name(found.reward), found.test)
    if recipe.grpo is not None:
        if not found.rl:
            raise ValueError("the recipe has a grpo section and no prompts for it: give data: rl")
        check_references(reward_by_name(found.reward), PromptSet(found.rl, "prompts for RL"))
        needed = recipe.grpo_training().prompts_per_step
        if len(found.rl) < needed:
            raise ValueError(
                f"a GRPO step takes {needed} prompts and there are {len(found.rl)}: give more, or "
                "lower prompts_per_step"
            )
    return found


def _small(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    task = small_task(seed=seed, **options)
    rows = tuple(task.demonstration_dataset().to_list())
    return Sources(
        recipe,
        seed,
        rows=rows,
        test=task.test_prompts(),
        rl=tuple(task.rl_dataset().to_list()),
        reward="exact_match",
        max_new_tokens=SMALL_TOKENS,
        small=task,
    )


def _worked(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    count, ways = options["train_problems"], options["ways"]
    if ways is not None and ways < options["solutions_per_problem"]:
        raise ValueError(
            f"data: ways is {ways}; a problem has {options['solutions_per_problem']} solutions "
            "(solutions_per_problem), each worked in another way"
        )
    drawn = sum_task(
        train_problems=count + options["rl_problems"],
        held_out_problems=options["held_out_problems"],
        digits=options["digits"],
        subtraction=options["subtraction"],
        seed=seed,
    )
    rl = [{"prompt": problem.prompt, "entry": problem.entry} for problem in drawn.train[count:]]
    train = replace(drawn, train=drawn.train[:count])
    # One worked solution each, which only the held-out loss reads.
    solved = replace(drawn, train=drawn.held_out, held_out=()).train_rows(
        solutions_per_problem=1, seed=seed, ways=ways
    )
    test = [
        {**row, "completion": worked["completion"]}
        for row, worked in zip(drawn.held_out_rows(), solved, strict=True)
    ]
    return Sources(
        recipe,
        seed,
        rows=tuple(
            train.train_rows(
                solutions_per_problem=options["solutions_per_problem"], seed=seed, ways=ways
            )
        ),
        test=PromptSet(tuple(test), "held-out three-term sums"),
        rl=tuple(rl),
        reward="reasoning_gym",
        max_new_tokens=_WORKED_TOKENS,
    )


def _files(recipe: Recipe, seed: int, options: Mapping[str, Any]) -> Sources:
    for key in ("train", "held_out", "reward"):
        if not options[key]:
            raise ValueError(f"data: files needs {key}")
    return Sources(
        recipe,
        seed,
        rows=tuple(_rows(options["train"])),
        test=load_prompts(options["held_out"]),
        rl=() if options["rl"] is None else tuple(load_prompts(options["rl"]).rows),
        reward=options["reward"],
        max_new_tokens=256,
    )


def _rows(path: str) -> Sequence[Mapping[str, Any]]:
    """Training rows: checked by SEDTrainer, so that any format of trl's is taken."""
    from datasets import load_dataset, load_from_disk

    if Path(path).is_dir():
        return list(load_from_disk(path))
    if not Path(path).is_file():
        raise FileNotFoundError(f"data: train: there is no file {path}")
    return list(load_dataset("json", data_files=path, split="train"))


def _file_digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            found.update(block)
    return found.hexdigest()[:16]
