"""Every loss and place of the floor sharded in four ways, and quantised; `make test-sharded`.

    python tests/sharded.py                          the quantised ones, then every cell
    python tests/sharded.py --ways ZeRO-3 --cells anchor-full anchor-lora

Makes an environment with the pins of constraints.txt, deepspeed and bitsandbytes in a folder that
git ignores, runs test_quantised.py there, trains each cell on one process and on two (gloo, on the
CPU), and prints the table of docs/training.md. DeepSpeed needs no compiler there: none of its own
operations is built.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-sharded"
RUNS = ROOT / "tests" / "entropyfloor" / "sft"
PROGRAM = str(RUNS / "sharded_run.py")
ADDED = ["deepspeed==0.19.8", "bitsandbytes==0.50.2"]
sys.path[:0] = [str(ROOT / "tests"), str(RUNS)]

from sharded_run import CELLS, WAYS, outcome  # noqa: E402

from two_processes import two_processes  # noqa: E402

EXACT, RESUMED = 1e-5, 1e-6


def make_environment() -> str:
    """Its Python, installed if it is not there."""
    python, done = str(FOLDER / "bin" / "python"), FOLDER / "installed"
    wanted = "\n".join(ADDED) + (ROOT / "constraints.txt").read_text()
    if done.is_file() and done.read_text() == wanted:
        return python
    venv.create(FOLDER, clear=True, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", "constraints.txt"]
    # DeepSpeed's setup looks for torch, and for setuptools outside an environment of its own.
    for words in (
        ["-e", "losses", "-e", ".[test]", "setuptools", "wheel"],
        ["--no-build-isolation", *ADDED],
    ):
        environment = os.environ | {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"}
        subprocess.run([*install, *words], cwd=ROOT, env=environment, check=True)
    done.write_text(wanted)
    return python


def run(python: str, folder: Path, way: str, cells: list[str]) -> None:
    """Train cells that have no record in ``folder`` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in cells if not (folder / f"{cell}-0.json").is_file()]
    if not cells:
        return
    if way == "one":
        command = [python, PROGRAM, str(folder), way, *cells]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return
    with two_processes(PROGRAM, folder, way, *cells, python=python, seconds=3600):
        pass


def entry(cell: str, one: Path, two: Path) -> str:
    """The largest difference, or what is wrong."""
    try:
        difference, agreed, resumed = outcome(cell, one, two)
    except RuntimeError as error:
        return f"FAILED: {error}"
    wrong = {
        f"differs by {difference:.0e}": difference > EXACT,
        "ranks differ": not agreed,
        f"resumed differs by {resumed:.0e}": resumed > RESUMED,
    }
    said = ", ".join(text for text, bad in wrong.items() if bad)
    return f"FAILED: {said}" if said else f"{difference:.0e}"


def main() -> int:
    """Run, print the table; exit code 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, metavar="CELL")
    parser.add_argument("--folder", type=Path, help="keep records; what is there is not run again")
    parser.add_argument("--python", help="of an environment that is there already")
    arguments = parser.parse_args()
    python = arguments.python or make_environment()
    cells = arguments.cells
    os.environ["DS_ACCELERATOR"] = "cpu"
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(RUNS / "test_quantised.py"),
    ]
    quantised = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(quantised.stdout, file=sys.stderr, flush=True)
    failed = quantised.returncode != 0 or " passed" not in quantised.stdout
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.folder or Path(temporary)
        folders = {way: kept / way for way in ("one", *arguments.ways)}
        for way, folder in folders.items():
            print(f"== {way}", file=sys.stderr, flush=True)
            run(python, folder, way, cells)
        print("|".join(["", " loss, floor ", " weights ", *(f" {w} " for w in arguments.ways), ""]))
        print("|---" * (2 + len(arguments.ways)) + "|")
        for cell in cells:
            name, _, kind = cell.partition("-")
            row = [entry(cell, folders["one"], folders[way]) for way in arguments.ways]
            failed |= any(text.startswith("FAILED") for text in row)
            print("|".join(["", *(f" {t} " for t in (name, kind, *row)), ""]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
