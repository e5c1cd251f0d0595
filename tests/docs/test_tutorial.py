"""The tutorial notebook runs from top to bottom, and its numbers are as its text says."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorial.ipynb"
SHOW = """
import json

print(json.dumps({c.name: c.to_dict() for c in report.checkpoints}))
"""


@pytest.mark.slow
def test_the_tutorial_runs_and_its_text_is_true(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(SHOW))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    output = "".join(part.get("text", "") for part in notebook.cells[-1].outputs)
    base, collapsed, floored = json.loads(output.splitlines()[-1]).values()
    assert collapsed["pass_at_1"] > floored["pass_at_1"] > base["pass_at_1"]
    assert collapsed["degenerate_fraction"] > floored["degenerate_fraction"]
    assert floored["pass_at_k"]["8"] >= collapsed["pass_at_k"]["8"]
    assert floored["entropy_nats"] > 0.5 > collapsed["entropy_nats"]
