"""Both KL divergences between two checkpoints: peak memory against the vocabulary.

Two small Llamas whose heads grow to 150k tokens read the same 2,048 tokens. `full logits` does what
one line of torch does with both models' logits; `ours` is `coupling/divergence.py`, a chunk at a
time. Each figure is the peak beyond the two models, in a process of its own: it must grow with the
vocabulary for the first and stay where the chunk puts it for the second.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from head import peak_resident_bytes
from transformers import AutoConfig, AutoModelForCausalLM

from entropyfloor.coupling.divergence import pair_sums
from entropyfloor.models.checkpoints import LoadedCheckpoint
from entropyfloor.rollouts.teacher_forced import Completion

VOCABULARIES = [8192, 32768, 65536, 151936]
METHODS = ["full logits", "ours"]
_ROWS, _PROMPT, _LENGTH, _WIDTH = 8, 16, 256, 64


def checkpoint(vocabulary: int, seed: int, device: str) -> LoadedCheckpoint:
    """A two-layer Llama; it needs no tokenizer to read token ids."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).eval()
    return LoadedCheckpoint(f"m{seed}", f"m{seed}", model, _Tokenizer())


class _Tokenizer:
    pad_token_id = 0
    eos_token_id = 1


def completions(vocabulary: int) -> list[Completion]:
    """Random tokens, the same for every method."""
    generator = torch.Generator().manual_seed(0)
    shape = (_ROWS, _PROMPT + _LENGTH)
    ids = torch.randint(2, vocabulary, shape, generator=generator).tolist()
    return [Completion(i, tuple(row[:_PROMPT]), tuple(row[_PROMPT:])) for i, row in enumerate(ids)]


def full_logits(models: list[LoadedCheckpoint], rows: list[Completion]) -> tuple[float, float]:
    """Both KLs from the logits of all positions."""
    device = models[0].model.device
    ids = torch.tensor([[*row.prompt_ids, *row.ids] for row in rows], device=device)
    with torch.inference_mode():
        p, q = (m.model(ids).logits[:, _PROMPT - 1 : -1].log_softmax(-1) for m in models)
        return float((p.exp() * (p - q)).sum()), float((q.exp() * (q - p)).sum())


def ours(models: list[LoadedCheckpoint], rows: list[Completion]) -> tuple[float, float]:
    """Both KLs a chunk at a time."""
    found = pair_sums(models[0], models[1], rows)
    return sum(found.forward), sum(found.reverse)


def child(method: str, vocabulary: int) -> None:
    """Body of the fresh process: MiB beyond the models, and the values."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [checkpoint(vocabulary, seed, device) for seed in (0, 1)]
    rows, run = completions(vocabulary), full_logits if method == "full logits" else ours
    run(models, rows[:1])  # libraries set themselves up
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        values = run(models, rows)
        used = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident
        before = peak_resident_bytes()
        values = run(models, rows)
        used = peak_resident_bytes() - before
    print(json.dumps({"mib": used / 2**20, "values": values}))


def in_fresh_process(method: str, vocabulary: int) -> dict[str, object]:
    """What `child` prints."""
    code = f"from kl import child; child({method!r}, {vocabulary})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print one row per vocabulary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    tokens = _ROWS * _LENGTH
    print(f"KL(p || q) and KL(q || p) at {tokens} tokens: peak MiB beyond the two models")
    print(f"{'V':>8}{'one [N, V] block':>18}{'full logits':>13}{'ours':>8}{'difference':>13}")
    for vocabulary in VOCABULARIES:
        found = {method: in_fresh_process(method, vocabulary) for method in METHODS}
        exact, own = (found[method]["values"] for method in METHODS)
        apart = max(abs(a - b) / abs(a) for a, b in zip(exact, own, strict=True))  # type: ignore[call-overload]
        mib = [found[method]["mib"] for method in METHODS]
        block = tokens * vocabulary * 4 / 2**20
        print(
            f"{vocabulary:>8}{block:>18.0f}{mib[0]:>13.0f}{mib[1]:>8.0f}{apart:>13.1e}", flush=True
        )


if __name__ == "__main__":
    main()
