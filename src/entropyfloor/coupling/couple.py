"""``measure_coupling``: what RL did to the SFT loss along a run, or SFT to the reward.

Everything that can be checked without a model is checked first. Then, checkpoint by checkpoint:
rollouts with rewards, held-out loss, gradients; and with the start of the run as the partner, both
KL divergences. What follows from the curves is computed at the end, from numbers alone.
"""

import gc
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
import transformers

from entropyfloor import __version__
from entropyfloor.coupling.durations import check_weight
from entropyfloor.coupling.measuring import Alone, Pair, Plan, measure_alone, measure_pair
from entropyfloor.coupling.preparation import Run, encode, find_run
from entropyfloor.coupling.report import CouplingReport
from entropyfloor.coupling.store import CouplingStore
from entropyfloor.coupling.summary import summarise
from entropyfloor.models.checkpoint_sources import CheckpointSource
from entropyfloor.models.checkpoints import (
    LoadedCheckpoint,
    load_checkpoint,
    resolve_device,
    resolve_dtype,
)
from entropyfloor.rollouts.progress import progress_bars, quiet_loading
from entropyfloor.rollouts.prompts import PromptSet
from entropyfloor.rollouts.references import check_references
from entropyfloor.rollouts.rewards import (
    RewardFunction,
    reward_by_name,
    reward_name,
)
from entropyfloor.rollouts.rollout_store import source_digest
from entropyfloor.rollouts.rollouts import SamplingSettings


def measure_coupling(
    sft: str | Path | Sequence[str | Path],
    rl: str | Path | Sequence[str | Path],
    *,
    demonstrations: PromptSet,
    prompts: PromptSet,
    reward: RewardFunction | str,
    order: str | None = None,
    steps: Sequence[float] | None = None,
    weight: float = 1.0,
    num_samples: int = 8,
    own_samples: int = 4,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    gradient_rows: int = 64,
    rank: int = 8,
    gradient_memory_gib: float = 4.0,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> CouplingReport:
    """Measure the coupling of SFT and RL along one run.

    Args:
        sft: the SFT checkpoint that RL started from; or, after RL, the checkpoints of an SFT run.
        rl: the checkpoints of the RL run (a trainer's folder stands for all of them); or the one
            that SFT started from.
        demonstrations: held-out rows with ``prompt`` and ``completion``.
        prompts: held-out rows for the reward.
        reward: a function in trl's signature, or a name.
        order: ``sft-rl`` or ``rl-sft``; by which side has one checkpoint (both: ``sft-rl``) when
            left out.
        steps: of the run's checkpoints; read off ``checkpoint-N`` when left out.
        weight: what a nat per token of SFT loss costs in reward.
        num_samples: rollouts per prompt, 2 or more.
        own_samples: samples of the SFT model per demonstration's prompt.
        max_new_tokens: length limit of both.
        batch_size: rollouts generated at once; does not change them.
        gradient_rows: how many demonstrations and prompts the gradients are of; 0 for none.
        rank: top singular directions for spectral concentration.
        gradient_memory_gib: host memory for sums of gradients; less means more passes.
        seed: of rollouts and bootstrap.
        dtype: ``"auto"`` (the checkpoint's), float32, bfloat16 or float16.
        device: CUDA if there is one, else CPU, when left out.
        trust_remote_code: run model code that travels with a checkpoint.
        output_dir: gets coupling.json, .md, .html and .png, and everything measured; measuring
            into it again goes on where a killed run was, and with more checkpoints adds them.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: an argument, row, reward or checkpoint that cannot work, tokenizers that
            differ; the message says how to mend it.
        FileNotFoundError: a checkpoint that does not exist.

    """
    check_weight(weight)
    for name, value, least in (
        ("num_samples", num_samples, 2),
        ("own_samples", own_samples, 1),
        ("gradient_rows", gradient_rows, 0),
        ("rank", rank, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    if not 0.0 < gradient_memory_gib < float("inf"):
        raise ValueError(f"gradient_memory_gib must be positive; got {gradient_memory_gib}")
    sampling = SamplingSettings(max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    function = reward_by_name(reward) if isinstance(reward, str) else reward
    check_references(function, prompts)
    resolve_dtype(dtype)
    resolved_device = resolve_device(device)
    run = find_run(
        _listed(sft), _listed(rl), order=order, steps=steps, trust_remote_code=trust_remote_code
    )
    encoded = encode(
        run,
        demonstrations,
        prompts,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    plan = Plan(
        prompts=prompts,
        reward=function,
        encoded=encoded,
        sampling=sampling,
        num_samples=num_samples,
        own_samples=own_samples,
        gradient_rows=gradient_rows,
        rank=rank,
        memory_bytes=int(gradient_memory_gib * 2**30),
    )
    determines = {
        "demonstrations": demonstrations.full_digest,
        "prompts and columns": prompts.full_digest,
        "reward": reward_name(reward),
        "reward's source file": source_digest(function),
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
        "device": resolved_device.type,
    }
    folder = None if output_dir is None else Path(output_dir)
    store = CouplingStore(folder)
    store.claim(determines)
    load = partial(
        load_checkpoint, dtype=dtype, device=resolved_device, trust_remote_code=trust_remote_code
    )
    measured = _measure(run, plan, store, load, progress=progress)
    report = summarise(
        run,
        measured,
        tokens=[len(completion.ids) for completion in encoded.demonstrations],
        weight=weight,
        seed=seed,
        settings={
            **determines,
            "order": run.order,
            "step_unit": run.step_unit,
            "weight": weight,
            "num_samples": num_samples,
            "own_samples": own_samples,
            "gradient_rows": gradient_rows,
            "rank": rank,
            "temperature": 1.0,
            "confidence": 0.95,
            "demonstrations": _rows(demonstrations),
            "prompts": _rows(prompts),
            "versions": {
                "entropyfloor": __version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "python": platform.python_version(),
            },
        },
    )
    if folder is not None:
        # Here, not above: matplotlib is loaded only where a report is written.
        from entropyfloor.coupling.page import write_report

        write_report(report, folder)
    return report


def _measure(
    run: Run,
    plan: Plan,
    store: CouplingStore,
    load: Callable[[CheckpointSource], LoadedCheckpoint],
    *,
    progress: bool,
) -> list[tuple[Alone, Pair | None, float]]:
    """What was found at the start and at each checkpoint, with the seconds it took."""
    start = run.sources[0]
    loaded_start = cache(partial(load, start))
    found: list[tuple[Alone, Pair | None, float]] = []
    samples = len(plan.prompts) * plan.num_samples
    own = len(plan.encoded.demonstrations) * plan.own_samples
    with quiet_loading(), progress_bars(enabled=progress) as bars:
        totals = [samples, *[samples + own] * (len(run.sources) - 1)]
        rows = [bars.add_task(s.name, total=n) for s, n in zip(run.sources, totals, strict=True)]
        for source, row in zip(run.sources, rows, strict=True):
            began = time.perf_counter()
            advance = partial(bars.advance, row)
            model = loaded_start if source is start else cache(partial(load, source))
            alone = measure_alone(source, plan, store, model, advance)
            pair = None
            if source is not start:
                first, later = (start, loaded_start), (source, model)
                sft, rl = (first, later) if run.order == "sft-rl" else (later, first)
                rollouts = (found[0][0] if run.order == "rl-sft" else alone).rollouts
                pair = measure_pair(sft, rl, rollouts, plan, store, advance, kept_with=source)
            found.append((alone, pair, time.perf_counter() - began))
            del model
            gc.collect()
    return found


def _listed(paths: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [paths] if isinstance(paths, str | Path) else list(paths)


def _rows(rows: PromptSet) -> dict[str, object]:
    return {"source": rows.source, "count": len(rows), "digest": rows.full_digest}
