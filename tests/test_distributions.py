"""Two distributions: what their wheels hold and ask for, and what works with no more than that."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import entropyfloor
from entropyfloor.cli.main import main
from tiny_models import save_tiny

ROOT = Path(__file__).parent.parent
FOLDERS = {"entropyfloor-losses": ROOT / "losses", "entropyfloor": ROOT}
PACKAGES = {"entropyfloor-losses": "losses", "entropyfloor": "src"}
TRAINING = ("trl", "peft", "accelerate")
# What needs the extra `trl`; every other public name is there without.
ADVICE = 'is not installed; pip install "entropyfloor[trl]"'
TRAINERS = {"GFTConfig", "GFTTrainer", "JointGRPOTrainer", "SEDConfig", "SEDTrainer", "dapo_config"}

WITHOUT = """
import sys
for module in {missing!r}:
    sys.modules[module] = None  # as if it were not installed, for `import` and `find_spec`
"""


def run(*words, cwd=None, env=None):
    """What a command prints."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_without(missing, program):
    """What a program prints in a process of its own where modules are missing."""
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the tests: sums to the last bit
    return run(sys.executable, "-c", WITHOUT.format(missing=missing) + program, env=one_thread)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Both wheels, built from this tree."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for name, source in FOLDERS.items():
        command = "from hatchling.build import build_wheel as b; import sys; print(b(sys.argv[1]))"
        built[name] = folder / run(sys.executable, "-c", command, folder, cwd=source).split()[-1]
    return built


def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_holds_its_package_and_nothing_else(wheels, name):
    folder = ROOT / PACKAGES[name]
    package = name.replace("-", "_")
    there = {
        str(path.relative_to(folder))
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheels[name]) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
        assert any(n.endswith("licenses/LICENSE") for n in archive.namelist())
    assert held == there


def test_what_the_wheels_ask_for(wheels):
    required = {
        name: [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist")]
        for name, wheel in wheels.items()
    }
    assert [r.name for r in required["entropyfloor-losses"]] == ["torch"]
    plain = {r.name for r in required["entropyfloor"] if r.marker is None}
    assert "entropyfloor-losses" in plain and not plain & set(TRAINING)
    with_trl = {
        r.name for r in required["entropyfloor"] if r.marker and r.marker.evaluate({"extra": "trl"})
    }
    assert with_trl == {*TRAINING, "transformers"}  # the trainers need a later one
    losses = next(r for r in required["entropyfloor"] if r.name == "entropyfloor-losses")
    assert losses.specifier.contains(metadata(wheels["entropyfloor-losses"])["Version"])


def test_every_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for module, extra in entropyfloor._EXTRAS.items():
        names = {Requirement(line).name.replace("-", "_") for line in extras[extra]}
        assert module in names


LOSSES = """
import sys, entropyfloor_losses as losses, torch
assert all(hasattr(losses, name) for name in losses.__all__)
hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(31, 8)
for loss in (losses.CrossEntropyLoss(), losses.SelectiveEntropyLoss(tau=0.9), losses.GEMLoss()):
    losses.linear_loss(hidden, weight, torch.arange(4), loss)[0].backward()
print("entropyfloor" in sys.modules)
"""


def test_the_losses_run_without_anything_else():
    missing = (*TRAINING, "transformers", "datasets", "safetensors", "scipy", "rich", "numpy")
    assert run_without(missing, LOSSES) == "False"


@pytest.fixture(scope="module")
def without_trl(tmp_path_factory):
    """One process without the extra: which names are there, what verbs say, a screening."""
    folder = tmp_path_factory.mktemp("without_trl")
    save_tiny(folder / "model", max_position_embeddings=512)
    (folder / "prompts.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    screen = ["screen", str(folder / "model"), "--prompts", str(folder / "prompts.jsonl")]
    screen += ["--reward", "exact_match", "--max-new-tokens", "4", "--json"]
    echelon = ["echelon", str(ROOT / "examples/echelon_tiny.yaml"), "--output_dir", str(folder)]
    program = f"""
import contextlib, io, json, entropyfloor
from entropyfloor.cli.main import main
errors, said = {{}}, {{}}
for name in entropyfloor._PUBLIC:
    try:
        getattr(entropyfloor, name)
    except ImportError as error:
        errors[name] = str(error)
for words in (["sft"], ["grpo"], ["gft"], {echelon!r}):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = main(words)
    said[words[0]] = [code, stderr.getvalue()]
code = main({[*screen, str(folder / "without.json")]!r})
print(json.dumps([errors, said, code]))
"""
    errors, said, code = json.loads(run_without(TRAINING, program).splitlines()[-1])
    report = json.loads((folder / "without.json").read_text())
    return errors, said, code, report, [*screen, str(folder / "with.json")]


def test_public_names_without_trl(without_trl):
    errors = without_trl[0]
    assert set(errors) == TRAINERS
    for name, message in errors.items():
        assert message.startswith(f"{name}: ")
        assert message.endswith(ADVICE)


def test_verbs_that_train_name_the_extra(without_trl):
    for verb, (code, words) in without_trl[1].items():
        assert code == 2
        assert words.startswith(f"entropyfloor {verb}: ")
        assert words.strip().endswith(ADVICE)


def test_screen_measures_without_trl_what_it_measures_with(without_trl):
    code, report, words = without_trl[2:]
    assert main(words) == code
    with_trl = json.loads(Path(words[-1]).read_text())
    for checkpoint in (*with_trl["checkpoints"], *report["checkpoints"]):
        del checkpoint["runtime_s"]
    assert with_trl["checkpoints"] == report["checkpoints"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheels_in_an_empty_environment(wheels, tmp_path):
    """Losses, then the rest without trl, then with it: each with what its wheel asks for."""
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"

    def install(requirement):
        words = ("install", "-q", "--no-compile", "-c", ROOT / "constraints.txt")
        run(python, "-m", "pip", *words, requirement, cwd=tmp_path, env=outside)
        listed = run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path, env=outside)
        return {entry["name"].lower() for entry in json.loads(listed)}

    def program(text):
        return run(python, "-c", text, cwd=tmp_path, env=outside)

    names = "import entropyfloor as e; [getattr(e, name) for name in e._PUBLIC if name not in {}]"
    assert not install(wheels["entropyfloor-losses"]) & {"numpy", "transformers", "entropyfloor"}
    assert program(LOSSES) == "False"
    assert not install(wheels["entropyfloor"]) & set(TRAINING)
    program(names.format(TRAINERS))
    assert run(tmp_path / "venv/bin/entropyfloor", "--help", env=outside).startswith("usage")
    assert install(f"{wheels['entropyfloor']}[trl]") >= set(TRAINING)
    program(names.format(()))
