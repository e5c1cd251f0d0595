"""How well the SFT and the RL gradient agree at one checkpoint, overall and layer by layer."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from entropyfloor.coupling.gradient_gram import GradientAgreement, agreement
from entropyfloor.coupling.gradients import ParameterGradients
from entropyfloor.coupling.spectrum import Spectrum, spectrum


@dataclass(frozen=True)
class LayerAlignment:
    """One layer, or all of them.

    Attributes:
        name: of the layer; ``all``.
        num_parameters: how many numbers.
        agreement: cosine, norms, noise.
        sft_share: energy of the SFT gradient in the top r singular directions of its matrices;
            None without matrices, or for a gradient that vanishes.
        rl_share: the same of the RL gradient.
        cosine_bound: ``|cosine|`` is at most this, by the measured overlap of those directions.
        cosine_bound_if_unrelated: the same for directions oriented at random.

    """

    name: str
    num_parameters: int
    agreement: GradientAgreement
    sft_share: float | None
    rl_share: float | None
    cosine_bound: float | None
    cosine_bound_if_unrelated: float | None


@dataclass(frozen=True)
class GradientAlignment:
    """Alignment at one checkpoint.

    Attributes:
        parameters: ``adapter`` or ``all``.
        rank: top singular directions.
        whole: all parameters together.
        layers: in the model's order.

    """

    parameters: str
    rank: int
    whole: LayerAlignment
    layers: tuple[LayerAlignment, ...]


@dataclass
class _Part:
    """Sums over parameters."""

    gram: np.ndarray | None = None
    count: int = 0
    energy: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of matrices: SFT, RL
    top: list[float] = field(default_factory=lambda: [0.0, 0.0])
    bound: float = 0.0  # of |<S, R>|
    unrelated: float = 0.0

    def add(self, gram: np.ndarray, count: int, found_spectrum: Spectrum | None) -> None:
        self.gram = gram if self.gram is None else self.gram + gram
        self.count += count
        energies = _energies(gram)
        product = (energies[0] * energies[1]) ** 0.5
        if found_spectrum is None:  # a vector is its own direction: it bounds nothing
            self.bound += product
            self.unrelated += product
            return
        for index, share in enumerate((found_spectrum.share, found_spectrum.other_share)):
            self.energy[index] += energies[index]
            self.top[index] += share * energies[index]
        self.bound += product * found_spectrum.cosine_bound
        self.unrelated += product * found_spectrum.cosine_bound_if_unrelated

    def read(self, name: str) -> LayerAlignment:
        assert self.gram is not None
        energies = _energies(self.gram)
        lengths = (energies[0] * energies[1]) ** 0.5
        shares = [t / e if e > 0.0 else None for t, e in zip(self.top, self.energy, strict=True)]
        known = lengths > 0.0
        return LayerAlignment(
            name,
            self.count,
            agreement(self.gram),
            shares[0],
            shares[1],
            min(1.0, self.bound / lengths) if known else None,
            min(1.0, self.unrelated / lengths) if known else None,
        )


def align(
    gradients: Iterable[ParameterGradients], *, parameters: str, rank: int
) -> GradientAlignment:
    """Reduce gradients as they come; none is kept.

    Bounds of a layer add up over its matrices: ``|<S, R>| <= sum_m |S_m| |R_m| bound_m``.

    Raises:
        ValueError: no parameter at all.

    """
    whole, layers = _Part(), dict[str, _Part]()
    for found in gradients:
        gram = found.gram
        directions = spectrum(found.sft.mean(0), found.rl.mean(0), rank=rank)
        for part in (whole, layers.setdefault(found.layer, _Part())):
            part.add(gram, found.sft[0].numel(), directions)
    if whole.gram is None:
        raise ValueError("the checkpoint has no parameters of floating point to differentiate by")
    return GradientAlignment(
        parameters,
        rank,
        whole.read("all"),
        tuple(part.read(name) for name, part in layers.items()),
    )


def _energies(gram: np.ndarray) -> tuple[float, float]:
    """``|S|^2`` and ``|R|^2`` of the mean gradients; rounding may leave a little below zero."""
    half = len(gram) // 2
    return max(0.0, float(gram[:half, :half].mean())), max(0.0, float(gram[half:, half:].mean()))
