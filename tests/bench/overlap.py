"""Overlap of a million rows with a thousand prompts: seconds, memory, recall of what was planted.

    python tests/bench/overlap.py

Rows are prompts of 20 to 60 words of a vocabulary of 20,000, drawn with Zipf's frequencies, each
with a completion of 60; half of the prompts are planted among them with words changed so that 0.8
to 0.97 of their 3-grams stay.
"""

import argparse
import resource
import time

import numpy as np

from entropyfloor.rollouts.overlap import find_overlap, grams


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=1000)
    arguments = parser.parse_args()
    vocabulary = np.array([f"w{i}" for i in range(20_000)])
    odds = 1 / np.arange(1, 20_001)
    edges = np.cumsum(odds / odds.sum())

    def text(rng, size):
        return vocabulary[np.searchsorted(edges, rng.random(size))].tolist()

    rng = np.random.default_rng(0)
    prompts = [text(rng, rng.integers(20, 61)) for _ in range(arguments.prompts)]
    planted = {}
    for index in range(0, arguments.prompts, 2):
        row = int(rng.integers(arguments.rows))
        words = list(prompts[index])
        for place in rng.choice(len(words), max(1, len(words) // 20), replace=False):
            words[place] = "changed"
        own = grams(prompts[index], 3)
        if len(own & grams(words, 3)) >= 0.8 * len(own):
            planted[row] = (index, " ".join(words))

    def rows():
        rng = np.random.default_rng(1)
        for row in range(arguments.rows):
            prompt = " ".join(text(rng, rng.integers(20, 61)))
            if row in planted:
                prompt = planted[row][1]
            yield {"prompt": prompt, "completion": " ".join(text(rng, 60))}

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, cpu = time.perf_counter(), time.process_time()
    for _ in rows():
        pass
    making = time.process_time() - cpu
    cpu = time.process_time()
    found = find_overlap(rows, [" ".join(p) for p in prompts])
    took = time.process_time() - cpu - making
    hit = {m.prompt_index for m in found.matches}
    wanted = {index for index, _ in planted.values()}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(found.words())
    print(f"recall of {len(wanted)} planted: {len(hit & wanted) / len(wanted):.4f}")
    print(f"others found: {len(hit - wanted)}")
    print(f"peak memory {after / 1024:.0f} MiB ({before / 1024:.0f} before the first row)")
    print(f"{took:.0f} s of one core, without {making:.0f} s for making the rows")
    print(f"{time.perf_counter() - started:.0f} s by the clock, with making the rows twice")


if __name__ == "__main__":
    main()
