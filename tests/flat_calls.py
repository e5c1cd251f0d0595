"""The API with flat keywords, of which a test varies one; a reward; a report to be compared."""

from entropyfloor.coupling import couple
from entropyfloor.coupling.options import CouplingOptions, RunOptions
from entropyfloor.gft import response_groups
from entropyfloor.gft.options import GroupOptions
from entropyfloor.rl import band
from entropyfloor.rl.options import BandOptions
from entropyfloor.rollouts.options import Loading, Output, Sampling, arranged
from entropyfloor.screening import rescue as rescuing
from entropyfloor.screening import screen as screening
from entropyfloor.screening.options import RescueOptions, screening_arguments

SHARED = {"sampling": Sampling, "loading": Loading, "output": Output}


def screen(checkpoints, **flat):
    return screening.screen(checkpoints, **screening_arguments(**flat))


def rescue(checkpoint, **flat):
    return rescuing.rescue(checkpoint, **arranged(flat, options=RescueOptions, **SHARED))


def calibration_band(**flat):
    flat = {"num_samples": band.NUM_SAMPLES, **flat}
    return band.calibration_band(**arranged(flat, band=BandOptions, **SHARED))


def build_response_groups(**flat):
    flat = {"num_samples": response_groups.NUM_SAMPLES, **flat}
    return response_groups.build_response_groups(**arranged(flat, groups=GroupOptions, **SHARED))


def measure_coupling(sft, rl, **flat):
    listed = [paths if isinstance(paths, list) else [paths] for paths in (sft, rl)]
    flat = {"sft": listed[0], "rl": listed[1], **flat}
    return couple.measure_coupling(
        **arranged(flat, run=RunOptions, coupling=CouplingOptions, **SHARED)
    )


def even(completion_ids, **_):
    """A reward that about half of all rollouts pass."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def without_runtime(document):
    """A screening's JSON, but for how long it took."""
    for checkpoint in document["checkpoints"]:
        del checkpoint["runtime_s"]
    return document
