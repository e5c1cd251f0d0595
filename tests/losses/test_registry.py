"""Names, calibration and the bare import."""

import subprocess
import sys

import pytest
import torch

from entropyfloor_losses import (
    LOSS_NAMES,
    EntropyBonusLoss,
    SelectiveEntropyLoss,
    loss_by_name,
    loss_name_and_options,
    needs_calibration,
)

BARE = """
import sys
import torch
before = set(sys.modules)
import entropyfloor_losses
new = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = new - set(sys.stdlib_module_names) - {"entropyfloor_losses", "torch", "einops"}
print(sorted(foreign))
sys.exit(bool(foreign))
"""


def test_losses_import_torch_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_names_round_trip(name):
    loss = loss_by_name(name)
    again, options = loss_name_and_options(loss)
    assert (again, loss_by_name(again, **options)) == (name, loss)


def test_calibration_selects_the_quantile():
    torch.manual_seed(0)
    mass = torch.rand(1000)
    for loss in (SelectiveEntropyLoss(), EntropyBonusLoss(selective=True)):
        assert needs_calibration(loss)
        calibrated = loss.calibrated(mass)
        assert not needs_calibration(calibrated)
        assert (mass < calibrated.tau).float().mean() == pytest.approx(0.3, abs=0.002)
    assert not needs_calibration(EntropyBonusLoss())
    fixed = SelectiveEntropyLoss(tau=0.5)
    assert fixed.calibrated(mass) is fixed


def test_calibration_matches_numpy_and_refuses_an_empty_sample():
    import numpy as np

    mass = torch.tensor([0.9, 0.2, 0.7, 0.4, 0.5], dtype=torch.float64)
    tau = SelectiveEntropyLoss(quantile=0.33).calibrated(mass).tau
    assert tau == pytest.approx(np.quantile(mass.numpy(), 0.33), abs=1e-12)
    with pytest.raises(ValueError, match="no scored token"):
        SelectiveEntropyLoss().calibrated(torch.zeros(0))
