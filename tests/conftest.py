"""Every test runs offline and on one thread: the suite shares two cores with whatever else runs."""

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from entropyfloor import io

# Helpers beside the tests (sft_runs.py, cases.py, ...) are imported by name from every folder.
for folder in sorted({file.parent for file in Path(__file__).parent.rglob("*.py")}):
    sys.path.insert(0, str(folder))


torch.set_num_threads(1)  # of fixtures that are wider than a test, too


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    yield


def pytest_collection_finish(session):
    gc.collect()
    gc.freeze()  # what was imported stays: no collection has to visit it again, in any test


# The page and the plot of a run take seconds, and most tests of runs read its numbers only. What a
# command was told to write (--html, --plot) is always drawn.
_write_pictures = io.write_pictures
_asked_for = False


def pytest_runtest_setup(item):
    global _asked_for
    _asked_for = item.get_closest_marker("pictures") is not None


def _write_pictures_if_asked_for(files):
    caller = sys._getframe(1).f_globals["__name__"]
    if _asked_for or not caller.endswith((".page", ".collapse_monitor", ".callback")):
        _write_pictures(files)
    else:
        for path in files:
            io.write_atomic(path, "a picture")


io.write_pictures = _write_pictures_if_asked_for  # before the modules that import it
