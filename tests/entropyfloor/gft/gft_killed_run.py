"""Program that fine-tunes on groups and, if told, kills itself; see test_gft_resume.py."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

# Twelve rows of four a step: step 5 is in the middle of the second epoch.
KILLED_AT, SAVED_AT, STEPS = 5, 4, 7


class Kill(TrainerCallback):
    """SIGKILL after a step: nothing gets to clean up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, kill_at, resume, **changes):
    """Real sampling, dropout in LoRA, Adam, an entropy floor: everything that has a state."""
    from gft_runs import Recorder, gft, group_rows
    from peft import LoraConfig

    recorder = Recorder()
    trainer = gft(
        folder,
        rows=group_rows(12),
        reward=recorder,
        max_steps=STEPS,
        optim="adamw_torch",
        learning_rate=1e-2,
        num_teacher=1,  # of up to three: which one is drawn must be the same after a resume
        shuffle_dataset=True,
        save_strategy="steps",
        save_steps=2,
        entropy_floor=5.0,
        floor_probe_steps=3,
        floor_probe_prompts=2,
        floor_probe_tokens=4,
        trainer={
            "callbacks": [Kill(kill_at)],
            "peft_config": LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1),
        },
        **changes,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, recorder


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), KILLED_AT, resume=False)
