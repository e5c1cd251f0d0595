"""Program of one process: group fine-tuning, and what it logged. See test_gft_two_processes.py."""

import json
import os
import sys
from pathlib import Path

import torch

STEPS = 4
CASES = {
    "plain": {},
    "batch": {"scale_rewards": "batch", "advantage_ddof": 1},
    # A floor above what is possible: the weight rises from the first step.
    "floor": {
        "entropy_floor": 5.5,
        "floor_probe_steps": 2,
        "floor_probe_prompts": 3,
        "floor_probe_tokens": 4,
        "save_strategy": "steps",
        "save_steps": STEPS,
    },
    # Groups of which nothing is taken: a process may have an empty micro-batch.
    "skipped": {"num_self": 0, "group_of_one": "skip"},
}


def run_all(folder: Path) -> None:
    """Write ``folder/<case>-<rank>.json`` for every case; the global batch is always the same."""
    from datasets import Dataset
    from gft_runs import Recorder, gft, group_rows, logged, rollouts

    from two_processes import files_of

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    for name, config in CASES.items():
        recorder = Recorder()
        output_dir = folder / f"output-{name}-{rank}"  # its own: the files of each process
        trainer = gft(
            output_dir,
            rows=group_rows(12),
            reward=recorder,
            per_device_train_batch_size=2 // processes,
            max_steps=STEPS,
            num_train_epochs=2,
            shuffle_dataset=True,
            learning_rate=0.2,
            eval_strategy="steps",
            eval_steps=STEPS,
            per_device_eval_batch_size=4 // processes,
            trainer={
                "rollout_func": rollouts,
                "eval_dataset": Dataset.from_list(group_rows(4)),
            },
            **config,
        )
        trainer.train()
        record = {
            "files": files_of(output_dir),
            "steps": logged(trainer),
            "evaluations": [e for e in trainer.state.log_history if "eval_loss" in e],
            "weight": float(sum(w.double().abs().sum() for w in trainer.model.parameters())),
            "calls": [[f"{prompt} {ids}" for prompt, ids, _ in call] for call in recorder.calls],
            "prompts": [[prompt for prompt, _, _ in call] for call in recorder.calls],
        }
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    from two_processes import end_of_process

    torch.set_num_threads(1)
    run_all(Path(sys.argv[1]))
    end_of_process()
