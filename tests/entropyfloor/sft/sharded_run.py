"""Program of one process: train cells of a way of sharding and write what they were.

    sharded_run.py FOLDER WAY CELL ...        WAY: one, DDP, FSDP2, ZeRO-2, ZeRO-3

The same global batch everywhere. Each cell trains six steps, with a checkpoint after three, and is
then resumed from that checkpoint by a new trainer.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset

STEPS, GLOBAL_BATCH = 6, 4
# Targets above what is possible: the weight of the term rises from the first step.
FLOOR = {
    "loss": "ce",
    "entropy_floor": 5.4,
    "floor_probe_steps": 3,
    "floor_probe_prompts": 3,
    "floor_probe_tokens": 4,
}
OBJECTIVES = {
    "ce": {"loss": "ce"},
    "sed": {"loss": "sed", "lam": 2.0, "tau": "auto", "calibration_rows": 8},
    "gem": {"loss": "gem"},
    "uniform": {**FLOOR, "floor_place": "uniform"},
    "onset_anchor": {**FLOOR, "floor_place": "onset_anchor"},
    "anchor": {**FLOOR, "floor_place": "anchor"},
    "auto": {  # read off rows that training does not help: it comes into force in these steps
        **FLOOR,
        "entropy_floor": "auto",
        "floor_factor": 1.2,
        "floor_probe_steps": 1,
        "floor_held_out_rows": 4,
    },
    "gift": {"loss": "gift", "beta": 3.0},
    "asft": {"loss": "asft"},
    "psft": {"loss": "psft", "refresh_steps": 2},
    "given": {"loss": "gift", "beta": 3.0},  # another model, by its name
    "gft": {},
    "gft_anchor": {
        "entropy_floor": 5.4,
        "floor_place": "anchor",
        "floor_probe_steps": 3,
        "floor_probe_prompts": 2,
        "floor_probe_tokens": 4,
    },
}
CELLS = [f"{name}-{kind}" for name in OBJECTIVES for kind in ("full", "lora")]
CELLS.remove("given-lora")
HELD_OUT = ("entropy_floor", "floor_in_force", "held_out_loss", "held_out_entropy")
COMPARED = ("loss", "grad_norm", "ce", "reference_kl", "floor_weight", "floor_target", *HELD_OUT)
STATE = (
    "floor_weight",
    "floor_target",
    "floor_entropy",
    "probe_entropy",
    "reference_kl",
    *HELD_OUT,
)
WAYS = ("DDP", "FSDP2", "ZeRO-2", "ZeRO-3")
ZERO = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}


def as_if_accelerators() -> None:
    """Let accelerate's FSDP and DeepSpeed run on CPU ranks: it offers them to GPUs alone."""
    from accelerate import state
    from accelerate.utils import DistributedType

    def on_cpu(self, *args, **kwargs):
        self.device = torch.device("cpu")
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = on_cpu


def settings_of(way: str, state_dict: str = "SHARDED_STATE_DICT") -> dict:
    """Arguments of a trainer for a way of sharding."""
    if way == "FSDP2":
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "reshard_after_forward": True,
                "state_dict_type": state_dict,
            },
        }
    if way.startswith("ZeRO"):
        return {"deepspeed": {**ZERO, "zero_optimization": {"stage": int(way[-1])}}}
    return {}


def lora():
    from peft import LoraConfig

    return LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=4, lora_dropout=0.0)


def trainer_of(cell: str, way: str, folder: Path, processes: int, *, model=None, **changes):
    """A trainer that has not begun; ``changes`` of its arguments win."""
    from sft_runs import prompt_completion_rows, sed_trainer

    from tiny_models import tiny_model

    name, _, kind = cell.partition("-")
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": GLOBAL_BATCH // processes,
        "save_strategy": "steps",
        "save_steps": STEPS // 2,
        "learning_rate": 0.05,
        "use_cpu": way in ("one", "DDP"),
        **settings_of(way),
    }
    model = tiny_model() if model is None else model
    data = {"train_dataset": prompt_completion_rows(24), "model": model}
    # LoRA begins as the model: with B at zero an anchor would have no gradient for three steps.
    if kind == "lora":
        data["peft_config"] = lora()
        settings["learning_rate"] = 1.0
    if name == "auto":
        rows = [{"prompt": f"{i}?", "completion": "ZQ" * (1 + i % 2)} for i in range(8)]
        data["eval_dataset"] = Dataset.from_list(rows)
        settings["learning_rate"] = {"full": 0.6, "lora": 1.0}[kind]
    if name == "given":
        settings["reference_model"] = str(folder.parent / "given")
    if name.startswith("gft"):
        from gft_runs import gft, group_rows, rollouts

        settings.update(gradient_accumulation_steps=1, learning_rate=settings["learning_rate"] * 4)
        model = {"model": data["model"], "rows": group_rows(24)}
        others = {k: v for k, v in data.items() if k == "peft_config"} | {"rollout_func": rollouts}
        return gft(folder, **model, trainer=others, **settings | OBJECTIVES[name] | changes)
    return sed_trainer(folder, trainer=data, **settings | OBJECTIVES[name] | changes)


def logged(trainer) -> list[dict]:
    """What is compared of each step."""
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: step[key] for key in {*COMPARED, *STATE} & step.keys()} for step in steps]


def run(cell: str, way: str, folder: Path, processes: int) -> dict:
    """Train, then resume from the middle; what both logged."""
    started = time.perf_counter()
    records = {}
    for phase in ("whole", "resumed"):
        if phase == "resumed" and way == "one":
            break
        reset()
        trainer = trainer_of(cell, way, folder, processes)
        middle = str(folder / f"checkpoint-{STEPS // 2}")
        trainer.train(resume_from_checkpoint=middle if phase == "resumed" else None)
        records[phase] = logged(trainer)
    return records | {"seconds": time.perf_counter() - started}


def reset() -> None:
    """Each trainer as in a process of its own; the group of processes stays."""
    from accelerate.state import AcceleratorState, GradientState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # otherwise tiny models are made in parts
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_USE", "FSDP_")):
            del os.environ[name]


def outcome(cell: str, one: Path, two: Path) -> tuple[float, bool, float]:
    """How far two processes are from one, whether they agree, how far a resumed run is.

    Args:
        cell: of `CELLS`.
        one: folder of the run of one process.
        two: folder of the run of two.

    Returns:
        The largest difference of a logged value, relative where that is above 1; whether the state
        of the floor is the same on both ranks to the bit; the largest difference between the second
        half of a run and of one that was resumed.

    Raises:
        RuntimeError: a cell failed.

    """
    alone, *ranks = (
        json.loads((folder / f"{cell}-{rank}.json").read_text())
        for folder, rank in ((one, 0), (two, 0), (two, 1))
    )
    for record in (alone, *ranks):
        if "error" in record:
            raise RuntimeError(record["error"])
    whole, second_half = ranks[0]["whole"], slice(STEPS // 2, None)
    agreed = [[{k: s.get(k) for k in STATE} for s in rank["whole"]] for rank in ranks]
    resumed = largest(ranks[0]["resumed"][second_half], whole[second_half])
    return largest(whole, alone["whole"]), agreed[0] == agreed[1], resumed


def largest(ours: list[dict], theirs: list[dict]) -> float:
    """Difference of any logged number, relative where that is above 1."""
    assert [set(step) for step in ours] == [set(step) for step in theirs]
    pairs = [(a[k], b[k]) for a, b in zip(ours, theirs, strict=True) for k in a]
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs)


def run_all(folder: Path, way: str, cells: list[str]) -> None:
    """Write ``folder/<cell>-<rank>.json``: records, or the error that a cell raised."""
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if rank == 0:
        from tiny_models import tiny_model

        tiny_model(seed=1).save_pretrained(folder / "given")
    if processes > 1:
        torch.distributed.barrier()
    for cell in cells:
        try:
            record = run(cell, way, folder / cell, processes)
        except Exception as error:
            if os.environ.get("SHARDED_RAISES"):
                raise
            record = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        (folder / f"{cell}-{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    sys.path.append(str(Path(__file__).parents[1] / "gft"))
    where, chosen_way, *chosen_cells = sys.argv[1:]
    torch.set_num_threads(1)
    if chosen_way != "one":
        torch.distributed.init_process_group("gloo")
    if chosen_way not in ("one", "DDP"):
        as_if_accelerators()
    run_all(Path(where), chosen_way, chosen_cells or CELLS)
    if chosen_way != "one":
        from two_processes import end_of_process

        end_of_process()
