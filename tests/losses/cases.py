"""The grid every loss is tested on: references, heads, shapes and logit regimes."""

from functools import partial

import numpy as np
import torch
from reference import Head, ce, dcr, deft, dft, eaft, entropy_bonus, gem, power, sed

from entropyfloor_losses import (
    BoundedProbabilityLoss,
    CrossEntropyLoss,
    DynamicEntropyLoss,
    EntropyAdaptiveLoss,
    EntropyBonusLoss,
    GEMLoss,
    PowerLoss,
    SelectiveEntropyLoss,
)

LOSSES = {
    "ce": (CrossEntropyLoss(), ce),
    "ce_smoothed": (CrossEntropyLoss(smoothing=0.1), partial(ce, smoothing=0.1)),
    "sed": (SelectiveEntropyLoss(tau=0.6), partial(sed, lam=1.0, k=2, tau=0.6)),
    "sed_strong": (
        SelectiveEntropyLoss(lam=5.0, top_k=4, tau=0.9),
        partial(sed, lam=5.0, k=4, tau=0.9),
    ),
    "dcr": (BoundedProbabilityLoss(), partial(dcr, tau=0.7)),
    "dft": (BoundedProbabilityLoss(tau=float("inf")), dft),
    "gem": (GEMLoss(), partial(gem, beta=0.7)),
    "gem_flat": (GEMLoss(beta=2.0), partial(gem, beta=2.0)),
    "bonus": (EntropyBonusLoss(lam=0.3), partial(entropy_bonus, lam=0.3)),
    "bonus_selective": (
        EntropyBonusLoss(lam=0.3, selective=True, top_k=3, tau=0.7),
        partial(entropy_bonus, lam=0.3, k=3, tau=0.7),
    ),
    "eaft": (EntropyAdaptiveLoss(), eaft),
    "eaft_release": (
        EntropyAdaptiveLoss(alpha=2.0, top_k=5, normaliser=3.0),
        partial(eaft, alpha=2.0, k=5, normaliser=3.0),
    ),
    "power": (PowerLoss(), partial(power, alpha=1.0)),
    "power_steep": (PowerLoss(alpha=10.0), partial(power, alpha=10.0)),
    "deft": (DynamicEntropyLoss(), deft),
}
HEADS = {
    "plain": Head(),
    "capped": Head(softcap=4.0),
    "scaled": Head(logit_scale=0.25),
    "all": Head(logit_scale=1.7, softcap=6.0, temperature=1.3),
}
# Tokens, width, vocabulary: none a multiple of a tile, one smaller than a tile, one with a short
# tail.
SHAPES = [(23, 17, 507), (13, 8, 252), (5, 3, 123), (9, 4, 385)]
# Standard deviation of the logits: nearly uniform, ordinary, one token takes nearly all.
SCALES = {"flat": 0.05, "ordinary": 2.0, "peaked": 30.0}


def head_arguments(head):
    return {
        "logit_scale": head.logit_scale,
        "softcap": head.softcap,
        "temperature": head.temperature,
    }


def problem(shape, scale, seed=0, dtype=torch.float64):
    """Hidden states, weight, bias and labels with logits of this scale; labels often likely."""
    tokens, width, vocabulary = shape
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(tokens, width))
    weight = rng.normal(size=(vocabulary, width)) * scale / np.sqrt(width)
    bias = rng.normal(size=vocabulary) * scale / 4
    labels = (hidden @ weight.T + bias).argmax(-1)
    uniform = rng.integers(0, vocabulary, size=tokens)
    labels = np.where(rng.random(tokens) < 0.5, labels, uniform)
    tensors = (torch.tensor(x, dtype=dtype) for x in (hidden, weight, bias))
    return (*tensors, torch.tensor(labels))
