import importlib.util
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "small_coupling.py"


def load():
    spec = importlib.util.spec_from_file_location("small_coupling", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_both_orders_and_the_joint_steps(tmp_path, capsys):
    small = {
        "--output-dir": tmp_path / "out",
        "--pretraining-steps": 10,
        "--grpo-steps": 1,
        "--test-problems": 12,
        "--samples": 2,
        "--depth": 1,
        "--sft-weight": 0.5,
    }
    arguments = [str(part) for pair in small.items() for part in pair]
    load().main([*arguments, "--after", "1", "2"])
    printed = capsys.readouterr().out
    assert printed.count("Coupling of SFT and RL: RL after SFT") == 3
    assert printed.count("Coupling of SFT and RL: SFT after RL") == 1
    measured = tmp_path / "out" / "seed-0" / "coupling"
    names = ["joint-0.5", "rl-sft", "sft-rl", "sft-rl-training-rows"]
    assert sorted(folder.name for folder in measured.iterdir()) == names
    assert all((folder / "coupling.html").is_file() for folder in measured.iterdir())
