"""One of two processes that build response groups together; not a test by itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from entropyfloor.rollouts.processes import join_processes
from entropyfloor.rollouts.prompts import PromptSet
from flat_calls import build_response_groups
from two_processes import end_of_process

PROMPTS = PromptSet(
    tuple({"prompt": f"{i}+{i}=", "completion": str(2 * i)} for i in range(6)), "sums"
)


def even_length(completions, **_):
    return [float(len(text) % 2 == 0) for text in completions]


def build(folder: Path, name: str, processes=None):
    return build_response_groups(
        teacher=folder / "model",
        prompts=PROMPTS,
        reward=even_length,
        output_dir=folder / name,
        max_new_tokens=4,
        batch_size=4,
        keep_truncated=True,
        progress=False,
        device="cpu",
        processes=processes,
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    processes = join_processes()
    built = build(target, "together", processes)
    (target / f"counts-{processes.rank}").write_text(str(built.counts))
    end_of_process()
