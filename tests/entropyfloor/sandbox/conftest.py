"""Sandboxes at every level that works here, in a temporary directory whose name marks them."""

import os
import tempfile

import pytest
from leftovers import SHORT, gone

from entropyfloor.sandbox import LocalSandbox
from entropyfloor.sandbox.local import LEVELS


@pytest.fixture(scope="module")
def marked_folder(tmp_path_factory):
    """Where sandboxes put their folders; it is on their command line, so it finds them again."""
    tmp_path_factory.getbasetemp()  # made now: not in our folder
    with tempfile.TemporaryDirectory(prefix="sandbox-test-") as folder:
        os.chmod(folder, 0o755)
        before, tempfile.tempdir = tempfile.tempdir, folder
        yield folder
        tempfile.tempdir = before


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request, marked_folder):
    made = LocalSandbox(SHORT, workers=2, isolation=request.param)
    try:
        made.isolation()
    except ValueError as error:
        assert request.param != "read-only", error  # needs nothing but seccomp
        pytest.skip(f"not on this kernel: {error}")
    with made:
        yield made
    assert gone(marked_folder)
    assert os.listdir(marked_folder) == []
