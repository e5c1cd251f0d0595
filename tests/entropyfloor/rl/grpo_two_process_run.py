"""Program of one process: train with the monitor, write what this rank saw by itself."""

import json
import os
import sys
from pathlib import Path

import torch

STEPS, GROUP = 4, 4


def run(folder: Path) -> None:
    from grpo_runs import Recorder, grpo
    from trl import GRPOTrainer

    from entropyfloor.rl.collapse_monitor import CollapseMonitor
    from entropyfloor.rl.sft_loss_probe import SFTLossProbe
    from two_processes import files_of

    rank = int(os.environ["RANK"])
    sums: dict[int, list[float]] = {}

    class Summing(GRPOTrainer):
        def _compute_loss(self, model, inputs):
            self.mask = inputs["completion_mask"]
            return super()._compute_loss(model, inputs)

        def _get_per_token_logps_and_entropies(self, *arguments, compute_entropy=False, **others):
            result = super()._get_per_token_logps_and_entropies(
                *arguments, compute_entropy=compute_entropy, **others
            )
            if compute_entropy:
                pair = sums.setdefault(self.state.global_step + 1, [0.0, 0.0])
                pair[0] += float((result[1].detach().double() * self.mask).sum())
                pair[1] += float(self.mask.sum())
            return result

    recorder = Recorder(0.4)
    # Everything collapses against a drop this small or this large: both verdicts stop or go alike.
    monitor = CollapseMonitor("stop", tau_2=1e-9, early_step=1, late_step=3)
    trainer = grpo(
        folder / f"output-{rank}",  # its own: the files of each process
        trainer=Summing,
        rewards=recorder,
        callbacks=[monitor, SFTLossProbe([{"prompt": "1+1=", "completion": " 2"}], every=1)],
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=2,  # half a group: groups lie across the ranks
        gradient_accumulation_steps=4,
        max_steps=STEPS,
        max_completion_length=12,
        learning_rate=1e-3,
    )
    with torch.no_grad():  # end-of-sequence early and at random: unequal token counts
        trainer.model.lm_head.weight[1] += 0.4
    trainer.train()
    record = {
        "files": files_of(folder / f"output-{rank}"),
        "sums": sums,
        "calls": recorder.calls,
        "memory": monitor.remembered,
        "stopped": trainer.state.global_step,
        "logged": [log for log in trainer.state.log_history if "groups/pass_rate" in log],
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    from two_processes import end_of_process

    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
    end_of_process()
