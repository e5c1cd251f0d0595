"""For whoever has a GPU: the head beside its peers, and a screening beside vLLM; one command.

    make bench-gpu                                       the tables of README
    make bench-gpu ARGS="--model Qwen/Qwen2.5-1.5B"      and that model screened by both engines
    python tests/bench/gpu.py --dry                      tiny shapes anywhere: does it run

Methods in turn, round after round, in bf16; milliseconds are medians, ratios those of the median
round to the three bare matrix products. Peak memory is what a call needs beyond its inputs and the
gradients it returns. Liger and cut-cross-entropy are measured where they are installed; where a
method does not fit or does not run the table says so.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from head import FLOOR, METHODS, add_cuda_peers, inputs, ours, seconds
from torch import Tensor

from entropyfloor_losses import (
    CrossEntropyLoss,
    EntropyTerm,
    GEMLoss,
    PenalisedLoss,
    ReferenceHead,
    linear_loss,
)
from entropyfloor_losses.blocks import LogitTransform
from entropyfloor_losses.kernel_block import kernels_for
from tiny_models import save_tiny

Method = Callable[[Tensor, Tensor, Tensor], None]
SHAPES = [(8192, 2048, 151936), (16384, 4096, 128256)]
DRY_SHAPES = [(64, 16, 1000), (96, 32, 507)]
PEERS = ("torch", "triton", "trl", "liger-kernel", "cut-cross-entropy", "vllm", "transformers")


def anchored(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Cross-entropy with an anchor to a model whose head is a copy: four products."""
    loss = PenalisedLoss(CrossEntropyLoss(), EntropyTerm("anchor"), weight=0.1)
    base = ReferenceHead(hidden.detach(), weight.detach())
    linear_loss(hidden, weight, labels, loss, reference=base)[0].backward()


def without_kernels(method: Method) -> Method:
    """The same, computed by torch."""

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
        os.environ["ENTROPYFLOOR_KERNELS"] = "0"
        try:
            method(hidden, weight, labels)
        finally:
            del os.environ["ENTROPYFLOOR_KERNELS"]

    return run


def methods() -> dict[str, Method]:
    """Every row, in order."""
    if torch.cuda.is_available():
        add_cuda_peers()
    return {
        **METHODS,
        "ours, CE and anchor": anchored,
        "ours, CE, without kernels": without_kernels(ours(CrossEntropyLoss())),
        "ours, GEM, without kernels": without_kernels(ours(GEMLoss())),
    }


def peak_mib(method: Method, arguments: tuple[Tensor, ...]) -> float | None:
    """Peak memory of a call beyond inputs and returned gradients; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    for tensor in arguments:
        tensor.grad = None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    method(*arguments)
    gradients = sum(t.numel() * t.element_size() for t in arguments[:2])
    return max(0.0, torch.cuda.max_memory_allocated() - before - gradients) / 2**20


def measured(shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, float | str | None]]:
    """By method: milliseconds, their ratio to the bare products, MiB; or why there are none."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = inputs(shape, torch.bfloat16, device)
    found: dict[str, dict[str, float | str | None]] = {}
    times: dict[str, list[float]] = {}
    running = methods()
    for name, method in list(running.items()):
        try:
            seconds(method, arguments)  # compiles, tunes
            found[name] = {"mib": peak_mib(method, arguments)}
        except Exception as error:  # out of memory, or a peer that refuses this GPU
            found[name] = {"error": type(error).__name__}
            del running[name]
            torch.cuda.empty_cache() if device == "cuda" else None
    for _ in range(rounds):
        for name, method in running.items():
            times.setdefault(name, []).append(seconds(method, arguments))
    for name, values in times.items():
        ratios = [t / floor for t, floor in zip(values, times[FLOOR], strict=True)]
        found[name] |= {
            "ms": 1e3 * statistics.median(values),
            "ratio": statistics.median(ratios),
        }
    return found


def head_table(shapes: list[tuple[int, int, int]], rounds: int) -> str:
    """Markdown, a row a method."""
    per_shape = [measured(shape, rounds) for shape in shapes]
    columns = "".join(f" {shape}: ms | x products | MiB |" for shape in shapes)
    lines = [f"| method |{columns}", "|---" * (1 + 3 * len(shapes)) + "|"]
    for name in per_shape[0]:
        cells = []
        for found in per_shape:
            row = found[name]
            if "error" in row:
                cells += [str(row["error"]), "", ""]
                continue
            memory = "" if row["mib"] is None else f"{row['mib']:.0f}"
            cells += [f"{row['ms']:.1f}", f"{row['ratio']:.2f}", memory]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernels_in_use() -> str:
    """Whether this machine's head takes the kernels, or what it says."""
    if not torch.cuda.is_available():
        return "no GPU"
    weight = torch.empty(SHAPES[0][2], 8, device="cuda", dtype=torch.bfloat16)
    request = CrossEntropyLoss().request
    found = kernels_for(request, LogitTransform(), weight, has_base=False)
    return "used" if found is not None else "not used: see the warning, or Triton is missing"


def screening_table(
    model: str, engines: list[str], problems: int, samples: int, new_tokens: int
) -> str:
    """Wall time of the same screening by each engine, loading included."""
    prompts = [
        {"prompt": f"What is {a} + {7 * a % 83}? Think step by step."} for a in range(problems)
    ]
    lines = ["| engine | seconds | rollouts per second |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in prompts))
        for engine in engines:
            command = [sys.executable, "-m", "entropyfloor.cli.main", "screen", model]
            command += ["--prompts", str(data), "--engine", engine]
            command += ["--num_samples", str(samples), "--max_new_tokens", str(new_tokens)]
            command += ["--output_dir", str(Path(folder) / engine), "--no_progress"]
            start = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            took = time.perf_counter() - start
            if done.returncode not in (0, 1):  # 1: the verdict
                lines.append(f"| {engine} | {done.stderr.strip().splitlines()[-1][:100]} | |")
                continue
            lines.append(f"| {engine} | {took:.1f} | {len(prompts) * samples / took:.1f} |")
    return "\n".join(lines)


def described() -> str:
    """The machine and what was measured on it."""
    versions = []
    for name in PEERS:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {', '.join(versions)}; kernels: {kernels_in_use()}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on whatever there is")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--model", help="to screen by transformers and by vLLM")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.dry:
        raise SystemExit("bench-gpu needs a GPU; python tests/bench/gpu.py --dry tries the program")
    rounds = 2 if options.dry else options.rounds
    print(described(), flush=True)
    print(head_table(DRY_SHAPES if options.dry else SHAPES, rounds), flush=True)
    if options.dry:
        with tempfile.TemporaryDirectory() as folder:
            save_tiny(folder)
            print(screening_table(folder, ["transformers"], problems=2, samples=1, new_tokens=4))
    elif options.model:
        engines = ["transformers", "vllm"]
        print(screening_table(options.model, engines, problems=64, samples=8, new_tokens=256))
    else:
        print("no screening was timed: give a model with --model")


if __name__ == "__main__":
    main()
