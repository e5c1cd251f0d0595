"""Two processes (gloo, CPU) build the groups of one, and both return the same counts."""

from pathlib import Path

from groups_two_process_run import build

from two_processes import two_processes


def test_the_groups_of_one_process(save_checkpoint, tmp_path):
    save_checkpoint("model", peak=3.0)
    program = Path(__file__).with_name("groups_two_process_run.py")
    with two_processes(str(program), tmp_path):
        alone = build(tmp_path, "alone")
    assert (tmp_path / "together" / "groups.jsonl").read_bytes() == alone.path.read_bytes()
    counts = [(tmp_path / f"counts-{rank}").read_text() for rank in "01"]
    assert counts == [str(alone.counts)] * 2
    drawn = list((tmp_path / "together").glob("rollouts-*.jsonl"))
    assert len(drawn) == 2  # each wrote its own
