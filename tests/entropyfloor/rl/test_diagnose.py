"""Stage two on logs of other tools: exact numbers from logs of known curves."""

import json
import math
import subprocess
import sys

import pytest

from entropyfloor.cli.main import main
from entropyfloor.rl.diagnose import diagnose
from entropyfloor.rl.options import DiagnoseOptions
from entropyfloor.rl.run_logs import read_run
from entropyfloor.stats.groups import p_star

STEPS = range(1, 41)  # of 40: stage two compares steps 1 and 15


def entropy(step):
    """From 0.8 at step 1, falling to 0.3 at step 15 and 0.2 at the end."""
    return {1: 0.8, 15: 0.3, 40: 0.2}.get(step, 0.8 - 0.01 * step)


def trl_state(path, *, upto=40, **more):
    """A trainer_state.json as trl's GRPOTrainer leaves it."""
    log = [
        {
            "step": s,
            "entropy": entropy(s),
            "reward": 0.1,
            "frac_reward_zero_std": 0.25,
            "epoch": 0.1,
        }
        | {name: value for name, value in more.items()}
        for s in STEPS
        if s <= upto
    ]
    log.append({"step": upto, "train_runtime": 10.0, "train_loss": 0.1})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": upto, "max_steps": 40, "log_history": log}))
    return path


def verl_jsonl(path):
    lines = [
        json.dumps({"step": s, "data": {"actor/entropy": entropy(s), "critic/score/mean": 0.05}})
        for s in STEPS
    ]
    path.write_text("\n".join([*lines, '{"step": 41, "da']) + "\n")
    return path


def verl_console(path):
    lines = ["(TaskRunner pid=71) Training Progress:   0%|          | 0/40", "{'a': 1}"]
    for s in STEPS:
        number = f"np.float64({entropy(s)})" if s % 2 else f"{entropy(s)}"
        lines.append(
            f"(TaskRunner pid=71) step:{s} - actor/entropy:{number} - actor/lr:1e-06 - "
            "critic/score/mean:0.05 - timing_s/gen:8.5"
        )
    path.write_text("\n".join(lines))
    return path


def csv_file(path):
    rows = [f"{s},{entropy(s) / math.log(2)},0.05," for s in STEPS]
    path.write_text("\n".join(["global_step,train/H,acc,note", *rows]))
    return path


def event_files(path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(path / "run"))
    for s in STEPS:
        writer.add_scalar("train/entropy", entropy(s), s)
        writer.add_scalar("train/groups/degenerate_fraction", 0.25, s)
        writer.add_scalar("train/groups/pass_rate", 0.05, s)
    writer.close()
    return path


RATE = {"pass_rate": "critic/score/mean", "group_size": 8}
CASES = {
    "trl": (trl_state, "trainer_state.json", {}, 0.25, None),
    "trl's folder": (trl_state, "checkpoint-40/trainer_state.json", {}, 0.25, None),
    "verl's JSON Lines": (verl_jsonl, "metrics.jsonl", RATE, None, 0.05),
    "verl's console": (verl_console, "run.log", RATE, None, 0.05),
    "CSV": (
        *(csv_file, "wandb.csv"),
        {"entropy": "train/H", "entropy_unit": "bits", "pass_rate": "acc", "group_size": 4},
        *(None, 0.05),
    ),
    "TensorBoard": (event_files, "events", {"group_size": 8}, 0.25, 0.05),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_numbers(case, tmp_path):
    write, name, options, degenerate, rate = CASES[case]
    write(tmp_path / name)
    run = tmp_path if case == "trl's folder" else tmp_path / name
    log = read_run(run)
    found = diagnose(log, DiagnoseOptions(temperature=1.0, **options))
    assert (found.first_step, found.last_step, found.max_steps) == (1, 40, 40)
    assert (found.early_step, found.late_step) == (1, 15)
    # Event files hold single precision.
    assert found.decision.early == (1, pytest.approx(0.8, rel=1e-6))
    assert found.decision.late == (15, pytest.approx(0.3, rel=1e-6))
    assert found.decision.drop == pytest.approx(1 - 0.3 / 0.8, rel=1e-6)
    assert found.decision.verdict == "collapsed" and found.collapsed
    assert found.degenerate_fraction == found.last_degenerate_fraction == degenerate
    if rate is None:
        assert found.p_hat_over_p_star is None
        assert any(words.startswith("the pass rate: no column") for words in found.cannot_tell)
    else:
        expected = rate / p_star(options["group_size"])
        assert found.p_hat_over_p_star == pytest.approx(expected, rel=1e-6)
        assert found.last_p_hat_over_p_star == pytest.approx(expected, rel=1e-6)
    taken_for_the_end = any("taken for the end" in note for note in found.notes)
    assert taken_for_the_end == (not case.startswith("trl"))


def test_a_run_of_trl_itself(tmp_path):
    """What a GRPOTrainer writes, against what our monitor saw of the same run."""
    from grpo_runs import Recorder, grpo, steps_of

    from entropyfloor.rl.collapse_monitor import CollapseMonitor

    monitor = CollapseMonitor("warn")
    trainer = grpo(
        tmp_path,
        rewards=Recorder(),
        callbacks=[monitor],
        max_steps=6,
        save_strategy="steps",
        save_steps=6,
    )
    trainer.train()
    found = diagnose(
        read_run(tmp_path),
        DiagnoseOptions(temperature=1.0, early_step=1, late_step=5, group_size=4),
    )
    steps = {record["step"]: record for record in steps_of(tmp_path)}
    assert found.max_steps == 6 and found.format == "trl"
    assert found.decision.early[1] == pytest.approx(steps[1]["entropy_nats"], rel=1e-6)
    assert found.decision.late[1] == pytest.approx(steps[5]["entropy_nats"], rel=1e-6)
    shares = [steps[s]["degenerate_fraction"] for s in range(1, 6)]
    assert found.degenerate_fraction == pytest.approx(sum(shares) / 5)
    assert found.p_hat_over_p_star == pytest.approx(steps[1]["p_hat_over_p_star"])
    assert found.columns["degenerate"] == "groups/degenerate_fraction"


def test_cannot_tell(tmp_path):
    (tmp_path / "a.csv").write_text("step,reward\n1,0.1\n2,0.2\n")
    found = diagnose(read_run(tmp_path / "a.csv"), DiagnoseOptions(temperature=1.0))
    assert found.decision.verdict == "unknown" and not found.collapsed
    said = " ".join(found.sentences())
    assert said.startswith("cannot tell: the log has no entropy")
    assert "cannot tell the mean token entropy: no column entropy, actor/entropy" in said
    assert "there are reward. Name the one that is it with --pass_rate COLUMN" in said
    log = read_run(verl_jsonl(tmp_path / "m.jsonl"))
    half = diagnose(log, DiagnoseOptions(temperature=1.0, pass_rate="critic/score/mean"))
    assert "p̂/p*: give --group_size, the rollouts per prompt" in half.cannot_tell
    assert half.p_hat_over_p_star is None


def test_a_run_that_goes_on_waits(tmp_path):
    log = read_run(trl_state(tmp_path / "trainer_state.json", upto=8))
    found = diagnose(log, DiagnoseOptions(temperature=1.0))
    assert found.decision.verdict == "waiting"
    assert found.decision.drop == pytest.approx(1 - 0.72 / 0.8)
    assert "the log ends at 8; at step 8 it has fallen 10.0%" in found.decision.reason


def test_a_run_that_began_collapsed(tmp_path):
    low = trl_state(tmp_path / "trainer_state.json", entropy=0.1, frac_reward_zero_std=0.75)
    found = diagnose(read_run(low), DiagnoseOptions(temperature=1.0))
    assert found.collapsed and "it began collapsed" in found.decision.reason
    assert "trl's frac_reward_zero_std tests the deviation" in " ".join(found.notes)
    # tau_H is about temperature 1: at another the rule is not applied, and that is said.
    warm = diagnose(read_run(low), DiagnoseOptions(temperature=0.7))
    assert not warm.collapsed and "was not applied" in " ".join(warm.notes)


def test_a_step_that_was_run_twice_counts_with_its_last_numbers(tmp_path):
    state = json.loads(trl_state(tmp_path / "trainer_state.json").read_text())
    again = {"step": 15, "entropy": 0.7}
    state["log_history"].append(again)
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    found = diagnose(read_run(tmp_path), DiagnoseOptions(temperature=1.0))
    assert found.decision.late == (15, 0.7) and found.decision.verdict == "healthy"


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("x.csv", "a,b\n1,2\n", {}, "no column step or Step or _step or global_step"),
        ("x.csv", "step,b\n1,2\n", {"step": "iteration"}, "no column iteration"),
        ("x.csv", "step,b\n", {}, "holds no numbers by step"),
        ("x.csv", "step,b\n1.5,2\n", {}, "1.5 is no optimizer step"),
        ("x.json", "{", {}, "is not JSON"),
        ("x.json", "[]", {}, "has no log_history"),
        ("x.log", "nothing\n", {}, "is it a log of format verl, and has the run logged"),
        ("x.log", '{"step": 1, "data": [0.5]}\n', {}, "is it a log of format verl"),
        ("x.json", '{"log_history": [1]}', {}, "is it a log of format trl"),
        ("x.csv", "step,b\n1," + "9" * 200_000 + "\n", {}, "after line 1, is not CSV: field"),
        ("x.txt", "step:1 - a:1\n", {"format": "wandb"}, "unknown format 'wandb'"),
    ],
)
def test_files_that_cannot_be_read(name, content, options, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_run(tmp_path / name, **options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", "step,b\r\n1,2\r\n"),
        ("x.log", '{"step": 1, "data": {"b": 2}}\r\n'),
        ("x.json", '{"log_history": [{"step": 1, "b": 2}]}'),
    ],
)
def test_a_byte_order_mark_of_windows_costs_no_step(name, content, tmp_path):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_run(tmp_path / name).series("b") == [(1, 2.0)]


def test_a_folder_without_a_log(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither trainer_state\.json"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no"):
        read_run(tmp_path / "gone")


def test_named_columns_are_checked(tmp_path):
    log = read_run(verl_jsonl(tmp_path / "m.jsonl"))
    with pytest.raises(ValueError, match=r"no column 'H' \(--entropy\); it has actor/entropy, cri"):
        diagnose(log, DiagnoseOptions(temperature=1.0, entropy="H"))
    (tmp_path / "r.csv").write_text("step,entropy,reward\n1,0.5,2.0\n2,0.5,2.0\n")
    with pytest.raises(ValueError, match=r"step 1: reward is 2\.0, and a share lies in \[0, 1\]"):
        diagnose(read_run(tmp_path / "r.csv"), DiagnoseOptions(temperature=1.0, pass_rate="reward"))


def test_the_command(tmp_path, capsys):
    log = str(verl_console(tmp_path / "run.log"))
    out = tmp_path / "o.json"
    words = ["diagnose", log, "--temperature", "1", "--max_steps", "40", "--json", str(out)]
    assert main(words) == 3
    printed = capsys.readouterr().out
    assert "collapsed: entropy fell 62.5% from 0.8 nats at step 1 to 0.3 at step 15" in printed
    assert "cannot tell the share of degenerate groups" in printed
    document = json.loads(out.read_text())
    assert document["schema"] == "entropyfloor.diagnosis"
    assert document["decision"]["late"] == [15, 0.3]
    assert document["columns"] == {
        "entropy": "actor/entropy",
        "degenerate": None,
        "pass_rate": None,
    }
    assert main([*words, "--tau_2", "0.7"]) == 0
    capsys.readouterr()
    for wrong, error in (
        (["diagnose", log], "--temperature is missing: entropies in a log are those of the"),
        (["diagnose", log, "--temperature", "0"], "temperature must be positive"),
        (["diagnose", log, "--temperature", "1", "--entropy", "x"], "no column 'x' (--entropy)"),
        (["diagnose", log, "--temperature", "1", "--max_steps", "0"], "got max_steps = 0"),
        (["diagnose", log, "--temperature", "1", "--json", str(tmp_path)], "is a directory"),
        (["diagnose", str(tmp_path / "gone"), "--temperature", "1"], "there is no"),
    ):
        assert main(wrong) == 2
        assert error in capsys.readouterr().err


def test_event_files_without_tensorboard_say_what_to_install(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from entropyfloor.cli.main import main\n"
        f"sys.exit(main(['diagnose', {str(tmp_path)!r}, '--temperature', '1']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert 'pip install "entropyfloor[tensorboard]"' in run.stderr
