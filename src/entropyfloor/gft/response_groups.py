"""Response groups on disk, for group fine-tuning (GFT, arXiv:2604.14258): experts and a teacher.

A prompt's group holds the responses that its row brings along (``collect_responses``) and what a
teacher model, any checkpoint, answers to it, deduplicated and scored by a reward. The policy adds
samples of its own while it is trained.

    FOLDER/rollouts.json, rollouts-*.jsonl   the teacher's rollouts, a file per 256 prompts
    FOLDER/response-rewards-*.json           rewards of the data set's, a file per 256 prompts
    FOLDER/groups.jsonl                      {"prompt", "responses": [{"source", "completion",
                                             "reward"}, ...], and the row's other columns}
    FOLDER/groups.json                       counts per source, settings

A run into the same folder goes on where a killed one was, and ends with the same file. Of responses
that say the same the first stays; the data set's come before the teacher's. A teacher's rollout
that hit the length limit is left out, as training would end it where it does not end, and so is an
empty one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from entropyfloor.gft.options import GroupOptions
from entropyfloor.gft.responses import (
    DATASET_SOURCES,
    EXPERT_COLUMN,
    RESPONSES_COLUMN,
    Response,
    collect_responses,
)
from entropyfloor.io import save_json
from entropyfloor.models.checkpoints import load_tokenizer
from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.draw import RolloutBlock, RolloutBlocks
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import Prompt, PromptSet, load_prompts
from entropyfloor.rollouts.rewards import (
    RewardFunction,
    completion_to,
    reward_by_name,
    score_completions,
)
from entropyfloor.stats.groups import Sums

NUM_SAMPLES = 3  # of a teacher, in the paper's groups of eight


@dataclass(frozen=True)
class SourceCounts(Sums):
    """Responses of one source."""

    responses: int = 0  # how many there were
    duplicates: int = 0  # left out, as the prompt's group held the same already
    truncated: int = 0  # left out, as they hit the length limit
    empty: int = 0  # left out, as nothing but white space was in them
    kept: int = 0  # the rest
    kept_passed: int = 0  # of these, how many reached the threshold
    scored: int = 0  # of all responses, how many the reward applied to
    # Of these, how many reached the threshold: the source's own pass rate, which that of what is
    # kept is not, as right answers are more often alike
    passed: int = 0
    reward_sum: float = 0.0  # of the scored

    @property
    def pass_rate(self) -> float | None:
        """Passed of the scored; None if there are none."""
        return self.passed / self.scored if self.scored else None

    @property
    def mean_reward(self) -> float | None:
        """Of the scored; None if there are none."""
        return self.reward_sum / self.scored if self.scored else None


@dataclass(frozen=True)
class ResponseCounts(Sums):
    """Counts by source, and over groups."""

    expert: SourceCounts = SourceCounts()
    teacher: SourceCounts = SourceCounts()
    other: SourceCounts = SourceCounts()
    without_response: int = 0  # groups that nothing is in
    all_passed: int = 0  # groups whose scored responses all pass
    none_passed: int = 0  # groups whose scored responses all fail
    mixed: int = 0  # groups with both

    @property
    def by_source(self) -> dict[str, SourceCounts]:
        """In the order of `DATASET_SOURCES`."""
        return {source: getattr(self, source) for source in DATASET_SOURCES}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        sources = {
            name: {**vars(of), "pass_rate": of.pass_rate, "mean_reward": of.mean_reward}
            for name, of in self.by_source.items()
        }
        groups = {name: value for name, value in vars(self).items() if name not in sources}
        return {"sources": sources, "groups": groups}


def count_responses(
    dataset: Sequence[Response],
    sampled: Sequence[tuple[Response, bool]],
    *,
    keep_truncated: bool,
    threshold: float,
) -> tuple[list[Response], ResponseCounts]:
    """One prompt's group, the first of responses that say the same, and its counts.

    Args:
        dataset: what the data set brings along.
        sampled: the teacher's responses, and whether each hit the length limit.
        keep_truncated: keep those that did.
        threshold: a response passes if its reward is at least this.

    """
    seen: set[str] = set()
    group: list[Response] = []
    by_source = {source: SourceCounts() for source in DATASET_SOURCES}
    for response, truncated in [*((each, False) for each in dataset), *sampled]:
        reward, key = response.reward, response.key
        passed = int(reward is not None and reward >= threshold)
        left_out = truncated and not keep_truncated
        empty = not left_out and not key
        duplicate = not left_out and key in seen
        kept = not (left_out or empty or duplicate)
        if kept:
            seen.add(key)
            group.append(response)
        by_source[response.source] += SourceCounts(
            responses=1,
            duplicates=int(duplicate),
            truncated=int(left_out),
            empty=int(empty),
            kept=int(kept),
            kept_passed=passed * kept,
            scored=int(reward is not None),
            passed=passed,
            reward_sum=reward or 0.0,
        )
    passes = {each.reward >= threshold for each in group if each.reward is not None}
    counts = ResponseCounts(
        **by_source,
        without_response=int(not group),
        all_passed=int(passes == {True}),
        none_passed=int(passes == {False}),
        mixed=int(len(passes) == 2),
    )
    return group, counts


@dataclass(frozen=True)
class ResponseGroups:
    """What was built."""

    folder: Path  # see the module's docstring
    num_prompts: int  # groups, one per prompt
    counts: ResponseCounts  # what became of the responses, in all and by source
    settings: dict[str, Any]  # plain data for JSON

    @property
    def path(self) -> Path:
        """The JSONL file of the groups, for ``entropyfloor gft --groups``."""
        return self.folder / "groups.jsonl"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as in ``groups.json``."""
        return {
            "schema": "entropyfloor.response_groups",
            "schema_version": 1,
            "settings": self.settings,
            "num_prompts": self.num_prompts,
            **self.counts.to_dict(),
        }


def build_response_groups(
    teacher: str | Path,
    prompts: PromptSet,
    reward: RewardFunction | str | None,
    *,
    groups: GroupOptions = GroupOptions(),
    sampling: Sampling = Sampling(num_samples=NUM_SAMPLES),
    loading: Loading = Loading(),
    output: Output,
    processes: Processes | None = None,
) -> ResponseGroups:
    """Sample the teacher on every prompt and write the groups.

    Args:
        teacher: model or adapter directory, or hub id.
        prompts: rows with ``prompt``, the experts' responses and what the reward needs. Columns
            travel along, apart from ``completion`` and ``responses``, which become the group.
        reward: a function in trl's signature, or a name. It scores every response, also those of
            groups made before; ``completion_ids`` of the data set's are in the teacher's tokens.
            Without one rewards are left to the trainer.
        groups: which responses stand beside the teacher's, and what is kept.
        sampling: the teacher's; its rollouts per prompt are before duplicates are left out.
        loading: how the teacher is loaded.
        output: its folder gets the groups; see the module. The same folder with the same settings
            goes on, with more samples it extends.
        processes: from ``join_processes()`` where several draw together.

    Raises:
        ValueError: something that cannot work, before the model is loaded, named by row; a folder
            built with other settings; a reward that fails.
        FileNotFoundError: no such checkpoint.

    """
    collected = collect_responses(
        prompts,
        expert_column=groups.expert_column,
        other_columns=groups.other_columns,
        others=load_prompts(groups.other) if isinstance(groups.other, str) else groups.other,
    )
    moved = {EXPERT_COLUMN, RESPONSES_COLUMN}
    bare = PromptSet(
        tuple({k: v for k, v in row.items() if k not in moved} for row in prompts.rows),
        prompts.source,
    )
    bare.check_json()
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    folder = output.folder
    blocks = RolloutBlocks(
        teacher,
        prompts=bare,
        reward=function,
        folder=folder,
        sampling=sampling,
        loading=loading,
        processes=processes,
        determines={
            "responses of the data set": _digest(collected),
            "keep_truncated": groups.keep_truncated,
        },
    )
    processes = blocks.processes
    tokenizer = cache(
        partial(load_tokenizer, blocks.task.source, trust_remote_code=loading.trust_remote_code)
    )
    counts = ResponseCounts()
    unfinished = folder / ".unfinished-groups.jsonl"
    if processes.main:
        unfinished.write_text("", encoding="utf-8")
    for block in blocks.draw(progress=output.progress):
        lines = []
        known = [collected[row] for row in block.rows]
        if function is not None and any(known):
            known = _scored(known, block, bare, function, folder, tokenizer)
        for place, (row, responses) in enumerate(zip(block.rows, known, strict=True)):
            sampled = _sampled(block, place, bare.rows[row]["prompt"])
            group, of_group = count_responses(
                responses,
                sampled,
                keep_truncated=groups.keep_truncated,
                threshold=groups.success_threshold,
            )
            counts += of_group
            record = {**bare.rows[row], RESPONSES_COLUMN: [each.to_dict() for each in group]}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        with unfinished.open("a", encoding="utf-8") as file:
            file.writelines(lines)
    settings = {
        **blocks.settings,
        "success_threshold": groups.success_threshold,
        "keep_truncated": groups.keep_truncated,
        "prompts": {"source": prompts.source, "digest": prompts.digest},
    }
    built = processes.from_main(ResponseGroups(folder, len(prompts), counts, settings))
    if processes.main:
        os.replace(unfinished, built.path)
        save_json(folder / "groups.json", built.to_dict())
    return built


def _sampled(block: RolloutBlock, place: int, prompt: Prompt) -> list[tuple[Response, bool]]:
    """The teacher's responses to one prompt, and whether each was truncated."""
    return [
        (Response("teacher", completion_to(prompt, rollout.text), reward), rollout.truncated)
        for rollout, reward in zip(block.rollouts[place], block.rewards[place], strict=True)
    ]


def _scored(
    groups: Sequence[Sequence[Response]],
    block: RolloutBlock,
    prompts: PromptSet,
    reward: RewardFunction,
    folder: Path,
    tokenizer: Callable[[], Any],
) -> list[list[Response]]:
    """The data set's responses to the block's prompts with their rewards, kept on disk."""
    file = folder / f"response-rewards-{block.number:05d}.json"
    if not file.is_file():
        completions: list[Any] = [each.completion for group in groups for each in group]
        texts = [completion_text(completion) for completion in completions]
        rewards = score_completions(
            reward,
            prompts,
            rows=[row for row, group in zip(block.rows, groups, strict=True) for _ in group],
            completions=completions,
            completion_ids=tokenizer()(texts, add_special_tokens=False)["input_ids"],
        )
        save_json(file, rewards)
    scores = iter(json.loads(file.read_text(encoding="utf-8")))
    return [[replace(each, reward=next(scores)) for each in group] for group in groups]


def _digest(groups: Sequence[Sequence[Response]]) -> str:
    """Of everything that responses were read with; the keys are those of a response's JSON."""
    plain = [
        [{"source": r.source, "completion": r.completion, "reward": r.reward} for r in group]
        for group in groups
    ]
    text = json.dumps(plain, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
