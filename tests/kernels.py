"""Install Triton into an environment of its own and test the GPU kernels there; no GPU is needed.

    python tests/kernels.py                    `make test-triton`; then pytest's arguments

First their machine code for GPUs that are not there, then their values in Triton's interpreter. The
environment stays in ``.venv-integrations/triton``.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".venv-integrations" / "triton"
# The version that torch's CUDA build of constraints.txt asks for.
TRITON = "triton==3.7.1"
RUNS = {"test_kernel_code.py": {}, "test_kernel_values.py": {"TRITON_INTERPRET": "1"}}


def environment() -> Path:
    """Its Python; made anew when the requirements change."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.partition("==")[0] in ("torch", "numpy", "pytest")]
    wanted = [*pinned, TRITON, "pytest-timeout"]
    python, stamp = FOLDER / "bin" / "python", FOLDER / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        venv.create(FOLDER, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        stamp.write_text("\n".join(wanted))
    return python


def main(arguments: list[str]) -> int:
    """1 if a test failed or was skipped, or Triton cannot be installed."""
    python = environment()
    ours = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'losses'}", "OMP_NUM_THREADS": "1"}
    failed = False
    for file, switches in RUNS.items():
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/losses/{file}"]
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=ours | switches, stdout=subprocess.PIPE, text=True
        )
        print(done.stdout, flush=True)
        failed |= done.returncode != 0 or " passed" not in done.stdout
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
