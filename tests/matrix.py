"""The trainer tests on the versions of trl and transformers that users have; `make test-matrix`.

    python tests/matrix.py                       every cell
    python tests/matrix.py --only 1.10.0         one
    python tests/matrix.py -- -k parity          with arguments for pytest

Makes an environment for each cell in a folder that git ignores, runs the tests there, and prints
the table of docs/compatibility.md. Environments and results are kept: what is there already is
not made or run again (--rerun does).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "losses")]

from entropyfloor.sft.tested_versions import TESTED  # noqa: E402

# What the other packages of the extra `trl` were then; the oldest are the lower bounds.
BESIDE = {
    "1.10.0": {"peft": "0.18.0", "accelerate": "1.12.0"},
    "1.11.0": {"peft": "0.18.1", "accelerate": "1.12.0"},
    "1.12.0": {"peft": "0.19.1", "accelerate": "1.13.0"},
    "1.13.0": {"peft": "0.19.1", "accelerate": "1.13.0"},
    "1.14.2": {"peft": "0.20.0", "accelerate": "1.14.0"},
}
TRAINER_TESTS = [
    *(f"tests/entropyfloor/{name}" for name in ("sft", "gft", "rl")),
    *(f"tests/entropyfloor/models/{name}.py" for name in ("test_loss_head", "test_sharded_head")),
    *(f"tests/entropyfloor/cli/test_{name}.py" for name in ("sft", "gft", "grpo")),
]
COUNTS = ("passed", "failed", "skipped", "error")
HEAD = ("trl", "transformers", "peft", "accelerate", "passed", "failed", "skipped", "minutes")


def constraint(name: str) -> str:
    """The version in constraints.txt, which is that of the newest cell."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def versions(trl: str, transformers: str) -> dict[str, str]:
    """What a cell is made of."""
    beside = BESIDE.get(trl, {name: constraint(name) for name in ("peft", "accelerate")})
    return {"trl": trl, "transformers": transformers, **beside, "torch": constraint("torch")}


def make_environment(folder: Path, pins: dict[str, str]) -> Path:
    """A virtual environment with the project's test extra; returns its Python."""
    python = folder / "bin" / "python"
    done = folder / "pins.json"
    if done.is_file() and json.loads(done.read_text()) == pins:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    wanted = [f"{name}=={version}" for name, version in pins.items()]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *wanted, "-e", "losses", "-e", ".[test]"], cwd=ROOT, check=True)
    done.write_text(json.dumps(pins))
    return python


def run_tests(python: Path, arguments: list[str]) -> dict[str, float]:
    """Outcomes by name, and minutes."""
    started = time.perf_counter()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    command += ["-n", "2", "--dist", "loadfile"]  # as `make test` does
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, *TRAINER_TESTS, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        sys.stderr.write(line)
        last = line.strip() or last
    process.wait()
    counts: dict[str, float] = dict.fromkeys(COUNTS, 0)
    counts |= {name: int(n) for n, name in re.findall(rf"(\d+) ({'|'.join(COUNTS)})", last)}
    if process.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {process.returncode}: {last}")
    counts["failed"] += counts.pop("error")
    return {**counts, "minutes": round((time.perf_counter() - started) / 60, 1)}


def table(cells: list[dict]) -> str:
    """Markdown."""
    lines = [HEAD, ["---"] * len(HEAD)]
    lines += [[str(cell[name]) for name in HEAD] for cell in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Every cell, then the table; exit code 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="of environments")
    parser.add_argument("--only", action="append", help="a version of trl, repeatable")
    parser.add_argument("--oldest", action="store_true", help="the first cell alone, as CI does")
    parser.add_argument("--rerun", action="store_true", help="run cells that have a result")
    arguments, for_pytest = parser.parse_known_args()
    for_pytest = [argument for argument in for_pytest if argument != "--"]
    if arguments.oldest:
        arguments.only = [next(iter(TESTED))]
    cells = []
    for trl, of_transformers in TESTED.items():
        for transformers in of_transformers:
            if arguments.only and trl not in arguments.only:
                continue
            pins = versions(trl, transformers)
            folder = arguments.folder / f"trl-{trl}-transformers-{transformers}"
            result = folder / "result.json"
            if arguments.rerun or for_pytest or not result.is_file():
                counts = run_tests(make_environment(folder, pins), for_pytest)
                if not for_pytest:
                    result.write_text(json.dumps(counts))
            else:
                counts = json.loads(result.read_text())
            cells.append({**pins, **counts})
            print(table(cells[-1:]), flush=True)
    print(table(cells))
    return int(any(cell["failed"] for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
