"""Build an environment for each framework, with that release's own pins, and run its tests there.

    python tests/integrations/environments.py              # all of them
    python tests/integrations/environments.py axolotl verl

The environments stay in ``.venv-integrations/``; one is built anew when its requirements change.
A framework that cannot be installed is skipped, and the end of the installer's error is shown.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

from frameworks import FRAMEWORKS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-integrations"
TORCH = next(
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:7] == "torch=="
)


def binary(environment, name):
    return str(environment / "bin" / name)


def uv():
    """The installer, in an environment of its own."""
    environment = FOLDER / "uv"
    if not Path(binary(environment, "uv")).exists():
        venv.create(environment, with_pip=True)
        subprocess.run([binary(environment, "pip"), "install", "--quiet", "uv"], check=True)
    return binary(environment, "uv")


def build(name):
    """Install a framework and us; None, or the end of the installer's error."""
    framework = FRAMEWORKS[name]
    environment = FOLDER / name
    wanted = [framework.pin, TORCH, *framework.added, "pytest", "pytest-timeout"]
    stamp = environment / "requirements.txt"
    described = "\n".join([*wanted, *(f"without {each}" for each in framework.left_out)])
    if stamp.exists() and stamp.read_text() == described:
        return None
    overrides = FOLDER / f"{name}.overrides"
    FOLDER.mkdir(exist_ok=True)
    overrides.write_text(
        "".join(f"{each} ; sys_platform == 'never'\n" for each in framework.left_out)
    )
    # uv does not read pip's settings.
    settings = os.environ | {
        f"UV_{theirs}": os.environ[f"PIP_{theirs}"]
        for theirs in ("FIND_LINKS", "INDEX_URL")
        if f"PIP_{theirs}" in os.environ
    }
    python = binary(environment, "python")
    ours = ["-e", str(ROOT / "losses"), "-e", str(ROOT)]
    into = ["--python", python, "--override", str(overrides)]
    for words in (
        ["venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        ["pip", "install", "--quiet", *into, *wanted, *ours],
    ):
        result = subprocess.run([uv(), *words], env=settings, capture_output=True, text=True)
        if result.returncode:
            return " | ".join(result.stderr.strip().splitlines()[-3:])
    (site,) = (environment / "lib").glob("python*/site-packages")
    for module in framework.empty_modules:
        (site / f"{module}.py").write_text('"""Left out, and imported all the same."""\n')
    stamp.write_text(described)
    return None


def main(names):
    """Build and test; the exit code is 1 if a test failed."""
    outcomes = {}
    for name in names or FRAMEWORKS:
        print(f"== {FRAMEWORKS[name].pin}", flush=True)
        error = build(name)
        if error is not None:
            outcomes[name] = f"skipped, it cannot be installed: {error}"
            continue
        words = [binary(FOLDER / name, "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        # Nothing of the environment that runs this script.
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        code = subprocess.run(
            [*words, f"tests/integrations/{FRAMEWORKS[name].tests}"], cwd=ROOT, env=clean
        )
        outcomes[name] = "passed" if code.returncode == 0 else "FAILED"
    for name, outcome in outcomes.items():
        left_out = "; ".join(f"without {k}: {v}" for k, v in FRAMEWORKS[name].left_out.items())
        print(f"{FRAMEWORKS[name].pin}: {outcome}{f' ({left_out})' if left_out else ''}")
    return int("FAILED" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
