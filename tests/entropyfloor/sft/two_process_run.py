"""Program of one process: train each case and write what it logged. See test_two_processes.py."""

import json
import os
import sys
import time
from pathlib import Path

import torch

# A target above what is possible: the weight rises from the first step.
FLOOR = {
    "loss": "ce",
    "entropy_floor": 5.5,
    "floor_probe_steps": 2,
    "floor_probe_prompts": 3,
    "floor_probe_tokens": 4,
}
CASES = {
    "ce": {"loss": "ce"},
    "auto": {"loss": "sed", "lam": 2.0, "tau": "auto", "calibration_rows": 16},
    "floor": {**FLOOR, "floor_place": "anchor"},
    # The base is the model after the first step, where the KL is 0 but for rounding.
    "floor-onset": {
        **FLOOR,
        "floor_place": "onset_anchor",
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 3,
    },
    # Probes as often as their cost allows, which processes with other clocks have to agree on.
    "floor-timed": {**FLOOR, "floor_place": "uniform", "floor_probe_steps": None},
    "accumulated": {"loss": "gem", "gradient_accumulation_steps": 2},
    # Ranks over both processes and micro-batches, from a cache that both write.
    "tail": {
        "loss": "tail",
        "drop_fraction": 0.4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1.0,
        "reference_cache": "cache",
    },
    "dco": {"loss": "dco", "group_size": 2, "gradient_accumulation_steps": 2},
}
GLOBAL_BATCH = 4


def run_all(folder: Path) -> None:
    """Write ``folder/<case>-<rank>.json`` for every case; the global batch is always the same."""
    from sft_runs import Run, arguments, build, prompt_completion_rows, sed_trainer
    from trl import SFTTrainer

    from two_processes import files_of

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    torch.set_num_threads(1)
    clock = time.perf_counter
    for name, config in [*CASES.items(), ("sft", None)]:
        settings = {
            "max_steps": 3,
            "per_device_train_batch_size": GLOBAL_BATCH // processes,
            "per_device_eval_batch_size": 8 // processes,
            "eval_strategy": "steps",
            "eval_steps": 3,
        }
        output_dir = folder / f"output-{name}-{rank}"  # its own: the files of each process
        data = {"eval_dataset": prompt_completion_rows(8)}
        if config is not None and "reference_cache" in config:
            config = {**config, "reference_cache": str(folder / config["reference_cache"])}
        if config is None:
            trainer = build(SFTTrainer, arguments(output_dir, **settings), **data)
        else:
            trainer = sed_trainer(output_dir, trainer=data, **settings, **config)
        floor = getattr(trainer, "floor", None)
        if name == "floor-timed":
            floor.probe_share = 1e-4  # what probes cost decides, and not the shortest interval
            time.perf_counter = lambda: (5 if rank else 1) * clock()
        run = Run.of(trainer)
        time.perf_counter = clock
        record = {
            "files": files_of(output_dir),
            "steps": run.steps,
            "evaluations": run.evaluations,
            "probe_interval": None if floor is None else floor.record()["state"]["interval"],
            "tau": getattr(getattr(trainer, "loss", None), "tau", None),
            "weight": float(sum(w.double().abs().sum() for w in run.weights.values())),
        }
        (folder / f"{name}-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    from two_processes import end_of_process

    run_all(Path(sys.argv[1]))
    end_of_process()
