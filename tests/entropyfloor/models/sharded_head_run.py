"""Program of one process: four steps of a model sharded by FSDP2. See test_sharded_head.py."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard

STEPS, ROWS, RATE = 4, 4, 0.1


def _head(model):
    return [model.get_output_embeddings()]


def _tied(model):
    return [[model.get_input_embeddings(), model.get_output_embeddings()]]  # FSDP wants one unit


def _modules_to_save(model):
    base = model.get_base_model()
    return [base.lm_head, base.get_input_embeddings()]


def _lora(model):
    adapters = LoraConfig(target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"])
    return get_peft_model(model, adapters)


# name -> changes of the model's configuration, its adapters, the modules sharded by themselves
CASES = {
    "head": ({}, None, _head),
    "tied": ({"tie_word_embeddings": True}, None, _tied),
    "modules_to_save": ({}, _lora, _modules_to_save),
    "whole model": ({}, None, lambda model: []),
}


def train(case: str, processes: int, rank: int) -> list[float]:
    """Loss per token of each step, all processes together; rows of unequal length."""
    from entropyfloor.models.patch_model import patch_model
    from entropyfloor_losses import IGNORE_INDEX, CrossEntropyLoss
    from tiny_models import VOCABULARY, tiny_model

    changes, adapt, units = CASES[case]
    model = tiny_model(**changes)
    patch_model(model, CrossEntropyLoss())
    if adapt is not None:
        model = adapt(model)
    if processes > 1:
        for unit in units(model):
            fully_shard(unit)
        fully_shard(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    rows = torch.randint(5, VOCABULARY, (ROWS, 9), generator=torch.Generator().manual_seed(0))
    labels = rows.clone()
    for row in range(ROWS):
        labels[row, : 1 + 2 * row] = IGNORE_INDEX
    tokens = int((labels[:, 1:] != IGNORE_INDEX).sum())
    mine = slice(rank * ROWS // processes, (rank + 1) * ROWS // processes)
    losses = []
    for _ in range(STEPS):
        output = model(input_ids=rows[mine], labels=labels[mine], entropyfloor_head=True)
        loss = output.objective / tokens
        (loss * processes).backward()  # gradients are averaged over processes
        total = loss.detach().clone()
        if processes > 1:
            dist.all_reduce(total)
        losses.append(float(total))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def run_all(folder: Path) -> None:
    """Write ``folder/<rank>.json``: the losses of every case."""
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    losses = {case: train(case, processes, rank) for case in CASES}
    (folder / f"{rank}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    from two_processes import end_of_process

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_all(Path(sys.argv[1]))
    end_of_process()
