"""A chunk whose passes are two kernels (``triton_kernels.py``): what stands for `Block` on a GPU.

`kernels_for` says whether a call can have them: on CUDA from Ampere on, with Triton, in fp32 or 16
bit, for statistics that the kernels know (``Statistic.kernel_sums``). At the first call of a kind
they are compared with torch on the device; where they fail or differ, a warning says so and torch
computes. ``ENTROPYFLOOR_KERNELS=0`` in the environment switches them off.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .blocks import Block, LogitTransform, RowSums, Sum, Term
from .inputs import ReferenceTopK
from .products import multiplies_into_fp32
from .request import StatisticsRequest
from .statistics import STATISTICS

_ROWS_COMPARED = 16


@dataclass(frozen=True)
class Kernels:
    """What the two kernels of a call compute.

    Attributes:
        transform: of products into logits.
        sums: beside what all statistics share.
        second: whether the second largest logit is wanted.
        dtype: of dL/dproduct: what the products take.

    """

    transform: LogitTransform
    sums: RowSums
    second: bool
    dtype: torch.dtype

    def block(
        self,
        products: Tensor,
        labels: Tensor,
        base: Tensor | None = None,
        reference_top_k: ReferenceTopK | None = None,
    ) -> KernelBlock:
        """Fold raw products ``[R, V]``, which stay as they are."""
        from .triton_kernels import fold

        sums, first_argmax = fold(
            products,
            base,
            self.transform.factors,
            second=self.second,
            average=self.sums.average,
            power=self.sums.power,
        )
        return KernelBlock(self, products, labels, sums, first_argmax, base, reference_top_k)


class KernelBlock:
    """`Block` as far as statistics read it; s is nowhere."""

    def __init__(
        self,
        kernels: Kernels,
        products: Tensor,
        labels: Tensor,
        sums: Tensor,
        first_argmax: Tensor,
        base: Tensor | None,
        reference_top_k: ReferenceTopK | None,
    ) -> None:
        self.kernels, self.products, self.labels = kernels, products, labels
        self.sums, self.first_argmax, self.base = sums, first_argmax, base
        self.reference_top_k = reference_top_k
        self.maximum, self.total = sums[Sum.MAXIMUM], sums[Sum.TOTAL]
        self.log_sum, self.mean_shifted = self.total.log(), sums[Sum.MEAN_SHIFTED]

    def gradient(self) -> KernelGradient:
        """The terms of dL/dz that statistics add to."""
        return KernelGradient(self)

    @property
    def likeliest(self) -> Tensor:
        """``[R, 1 or 2]`` the largest s, descending."""
        first = torch.zeros_like(self.maximum)
        of_row = [first, self.sums[Sum.SECOND]] if self.kernels.second else [first]
        return torch.stack(of_row, dim=1)

    def log_p_of(self, columns: Tensor) -> Tensor:
        """``[R, k]`` log-probabilities of the tokens ``columns`` ``[R, k]``."""
        logits = self.kernels.transform.logits(self.products.gather(1, columns))
        return logits - self.maximum.unsqueeze(1) - self.log_sum.unsqueeze(1)

    def average_shifted(self) -> Tensor:
        """``[R]`` mean of s over the vocabulary."""
        return self.sums[Sum.AVERAGE]

    def power_total(self, power: float) -> Tensor:
        """``[R]`` sum of exp(power * s)."""
        return self.sums[Sum.POWER_TOTAL]

    def power_mean(self, power: float) -> Tensor:
        """``[R]`` mean of s, weighted by exp(power * s)."""
        return self.sums[Sum.POWER_MEAN]

    def reference_log_prob(self) -> Tensor:
        """``[R]`` log-probability of the label under the reference model."""
        assert self.base is not None
        of_label = self.kernels.transform.logits(self.base.gather(1, self.labels.unsqueeze(1)))
        log_sum = self.sums[Sum.BASE_TOTAL].log()
        return of_label.squeeze(1) - self.sums[Sum.BASE_MAXIMUM] - log_sum

    def reference_kl(self) -> Tensor:
        """``[R]`` KL(b || p)."""
        return self.sums[Sum.KL]


@dataclass
class KernelGradient:
    """`LogitGradient` of a `KernelBlock`: terms are numbers of rows, and one kernel adds them."""

    block: KernelBlock
    _rows: dict[str, Tensor] = field(default_factory=dict)  # by the name of the kernel's term
    _columns: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def _add(self, term: str, rows: Tensor) -> None:
        self._rows[term] = self._rows[term] + rows if term in self._rows else rows

    def add_p(self, rows: Tensor) -> None:
        """See `LogitGradient`, here and below."""
        self._add("P", rows)

    def add_p_log_p(self, offset: Tensor, rows: Tensor) -> None:  # noqa: D102
        self._add("OFFSET", offset)
        self._add("P_LOG_P", rows)

    def add_power(self, power: float, rows: Tensor) -> None:  # noqa: D102
        self._add("POWER", rows / self.block.power_total(power))

    def add_average(self, rows: Tensor) -> None:  # noqa: D102
        self._add("ALL", rows / self.block.products.shape[1])

    def add_reference(self, rows: Tensor) -> None:  # noqa: D102
        self._add("BASE", rows)

    def add_label(self, rows: Tensor) -> None:  # noqa: D102
        self._add("LABEL", rows)

    def add_columns(self, columns: Tensor, values: Tensor) -> None:  # noqa: D102
        self._columns.append((columns, values))

    def write_(self, transform: LogitTransform) -> Tensor:
        """Replace the products by dL/dproduct; ``[R, V]`` in the kernels' dtype."""
        from .triton_kernels import write_gradient

        block, kernels = self.block, self.block.kernels
        nothing = torch.zeros_like(block.maximum)
        terms = torch.stack([self._rows.get(term.name, nothing) for term in Term])
        # Before the products are gone.
        slopes = [transform.slope(block.products.gather(1, c)) for c, _ in self._columns]
        gradient = write_gradient(
            block.products,
            block.base,
            kernels.transform.factors,
            block.labels,
            block.sums,
            terms,
            wanted={
                "entropy": "P_LOG_P" in self._rows,
                "average": "ALL" in self._rows,
                "power": kernels.sums.power if "POWER" in self._rows else None,
                "base": "BASE" in self._rows,
            },
            dtype=kernels.dtype,
        )
        for (columns, values), slope in zip(self._columns, slopes, strict=True):
            gradient.scatter_add_(1, columns, (values * slope).to(gradient.dtype))
        return gradient


def kernels_for(
    request: StatisticsRequest,
    transform: LogitTransform,
    weight: Tensor,
    *,
    has_base: bool,
) -> Kernels | None:
    """The kernels of a call, or None where torch computes.

    Args:
        request: statistics to compute.
        transform: of products into logits.
        weight: ``[V, H]`` of the head, in the dtype of the computation.
        has_base: whether a reference model's logits stand beside.

    """
    if not _can_run(weight.device) or weight.dtype == torch.float64:
        return None
    sums = [STATISTICS[name].kernel_sums(option) for name, option in request.options.items()]
    known = [each for each in sums if each is not None]
    powers = {each.power for each in known if each.power is not None}
    if len(known) < len(sums) or len(powers) > 1:
        return None
    kernels = Kernels(
        transform,
        RowSums(average=any(each.average for each in known), power=next(iter(powers), None)),
        second=request.likeliest > 1,
        dtype=weight.dtype,
    )
    return kernels if _agrees(kernels, request, weight.shape[0], weight.device, has_base) else None


def _can_run(device: torch.device) -> bool:
    """Whether Triton can compile for a device, and its products take what the kernel writes."""
    wanted = os.environ.get("ENTROPYFLOOR_KERNELS", "1") != "0"
    return (
        wanted and multiplies_into_fp32(device) and importlib.util.find_spec("triton") is not None
    )


@lru_cache(maxsize=256)
def _agrees(
    kernels: Kernels,
    request: StatisticsRequest,
    vocabulary: int,
    device: torch.device,
    has_base: bool,
) -> bool:
    """Compare statistics and gradients of made-up products with torch's, once for a kind of call.

    Rows of the call's own length: what the compiler assumes of a row's alignment is the same.
    """
    try:
        ours, theirs = (
            _computed(each, kernels, request, vocabulary, device, has_base)
            for each in (kernels, None)
        )
    except Exception as error:  # whatever a compiler raises
        return _refuse(f"they do not run here ({type(error).__name__}: {error})")
    names = [*request.options, "the gradient"]
    # fp32 sums over a vocabulary in another order; the gradient is rounded to its dtype.
    rounding = torch.finfo(kernels.dtype).eps
    for name, a, b in zip(names, ours, theirs, strict=True):
        close = 2 * rounding if name == "the gradient" else 0.0
        largest = b.double().abs().amax(-1, keepdim=True)
        difference = (a.double() - b.double()).abs()
        allowed = (1e-4 + close) * largest + (1e-4 if name != "the gradient" else 0.0)
        if not bool((difference <= allowed).all()):
            return _refuse(f"{name} differs from torch's by {float(difference.max()):.2g}")
    return True


def _refuse(why: str) -> bool:
    warnings.warn(
        f"entropyfloor's GPU kernels are not used: {why}. torch computes the same, slower; "
        "ENTROPYFLOOR_KERNELS=0 silences this",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _computed(
    kernels: Kernels | None,
    like: Kernels,
    request: StatisticsRequest,
    vocabulary: int,
    device: torch.device,
    has_base: bool,
) -> list[Tensor]:
    """Every statistic of made-up rows, then a gradient that has all their terms."""
    numbers = torch.arange(_ROWS_COMPARED * vocabulary, device=device, dtype=torch.float64)
    products = (numbers * 0.7548776662).frac_().view(_ROWS_COMPARED, vocabulary)
    # From flat rows to one with a peak; the transform's own scale is taken out.
    spread = torch.linspace(0.1, 30.0, _ROWS_COMPARED, device=device).unsqueeze(1)
    products = (products.float() * spread).div_(like.transform.factors[0])
    labels = (torch.arange(_ROWS_COMPARED, device=device) * 7919) % vocabulary
    base = products.flip(0).contiguous() if has_base else None
    top_k = None
    if not has_base and request.needs_reference:
        tokens = (labels.unsqueeze(1) + torch.arange(2, device=device)) % vocabulary
        log_probs = torch.full_like(tokens, -2, dtype=torch.float32)
        top_k = ReferenceTopK(tokens, log_probs, log_probs[:, 0])
    block: Any
    if kernels is not None:
        block = kernels.block(products, labels, base, top_k)
    else:
        like.transform.apply_(products)
        if base is not None:
            like.transform.apply_(base)
        scratch = torch.empty_like(products)
        likeliest = request.likeliest
        block = Block.of(products, labels, base, top_k, scratch=scratch, likeliest=likeliest)
    terms = block.gradient()
    values = []
    for i, (name, option) in enumerate(request.options.items()):
        statistic = STATISTICS[name]
        values.append(statistic.fold(block, option))
        if statistic.add_gradient is not None:
            upstream = torch.linspace(1.0, 2.0 + i, _ROWS_COMPARED, device=device)
            statistic.add_gradient(terms, values[-1], upstream, option)
    return [*values, terms.write_(like.transform)]
