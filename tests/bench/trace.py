"""How far one thing travels through the code: files it passes, moves between them.

    python tests/bench/trace.py [micro-batch] [screen] [cell]

Three journeys: one micro-batch under an acting entropy floor, a screening of two prompts, and one
cell of an echelon (SFT, screening, GRPO, screening again). A call of a function of ours enters its
file; where the calling function of ours lies in another file, that is a move. Comprehensions and
what other libraries do in between count for nothing, and neither do imports: every journey is made
twice, and the second one is traced.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "entropyfloor/sft")]

_OURS = ("/entropyfloor/", "/entropyfloor_losses/")


class Trace:
    """Files that are called and calls between them, from :meth:`__enter__` to :meth:`__exit__`."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}  # a file of ours -> calls into it, in the order of visits
        self.moves = 0
        self._stack: list[str] = []

    def __enter__(self) -> Trace:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in {"call", "return"}:
            return
        name = frame.f_code.co_filename
        if not any(part in name for part in _OURS) or frame.f_code.co_name.startswith("<"):
            return
        if event == "return":
            if self._stack:
                self._stack.pop()
            return
        short = name[name.rindex("/src/") + 5 :] if "/src/" in name else name.rsplit("/losses/")[-1]
        if not self._stack or self._stack[-1] != short:
            self.moves += 1
        self._stack.append(short)
        self.files[short] = self.files.get(short, 0) + 1


def micro_batch() -> Trace:
    """The second optimiser step of SEDTrainer, its floor acting with the default place."""
    from sft_runs import sed_trainer

    trace = Trace()

    with tempfile.TemporaryDirectory() as folder:
        trainer = sed_trainer(
            folder, loss="ce", entropy_floor=5.0, floor_probe_prompts=0, max_steps=3
        )
        # The floor is above the entropy of any model of this vocabulary's tokens: the term acts.
        step = trainer.training_step
        calls = itertools.count()

        def traced(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) != 2:
                return step(*arguments, **keywords)
            with trace:
                return step(*arguments, **keywords)

        trainer.training_step = traced
        trainer.train()
        assert trainer.floor.head.weight > 0, "the floor did not act"
    return trace


def screening() -> Trace:
    """``entropyfloor screen`` of a tiny model on two prompts, from the command to its files."""
    from entropyfloor.cli.main import main
    from tiny_models import save_tiny

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_tiny(model)
        prompts = Path(folder) / "prompts.jsonl"
        rows = [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(2)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words = ["screen", str(model), "--prompts", str(prompts), "--reward", "exact_match"]
        words += ["--max-new-tokens", "4", "--no-progress"]
        for number in range(2):
            trace = Trace()
            with trace:
                main([*words, "--output-dir", f"{folder}/{number}"])
    return trace


def cell() -> Trace:
    """One cell of an echelon on the small task, from the recipe to the report."""
    from entropyfloor.cli.main import main

    recipe = Path(__file__).parents[2] / "examples" / "echelon_tiny.yaml"
    with tempfile.TemporaryDirectory() as folder:
        for number in range(2):
            trace = Trace()
            with trace:
                words = ["echelon", str(recipe), "--losses", "ce", "--no-progress"]
                main([*words, "--output-dir", f"{folder}/{number}"])
    return trace


JOURNEYS: dict[str, Callable[[], Trace]] = {
    "micro-batch": micro_batch,
    "screen": screening,
    "cell": cell,
}


def main(names: list[str]) -> None:
    """Print a line per journey; the files it passes with ``-v``."""
    verbose = "-v" in names
    results = []
    for name in [name for name in names if name != "-v"] or list(JOURNEYS):
        trace = JOURNEYS[name]()
        results.append((name, trace))
    for name, trace in results:
        print(f"{name}: {len(trace.files)} files, {trace.moves} moves")
        if verbose:
            print("".join(f"    {file}\n" for file in trace.files), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
