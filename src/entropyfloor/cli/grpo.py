"""``entropyfloor grpo``: GRPO in its DAPO variant, watched for collapse; all of ``trl grpo``.

    entropyfloor grpo --model_name_or_path MODEL --prompts band.jsonl --reward math --output_dir out

Differences from ``trl grpo``: the defaults are the rank-inversion paper's (``dapo_config``);
--prompts and --reward take what ``entropyfloor screen`` takes, beside trl's --dataset_name and
--reward_funcs; --monitor stops a run whose entropy collapses; --paper_lora is the paper's LoRA;
--screen_prompts screens the start and every checkpoint afterwards. Weights are loaded from
safetensors only, and an unknown flag is an error. Flags of ``accelerate launch`` start it there.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropyfloor.cli.training_command import Job, TrainingVerb
from entropyfloor.cli.training_inputs import Arguments, chat_options
from entropyfloor.cli.training_rewards import (
    RewardArguments,
    chosen_rewards,
    monitor_of,
    say_verdict,
    training_rows,
)
from entropyfloor.render.text import console_for_tables, print_line
from entropyfloor.rl.dapo import DAPOConfig
from entropyfloor.rollouts.options import Loading, Output, Sampling, flag
from entropyfloor.screening.options import Judging
from entropyfloor.stats.groups import check_success_threshold


@dataclass
class GRPOArguments(RewardArguments):
    """trl's script arguments and ours."""

    prompts: str | None = flag(
        None, "JSONL file, save_to_disk folder or 'reasoning_gym:TASK?size=1000'."
    )
    paper_lora: bool = flag(
        False, "LoRA with r = alpha = 128 on all linear layers and the embeddings."
    )
    success_threshold: float = flag(1.0, "A rollout passes if its reward is at least this.")
    success_reward: str | None = flag(
        None, "Which of several rewards says so (default: the first)."
    )
    screen_prompts: str | None = flag(
        None,
        "Prompts, as --prompts: afterwards, screen the start and every checkpoint on "
        "them into OUTPUT_DIR/screening.",
    )
    screen_samples: int | None = flag(None, "Rollouts per prompt there (default: num_generations).")


def _prepare(arguments: Arguments) -> Job:
    from entropyfloor.rl.prompt_rows import PromptRowsTrainer

    script, training, model = arguments.script, arguments.training, arguments.model
    if script.paper_lora and model.use_peft:
        raise ValueError("--paper_lora and --use_peft are two adapters; give one of them")
    monitor = monitor_of(script, threshold=script.success_threshold, reward=script.success_reward)
    check_success_threshold(script.success_threshold)
    rewards = chosen_rewards(script)
    rows = training_rows(
        arguments, rewards, spec=script.prompts, flag="--prompts", instead="use --screen_prompts"
    )
    _check_screening(arguments, rewards[0])
    options: dict[str, Any] = {"reward_funcs": rewards, "callbacks": monitor}
    if script.paper_lora:
        from entropyfloor.rl.dapo import paper_lora

        options["peft_config"] = paper_lora(model.model_name_or_path)

    def screen_or_say_how(trainer: Any) -> None:
        say = trainer.accelerator.print
        say_verdict(monitor, say)
        if script.screen_prompts is not None:
            _release(trainer)
            _screen(arguments, rewards[0])
            return
        say(
            "Screen what came of it as before RL, the peak over its checkpoints included:\n"
            f"  entropyfloor screen {model.model_name_or_path} {training.output_dir} "
            f"--prompts PROMPTS.jsonl --reward {(script.reward or ['NAME'])[0]}"
        )

    return Job(PromptRowsTrainer, rows, options, screen_or_say_how)


def _release(trainer: Any) -> None:
    """Give the policy's and the optimizer's memory to the screening."""
    from torch import cuda

    for holder in (trainer, trainer.callback_handler):
        for name in ("model", "model_wrapped", "optimizer", "lr_scheduler"):
            setattr(holder, name, None)
    trainer.accelerator.free_memory()
    gc.collect()
    if cuda.is_available():
        cuda.empty_cache()


def _check_screening(arguments: Arguments, reward: Any) -> None:
    """Raise now what would raise after training."""
    from entropyfloor.rollouts.rewards import check_references
    from entropyfloor.screening.conclude import measured_ks

    script, training = arguments.script, arguments.training
    if script.screen_prompts is None:
        if script.screen_samples is not None:
            raise ValueError("--screen_samples is about --screen_prompts; give it")
        return
    if not callable(reward):
        raise ValueError("--screen_prompts needs a function as reward: give --reward")
    if training.max_completion_length is None:
        raise ValueError("--screen_prompts needs a length limit: give --max_completion_length")
    check_references(reward, _screening_prompts(arguments))
    samples = script.screen_samples or training.num_generations
    measured_ks(samples, Judging(group_size=training.num_generations), scored=True)


def _screening_prompts(arguments: Arguments) -> Any:
    from entropyfloor.rollouts.prompts import load_prompts

    options = chat_options(arguments.script, arguments.training.chat_template_kwargs)
    return load_prompts(str(arguments.script.screen_prompts)).with_chat_options(**options)


def _screen(arguments: Arguments, reward: Any) -> None:
    """Screen the start and every checkpoint as before RL, with RL's group size and sampling."""
    from entropyfloor.rollouts.processes import join_processes
    from entropyfloor.screening.screen import screen
    from entropyfloor.screening.table import remarks, screening_table

    script, training = arguments.script, arguments.training
    processes = join_processes()
    report = screen(
        [arguments.model.model_name_or_path, training.output_dir],
        _screening_prompts(arguments),
        reward,
        sampling=Sampling(
            num_samples=script.screen_samples or training.num_generations,
            max_new_tokens=training.max_completion_length,
            temperature=training.temperature,
            top_p=training.top_p,
            top_k=training.top_k,
            batch_size=training.per_device_train_batch_size * training.gradient_accumulation_steps,
            seed=training.seed,
        ),
        judging=Judging(
            group_size=training.num_generations, success_threshold=script.success_threshold
        ),
        loading=Loading(
            device="cpu" if training.use_cpu else None,
            trust_remote_code=training.trust_remote_code,
        ),
        output=Output(Path(training.output_dir) / "screening"),
        processes=processes,
    )
    if processes.main:
        console = console_for_tables()
        console.print(screening_table(report).to_rich(console.width))
        for remark in remarks(report):
            print_line(console, f"• {remark}")


VERB = TrainingVerb(
    "grpo",
    "GRPO in its DAPO variant, with a monitor that stops a collapsing run.",
    GRPOArguments,
    DAPOConfig,
    _prepare,
)
main = VERB.main

if __name__ == "__main__":  # a process of `accelerate launch`
    sys.exit(VERB.run_launched())
