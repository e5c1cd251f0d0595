"""Give rollouts to a reward, in trl's form, and get one number or None back for each."""

from collections.abc import Sequence
from typing import Any

from entropyfloor.rollouts.prompts import Prompt, PromptSet, reward_columns
from entropyfloor.rollouts.rewards import RewardFunction, call_reward
from entropyfloor.rollouts.rollouts import Rollout


def score_rollouts(
    reward: RewardFunction, prompts: PromptSet, rollouts: Sequence[Rollout]
) -> list[float | None]:
    """One reward per rollout; None where the reward says that it does not apply.

    Raises:
        ValueError: the reward returned the wrong number of values, or something that is no finite
            number.

    """
    return score_completions(
        reward,
        prompts,
        rows=[rollout.prompt_index for rollout in rollouts],
        completions=[
            completion_to(prompts.rows[rollout.prompt_index]["prompt"], rollout.text)
            for rollout in rollouts
        ],
        completion_ids=[list(rollout.token_ids) for rollout in rollouts],
    )


def score_completions(
    reward: RewardFunction,
    prompts: PromptSet,
    *,
    rows: Sequence[int],
    completions: list[Any],
    completion_ids: list[list[int]],
) -> list[float | None]:
    """As :func:`score_rollouts`, of completions from anywhere.

    Args:
        reward: in trl's signature.
        prompts: with the columns that it is given.
        rows: each completion's prompt.
        completions: text, or messages for a conversation.
        completion_ids: their tokens.

    Raises:
        ValueError: as :func:`score_rollouts`.

    """
    names = reward_columns(dict.fromkeys(prompts.columns))
    chosen = [prompts.rows[row] for row in rows]
    return call_reward(
        reward,
        prompts=[row["prompt"] for row in chosen],
        completions=completions,
        completion_ids=completion_ids,
        columns={name: [row.get(name) for row in chosen] for name in names},
    )


def completion_to(prompt: Prompt, text: str) -> str | list[dict[str, Any]]:
    """A completion as rewards are given it: text, or for a conversation one message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
