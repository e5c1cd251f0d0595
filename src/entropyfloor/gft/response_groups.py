"""Response groups on disk, for group fine-tuning (GFT, arXiv:2604.14258): experts and a teacher.

A prompt's group holds the responses that its row brings along (``given_responses``) and what a
teacher model, any checkpoint, answers to it, deduplicated and scored by a reward. The policy adds
samples of its own while it is trained.

    FOLDER/rollouts.json, rollouts-*.jsonl   the teacher's rollouts, a file per 256 prompts
    FOLDER/given-*.json                      rewards of the given responses, a file per 256 prompts
    FOLDER/groups.jsonl                      {"prompt", "responses": [{"source", "completion",
                                             "reward"}, ...], and the row's other columns}
    FOLDER/groups.json                       counts per source, settings

A run into the same folder goes on where a killed one was, and ends with the same file. Of responses
that say the same the first stays; given ones come before the teacher's. A teacher's rollout that
hit the length limit is left out, as training would end it where it does not end, and so is an empty
one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from entropyfloor.gft.given_responses import (
    EXPERT_COLUMN,
    RESPONSES_COLUMN,
    Response,
    given_responses,
)
from entropyfloor.gft.options import GroupOptions
from entropyfloor.gft.response_counts import ResponseCounts, count_responses
from entropyfloor.io import save_json
from entropyfloor.models.checkpoints import load_tokenizer
from entropyfloor.rollouts.answers import completion_text
from entropyfloor.rollouts.options import Loading, Output, Sampling
from entropyfloor.rollouts.processes import Processes
from entropyfloor.rollouts.prompts import PromptSet, load_prompts
from entropyfloor.rollouts.rewards import RewardFunction, reward_by_name
from entropyfloor.rollouts.rollout_blocks import RolloutBlock, RolloutBlocks
from entropyfloor.rollouts.scoring import score_completions

NUM_SAMPLES = 3  # of a teacher, in the paper's groups of eight


@dataclass(frozen=True)
class ResponseGroups:
    """What was built.

    Attributes:
        folder: see the module's docstring.
        num_prompts: groups, one per prompt.
        counts: what became of the responses, in all and by source.
        settings: plain data for JSON.

    """

    folder: Path
    num_prompts: int
    counts: ResponseCounts
    settings: dict[str, Any]

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
            groups made before; ``completion_ids`` of given responses are in the teacher's tokens.
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
    given = given_responses(
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
        determines={"given responses": _digest(given), "keep_truncated": groups.keep_truncated},
    )
    processes = blocks.processes
    score = _GivenScores(folder, bare, function, blocks, loading.trust_remote_code)
    counts = ResponseCounts()
    unfinished = folder / ".unfinished-groups.jsonl"
    if processes.main:
        unfinished.write_text("", encoding="utf-8")
    for block in blocks.draw(progress=output.progress):
        lines = []
        for place, (row, responses) in enumerate(zip(block.rows, score(block, given), strict=True)):
            drawn = _drawn(block, place, bare.rows[row]["prompt"])
            group, found = count_responses(
                responses,
                drawn,
                keep_truncated=groups.keep_truncated,
                threshold=groups.success_threshold,
            )
            counts += found
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


def _drawn(block: RolloutBlock, place: int, prompt: Any) -> list[tuple[Response, bool]]:
    """The teacher's responses to one prompt, and whether each was truncated."""
    drawn = []
    for rollout, reward in zip(block.rollouts[place], block.rewards[place], strict=True):
        completion: Any = rollout.text
        if not isinstance(prompt, str):
            completion = [{"role": "assistant", "content": rollout.text}]
        drawn.append((Response("teacher", completion, reward), rollout.truncated))
    return drawn


class _GivenScores:
    """Scores given responses, block by block; what is scored is kept on disk."""

    def __init__(
        self,
        folder: Path,
        prompts: PromptSet,
        reward: RewardFunction | None,
        blocks: RolloutBlocks,
        trust_remote_code: bool,
    ) -> None:
        self._folder, self._prompts, self._reward = folder, prompts, reward
        self._source, self._trust_remote_code = blocks.task.source, trust_remote_code
        self._tokenizer: Any = None

    def __call__(
        self, block: RolloutBlock, given: Sequence[Sequence[Response]]
    ) -> list[list[Response]]:
        """Given responses of the block's prompts, with their rewards."""
        own = [list(given[row]) for row in block.rows]
        if self._reward is None or not any(own):
            return own
        file = self._folder / f"given-{block.number:05d}.json"
        if file.is_file():
            rewards = json.loads(file.read_text(encoding="utf-8"))
        else:
            rewards = self._score(block.rows, own)
            save_json(file, rewards)
        scores = iter(rewards)
        return [[replace(each, reward=next(scores)) for each in group] for group in own]

    def _score(
        self, rows: Sequence[int], groups: Sequence[Sequence[Response]]
    ) -> list[float | None]:
        assert self._reward is not None
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(
                self._source, trust_remote_code=self._trust_remote_code
            )
        responses = [each for group in groups for each in group]
        texts = [completion_text(each.completion) for each in responses]
        return score_completions(
            self._reward,
            self._prompts,
            rows=[row for row, group in zip(rows, groups, strict=True) for _ in group],
            completions=[each.completion for each in responses],
            completion_ids=self._tokenizer(texts, add_special_tokens=False)["input_ids"],
        )


def _digest(given: Sequence[Sequence[Response]]) -> str:
    text = json.dumps([[asdict(each) for each in group] for group in given], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
