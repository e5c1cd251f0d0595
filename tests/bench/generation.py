"""Rollouts with entropies: our screening beside the script a user would write.

The script: every prompt repeated for its samples, padded, `generate(do_sample=True,
output_logits=True, return_dict_in_generate=True)`, the entropy from a softmax of the stacked logits
in fp32. Same model (SmolLM2-135M's shape, random weights), same prompts, no end-of-sequence token,
so the same number of tokens. The two in turn, round after round: the row to read is the median
ratio of the same round. Peak memory is measured in fresh processes, beyond the loaded model after a
short warm-up, for one batch at two lengths.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from head import peak_resident_bytes, reset_peak_resident_bytes
from tokenizers import Tokenizer, models
from training_step import SMOLLM2
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.options import Sampling
from entropyfloor.rollouts.rollouts import generate_rollouts

Prompts = list[list[int]]


def checkpoint() -> LoadedCheckpoint:
    """Random weights in fp32 and a tokenizer that names no end of sequence."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")),
        pad_token="<pad>",
    )
    if torch.cuda.is_available():
        model.cuda()
    return LoadedCheckpoint("bench", "bench", model, tokenizer)


def prompts(count: int, shortest: int, longest: int) -> Prompts:
    """Random tokens; lengths spread evenly, in an order of no meaning."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(shortest, longest, count).round().long()
    lengths = lengths[torch.randperm(count, generator=generator)]
    return [
        torch.randint(1, SMOLLM2["vocab_size"], (int(n),), generator=generator).tolist()
        for n in lengths
    ]


def batches(encoded: Prompts, samples: int, size: int) -> Iterator[Prompts]:
    """Rows in the order given."""
    rows = [row for row in encoded for _ in range(samples)]
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@torch.inference_mode()
def script(loaded: LoadedCheckpoint, encoded: Prompts, options: argparse.Namespace) -> float:
    """What a user would write; returns the mean entropy, nats."""
    total, count = 0.0, 0
    for rows in batches(encoded, options.samples, options.batch_size):
        batch = loaded.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        out = loaded.model.generate(
            **batch.to(loaded.model.device),
            max_new_tokens=options.new_tokens,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        log_p = torch.stack(out.logits, dim=1).float().log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        total, count = total + float(entropy.sum()), count + entropy.numel()
    return total / count


def ours(loaded: LoadedCheckpoint, encoded: Prompts, options: argparse.Namespace) -> float:
    """The rollouts of a screening; returns the mean entropy, nats."""
    settings = Sampling(max_new_tokens=options.new_tokens, batch_size=options.batch_size)
    requests = [(i, j) for i in range(len(encoded)) for j in range(options.samples)]
    total, count = 0.0, 0
    for rollouts in generate_rollouts(loaded, encoded, requests, settings):
        for rollout in rollouts:
            total += float(rollout.entropies_nats.sum())
            count += len(rollout.entropies_nats)
    return total / count


PEERS: dict[str, Callable[[LoadedCheckpoint, Prompts, argparse.Namespace], float]] = {
    "script": script,
    "ours": ours,
}


def peak_mib(name: str, options: argparse.Namespace) -> float:
    """Peak memory of one run beyond what a run of one new token leaves, MiB, in this process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    loaded, encoded = checkpoint(), prompts(options.prompts, *options.prompt_tokens)
    short = argparse.Namespace(**{**vars(options), "new_tokens": 1})
    PEERS[name](loaded, encoded, short)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        PEERS[name](loaded, encoded, options)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = reset_peak_resident_bytes()
    PEERS[name](loaded, encoded, options)
    return (peak_resident_bytes() - before) / 2**20


def peak_in_fresh_process(name: str, options: argparse.Namespace) -> float:
    """`peak_mib` where nothing was allocated before."""
    code = (
        "import argparse, generation; "
        f"print(generation.peak_mib({name!r}, argparse.Namespace(**{vars(options)!r})))"
    )
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure_times(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """(Seconds, CPU seconds) of each peer in each round, after one short warm-up.

    CPU seconds do not count what other processes take: the ratio to trust on a busy machine.
    """
    loaded, encoded = checkpoint(), prompts(options.prompts, *options.prompt_tokens)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PEERS}
    short = argparse.Namespace(**{**vars(options), "new_tokens": 2})
    for peer in PEERS.values():
        peer(loaded, encoded, short)
    for _ in range(options.rounds):
        for name, peer in PEERS.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            entropy = peer(loaded, encoded, options)
            used = time.perf_counter() - start, time.process_time() - start_cpu
            times[name].append(used)
            # Random weights are nearly uniform over the vocabulary: a wrong entropy would show.
            assert 10.0 < entropy < 10.81, (name, entropy)
    return times


def main() -> None:
    """Print time and memory of the two and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=[32, 128])
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--threads", type=int, help="1 on a machine that others use")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    low, high = options.prompt_tokens
    print(
        f"rollouts with entropies, SmolLM2-135M, fp32, {device}, torch {torch.__version__}\n"
        f"{options.prompts} prompts of {low} to {high} tokens x {options.samples} samples, "
        f"{options.new_tokens} new tokens, batch {options.batch_size}"
    )
    times = measure_times(options)
    print(f"{'':<14}{'script':>8}{'ours':>8}{'ratio':>8}{'(min':>8}{'max)':>7}")
    for place, unit in enumerate(["seconds", "CPU seconds"]):
        found = {name: [used[place] for used in values] for name, values in times.items()}
        ratios = [a / b for a, b in zip(found["ours"], found["script"], strict=True)]
        print(
            f"{unit:<14}{statistics.median(found['script']):>8.2f}"
            f"{statistics.median(found['ours']):>8.2f}{statistics.median(ratios):>8.2f}"
            f"{min(ratios):>8.2f}{max(ratios):>7.2f}",
            flush=True,
        )
    if options.no_memory:
        return
    lengths = [32, 128]
    print("\npeak MiB of one batch, beyond the model")
    print(f"{'new tokens':<10}{'script':>9}{'ours':>9}{'ratio':>8}")
    for new_tokens in lengths:
        one_batch = {"new_tokens": new_tokens, "prompts": 1, "samples": options.batch_size}
        sized = argparse.Namespace(**{**vars(options), **one_batch})
        peaks = {name: peak_in_fresh_process(name, sized) for name in PEERS}
        ratio = peaks["ours"] / max(peaks["script"], 1e-9)
        print(
            f"{new_tokens:<10}{peaks['script']:>9.0f}{peaks['ours']:>9.0f}{ratio:>8.2f}", flush=True
        )


if __name__ == "__main__":
    main()
