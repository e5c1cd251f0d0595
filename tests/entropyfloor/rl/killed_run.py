"""Program that trains with the monitor and, if told, kills itself; see test_killed_run.py."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

FALLING = [0.5, 0.5, 0.45, 0.4, 0.3, 0.18, 0.15, 0.1]


class Kill(TrainerCallback):
    """SIGKILL after a step, in the middle of the run: nothing gets to clean up."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder, kill_at, resume):
    from grpo_runs import Recorder, grpo
    from trl import GRPOTrainer

    from entropyfloor.rl.collapse_monitor import CollapseMonitor

    class Scripted(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            self._metrics["train"]["entropy"][-1] = FALLING[self.state.global_step]
            return loss

    monitor = CollapseMonitor("stop", early_step=2, late_step=6)
    trainer = grpo(
        folder,
        trainer=Scripted,
        rewards=Recorder(),
        callbacks=[monitor, Kill(kill_at)],
        max_steps=8,
        max_completion_length=3,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, monitor


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), int(sys.argv[2]), resume=False)
