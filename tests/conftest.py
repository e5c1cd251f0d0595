"""Every test runs offline and on one thread: the suite shares two cores with whatever else runs."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Helpers beside the tests (sft_runs.py, cases.py, ...) are imported by name from every folder.
for folder in sorted({file.parent for file in Path(__file__).parent.rglob("*.py")}):
    sys.path.insert(0, str(folder))


torch.set_num_threads(1)  # of fixtures that are wider than a test, too


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield
