"""``entropyfloor gft``: group fine-tuning with GFTTrainer; flags and YAML of ``trl grpo``'s kind.

    entropyfloor gft --model_name_or_path MODEL --groups groups.jsonl --reward math --output_dir out

--groups takes what ``entropyfloor gft-groups`` writes; rows of trl's --dataset_name do as well, if
they have the columns ``prompt`` and ``responses``. --reward and --reward_funcs are those of
``entropyfloor grpo``; responses that were scored before are not scored again, and with --num_self 0
no reward is needed where all of them were. Weights are loaded from safetensors only, and an unknown
flag is an error. --monitor watches the own samples, as in ``entropyfloor grpo``; it is off unless
asked for. Flags of ``accelerate launch`` start it there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from entropyfloor.cli.training_command import Job, TrainingVerb
from entropyfloor.cli.training_inputs import Arguments
from entropyfloor.cli.training_rewards import (
    RewardArguments,
    chosen_rewards,
    monitor_field,
    monitor_of,
    say_verdict,
    training_rows,
)
from entropyfloor.gft.config import GFTConfig
from entropyfloor.rollouts.options import flag


@dataclass
class GFTArguments(RewardArguments):
    """trl's script arguments and ours."""

    groups: str | None = flag(
        None,
        "JSONL file or save_to_disk folder with prompt and responses, as "
        "`entropyfloor gft-groups` writes it.",
    )
    monitor: str = monitor_field("off")


def _prepare(arguments: Arguments) -> Job:
    from entropyfloor import GFTTrainer
    from entropyfloor.gft.rows import check_rows

    script, training = arguments.script, arguments.training
    if script.monitor != "off" and not training.num_self:
        raise ValueError("--monitor watches own samples and --num_self 0 draws none; leave one out")
    monitor = monitor_of(script, threshold=training.success_threshold)
    rewards = _rewards(script, training)
    rows = training_rows(
        arguments, rewards, spec=script.groups, flag="--groups", instead="leave it out"
    )
    source = str(script.groups or script.dataset_name or "the mixture")
    check_rows(rows[0], training, num_self=training.num_self, name=source)

    def say_what_is_next(trainer: Any) -> None:
        say_verdict(monitor, trainer.accelerator.print)
        trainer.accelerator.print(
            "Before paying for RL, measure what it would start from:\n"
            f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl "
            f"--reward {(script.reward or ['NAME'])[0]}"
        )

    options = {"reward_funcs": rewards or None, "callbacks": monitor}
    return Job(GFTTrainer, rows, options, say_what_is_next)


def _rewards(script: GFTArguments, training: Any) -> list[Any]:
    """None are needed where nothing is sampled and every response was scored before."""
    named = script.reward or script.reward_funcs or script.reward_model_name_or_path
    return [] if training.num_self == 0 and not named else chosen_rewards(script)


VERB = TrainingVerb(
    "gft",
    "Group fine-tuning: imitation of experts and teachers beside own samples.",
    GFTArguments,
    GFTConfig,
    _prepare,
)
main = VERB.main

if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(VERB.run_launched())
