"""Give rollouts to a reward, in trl's form, and get one number or None back for each."""

from collections.abc import Sequence
from typing import Any

from entropyfloor.screening.prompts import PromptSet
from entropyfloor.screening.rewards import RewardFunction, call_reward
from entropyfloor.screening.rollouts import Rollout

_RESERVED = {"prompt", "completion", "completion_ids"}  # trl's own arguments, never columns


def score_rollouts(
    reward: RewardFunction, prompts: PromptSet, rollouts: Sequence[Rollout]
) -> list[float | None]:
    """One reward per rollout; None where the reward says that it does not apply.

    Raises:
        ValueError: the reward returned the wrong number of values, or something that is no finite
            number.

    """
    names = sorted({name for row in prompts.rows for name in row} - _RESERVED)
    rows = [prompts.rows[rollout.prompt_index] for rollout in rollouts]
    columns = {name: [row.get(name) for row in rows] for name in names}
    return call_reward(
        reward,
        prompts=[row["prompt"] for row in rows],
        completions=[_completion(prompts, rollout) for rollout in rollouts],
        completion_ids=[list(rollout.token_ids) for rollout in rollouts],
        columns=columns,
    )


def _completion(prompts: PromptSet, rollout: Rollout) -> Any:
    if isinstance(prompts.rows[rollout.prompt_index]["prompt"], str):
        return rollout.text
    return [{"role": "assistant", "content": rollout.text}]
