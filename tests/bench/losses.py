"""Every loss by its name on the fused head, beside cross-entropy: forward and backward.

One process, losses in turn, round after round: each row is the median of its ratio to ``ce`` of the
same round. On a CPU processor seconds are counted, which a busy machine disturbs little. Reference
models are read from a cache, as in training: 32 likely tokens, or the labels' log-probabilities
alone. Weights of sequences are given; "+ weights" forms them too: on the way (dco), or first, which
is one more product, and then half of the sequences are left out (tail). Peak memory is taken in a
fresh process: beyond inputs and returned gradients.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from head import SHAPES, inputs, peak_resident_bytes, reset_peak_resident_bytes, seconds
from torch import Tensor

from entropyfloor_losses import (
    LOSS_NAMES,
    ReferenceTopK,
    SequenceWeights,
    linear_loss,
    linear_token_statistics,
    loss_by_name,
    needs_calibration,
    sequence_weights,
)

TOP_K, LENGTH = 32, 128
WEIGHTS = " + weights"


def build(name: str) -> object:
    """A loss with its defaults; tau is a number."""
    loss = loss_by_name(name)
    return loss_by_name(name, tau=0.7) if needs_calibration(loss) else loss


def cached(request: object, labels: Tensor, vocabulary: int) -> ReferenceTopK | None:
    """What a cache holds for a request, of made-up numbers."""
    if not request.needs_reference:  # type: ignore[attr-defined]
        return None
    k = TOP_K if "reference_kl" in request.options else 0  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(vocabulary, (len(labels), k), generator=generator).to(labels.device)
    log_probs = torch.full((len(labels), k), -5.0, device=labels.device)
    # Lower than a model of random weights gives: every sequence's loss has fallen.
    return ReferenceTopK(tokens, log_probs, torch.full((len(labels),), -30.0, device=labels.device))


def run(name: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """Forward and backward of one loss."""
    loss: object = build(name.removesuffix(WEIGHTS))
    base_of = partial(cached, labels=labels, vocabulary=weight.shape[0])
    weights: Tensor | SequenceWeights = torch.ones_like(hidden[:, 0]).detach()
    positions = torch.arange(len(labels), device=labels.device) % LENGTH
    if name.endswith(WEIGHTS) and not hasattr(loss, "ranks_the_batch"):
        weights = SequenceWeights(loss, positions)
    elif name.endswith(WEIGHTS):
        request = loss.weights_request  # type: ignore[attr-defined]
        statistics_of = linear_token_statistics(
            hidden.detach(), weight.detach(), labels, request=request, reference=base_of(request)
        )
        weights = sequence_weights(loss, statistics_of, positions)
    base = base_of(loss.request)  # type: ignore[attr-defined]
    linear_loss(hidden, weight, labels, loss, reference=base, advantages=weights)[0].backward()


METHODS = [
    *LOSS_NAMES,
    *(name + WEIGHTS for name in LOSS_NAMES if hasattr(build(name), "weights_request")),
]


def child(name: str, shape: tuple[int, int, int]) -> None:
    """Body of the fresh process: peak memory of one call, MiB."""
    arguments = inputs(shape, torch.float32, "cpu")
    before = reset_peak_resident_bytes()
    run(name, *arguments)
    used = peak_resident_bytes() - before - sum(4 * t.numel() for t in arguments[:2])
    print(json.dumps(max(0.0, used) / 2**20))


def peak_in_fresh_process(name: str, shape: tuple[int, int, int]) -> float:
    """`child` where nothing was allocated before."""
    code = f"from losses import child; child({name!r}, {shape!r})"
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print one table per shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", type=int, choices=range(len(SHAPES)), help="only this one")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    memory = options.memory and device == "cpu"
    print(f"losses on the fused head, forward + backward, {dtype}, {device}, ratio to ce")
    for shape in SHAPES if options.shape is None else [SHAPES[options.shape]]:
        arguments = inputs(shape, dtype, device)
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        for count in range(options.rounds + 1):
            for name in METHODS:
                before = time.process_time()
                taken = seconds(partial(run, name), arguments)
                taken = taken if device == "cuda" else time.process_time() - before
                if count:  # the first round warms up
                    times[name].append(taken)
        print(f"\n(N, H, V) = {shape}\n{'loss':<28}{'x ce':>8}{'(min)':>8}{'extra MiB':>11}")
        for name, values in times.items():
            ratios = [t / ce for t, ce in zip(values, times["ce"], strict=True)]
            extra = f"{peak_in_fresh_process(name, shape):>11.0f}" if memory else ""
            print(
                f"{name:<28}{statistics.median(ratios):>8.2f}{min(ratios):>8.2f}{extra}", flush=True
            )


if __name__ == "__main__":
    main()
