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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from trl.scripts.grpo import GRPOScriptArguments

from entropyfloor.cli.launching import Arguments, parse_training
from entropyfloor.cli.monitor_flags import (
    MonitorArguments,
    monitor_field,
    monitor_of,
    say_verdict,
)
from entropyfloor.cli.training_command import end, loading, push, run, run_launched, train_and_save
from entropyfloor.cli.training_inputs import model_init_kwargs
from entropyfloor.cli.training_rewards import chosen_rewards, training_rows
from entropyfloor.rollouts.options import ChatOptions


@dataclass
class GFTArguments(ChatOptions, MonitorArguments, GRPOScriptArguments):
    """trl's script arguments and ours."""

    groups: str | None = field(
        default=None,
        metadata={
            "help": "JSONL file or save_to_disk folder with prompt and responses, as "
            "`entropyfloor gft-groups` writes it."
        },
    )
    reward: list[str] | None = field(
        default=None,
        metadata={"help": "exact_match, math, reasoning_gym, ... or module:function; several add."},
    )
    monitor: str = monitor_field("off")


def main(argv: Sequence[str]) -> int:
    """Parse, train, save. Returns 0; errors of usage and data are raised."""
    return run(argv, _parse, _train, module=__name__)


def _parse(argv: Sequence[str]) -> Arguments:
    from entropyfloor import GFTConfig

    return parse_training(
        argv,
        script=GFTArguments,
        training=GFTConfig,
        verb="gft",
        description="Group fine-tuning: imitation of experts and teachers beside own samples.",
    )


def _train(arguments: Arguments) -> int:
    from trl import get_peft_config, get_quantization_config

    from entropyfloor import GFTTrainer
    from entropyfloor.gft.rows import check_rows

    script, training, model = arguments.script, arguments.training, arguments.model
    if script.monitor != "off" and not training.num_self:
        raise ValueError("--monitor watches own samples and --num_self 0 draws none; leave one out")
    monitor = monitor_of(script, threshold=training.success_threshold)
    training.model_init_kwargs = model_init_kwargs(training, model)
    rewards = _rewards(script, training)
    train_rows, test_rows = training_rows(
        arguments, rewards, spec=script.groups, flag="--groups", instead="leave it out"
    )
    source = str(script.groups or script.dataset_name or "the mixture")
    check_rows(train_rows, training, num_self=training.num_self, name=source)
    if script.dry_run:
        from entropyfloor.cli.dry_run import say_what_is_trained_on

        return say_what_is_trained_on(arguments, train_rows)
    with loading(model.model_name_or_path):
        trainer = GFTTrainer(
            model=model.model_name_or_path,
            reward_funcs=rewards or None,
            args=training,
            train_dataset=train_rows,
            eval_dataset=test_rows,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
            callbacks=[] if monitor is None else [monitor],
        )
    train_and_save(trainer, arguments)
    say_verdict(monitor, trainer.accelerator.print)
    trainer.accelerator.print(
        "Before paying for RL, measure what it would start from:\n"
        f"  entropyfloor screen {training.output_dir} --prompts PROMPTS.jsonl "
        f"--reward {(script.reward or ['NAME'])[0]}"
    )
    push(trainer, arguments)
    end(trainer)
    return 0


def _rewards(script: GFTArguments, training: Any) -> list[Any]:
    """None are needed where nothing is sampled and every response was scored before."""
    named = script.reward or script.reward_funcs or script.reward_model_name_or_path
    return [] if training.num_self == 0 and not named else chosen_rewards(script)


if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(run_launched("gft", _parse, _train))
