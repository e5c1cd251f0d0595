"""Forward and backward of the head: our fused losses beside their floor and their peers.

One process, methods in turn, round after round: each row is the median of its ratio to the three
bare matrix products *of the same round*, so that a drifting machine cancels. Peak memory is taken
in a fresh process per method: what it needs beyond its inputs and the gradients it returns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from trl.kernels import ChunkedLogProbFunction

from entropyfloor_losses import (
    CrossEntropyLoss,
    EntropyBonusLoss,
    GEMLoss,
    SelectiveEntropyLoss,
    linear_loss,
)

SHAPES = [(2048, 576, 49152), (1024, 896, 151936)]
FLOOR = "three matrix products"


def _backward(loss: Tensor) -> None:
    loss.backward()


def three_products(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """The floor: logits, gradient of the hidden states, gradient of the weight."""
    with torch.no_grad():
        logits = hidden @ weight.t()
        hidden.grad = logits @ weight
        weight.grad = logits.t() @ hidden


def plain_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """What a loop without a fused head does."""
    _backward(functional.cross_entropy((hidden @ weight.t()).float(), labels))


def published_sed(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """SED as published (arXiv:2602.07464): softmax and top-k over full logits."""
    logits = (hidden @ weight.t()).float()
    probability = logits.softmax(-1)
    mask = (probability.topk(2, dim=-1).values.sum(-1) < 0.7).float().detach()
    of_label = probability.gather(1, labels.unsqueeze(1)).squeeze(1)
    penalty = mask * (of_label * (of_label - 1) + 0.25)
    _backward((functional.cross_entropy(logits, labels, reduction="none") + penalty).mean())


def trl_fused(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    """trl's fused head with the outputs SFTTrainer asks for: CE, entropy logged."""
    outputs = ("log_probs", "entropy", "is_top1")
    log_probs, *_ = ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 1.0, 32768, None, 1.0, outputs
    )
    _backward(-log_probs.mean())


def ours(loss: object) -> Callable[[Tensor, Tensor, Tensor], None]:
    """Our fused head with a loss; entropy, top-k mass and top-1 come along."""

    def run(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
        _backward(linear_loss(hidden, weight, labels, loss)[0])  # type: ignore[arg-type]

    return run


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    FLOOR: three_products,
    "plain logits, CE": plain_cross_entropy,
    "published SED, full logits": published_sed,
    "trl fused head, CE": trl_fused,
    "ours, CE": ours(CrossEntropyLoss()),
    "ours, SED": ours(SelectiveEntropyLoss(tau=0.7)),
    "ours, GEM": ours(GEMLoss()),
    "ours, entropy bonus": ours(EntropyBonusLoss()),
}


def add_cuda_peers() -> None:
    """Liger's and Apple's fused cross-entropies, where they are installed (CUDA only)."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        METHODS["Liger fused linear CE"] = lambda h, w, y: _backward(
            liger_fused_linear_cross_entropy(h, w, y)
        )
    except ImportError:
        print("Liger is not installed: pip install liger-kernel to see it here")
    try:
        from cut_cross_entropy import linear_cross_entropy

        METHODS["cut-cross-entropy"] = lambda h, w, y: _backward(linear_cross_entropy(h, w, y))
    except ImportError:
        print("cut-cross-entropy is not installed: pip install cut-cross-entropy to see it here")


def inputs(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Random hidden states and weight with logits of ordinary size (standard deviation 2)."""
    tokens, width, vocabulary = shape
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator) * (2 / width**0.5)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    return (
        hidden.to(device, dtype).requires_grad_(),
        weight.to(device, dtype).requires_grad_(),
        labels.to(device),
    )


def seconds(
    method: Callable[[Tensor, Tensor, Tensor], None], arguments: tuple[Tensor, ...]
) -> float:
    """Wall time of one forward and backward."""
    for tensor in arguments:
        tensor.grad = None
    if arguments[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    method(*arguments)
    if arguments[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mib(name: str, shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> float:
    """Peak memory of one call beyond inputs and returned gradients, in MiB, in this process."""
    arguments = inputs(shape, dtype, device)
    gradients = sum(t.numel() * t.element_size() for t in arguments[:2])
    if device == "cuda":
        METHODS[name](*arguments)
        for tensor in arguments:
            tensor.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        METHODS[name](*arguments)
        used = torch.cuda.max_memory_allocated() - before
    else:
        before = reset_peak_resident_bytes()
        METHODS[name](*arguments)
        used = peak_resident_bytes() - before
    return max(0.0, used - gradients) / 2**20


def reset_peak_resident_bytes() -> int:
    """Start the peak again at what is resident now, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident memory of this program (ru_maxrss would start at its parent's peak)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def peak_in_fresh_process(name: str, shape: tuple[int, int, int], dtype: str) -> float:
    """`peak_mib` where nothing was allocated before."""
    code = f"from head import child; child({name!r}, {shape!r}, {dtype!r})"
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def child(name: str, shape: tuple[int, int, int], dtype: str) -> None:
    """Body of the fresh process."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        add_cuda_peers()
    print(json.dumps(peak_mib(name, shape, getattr(torch, dtype), device)))


def bench(shape: tuple[int, int, int], dtype: str, rounds: int) -> list[dict[str, object]]:
    """One shape: rows of name, seconds, ratio to the floor, memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = inputs(shape, getattr(torch, dtype), device)
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for method in METHODS.values():
        seconds(method, arguments)
    for _ in range(rounds):
        for name, method in METHODS.items():
            times[name].append(seconds(method, arguments))
    rows: list[dict[str, object]] = []
    for name, values in times.items():
        ratios = [t / floor for t, floor in zip(values, times[FLOOR], strict=True)]
        rows.append(
            {
                "method": name,
                "seconds": statistics.median(values),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "extra_mib": peak_in_fresh_process(name, shape, dtype),
            }
        )
    return rows


def main() -> None:
    """Print one table per shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=None)
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    dtype = options.dtype or ("bfloat16" if cuda else "float32")
    if cuda:
        add_cuda_peers()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"head, forward + backward, {dtype}, {device}, torch {torch.__version__}")
    for shape in SHAPES:
        full = shape[0] * shape[2] * 4 / 2**20
        print(f"\n(N, H, V) = {shape}; full logits {full:.0f} MiB in fp32")
        print(f"{'method':<28}{'seconds':>9}{'x floor':>9}{'(min)':>8}{'extra MiB':>11}")
        for row in bench(shape, dtype, options.rounds):
            print(
                f"{row['method']:<28}{row['seconds']:>9.3f}{row['ratio']:>9.2f}"
                f"{row['ratio_min']:>8.2f}{row['extra_mib']:>11.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
