"""The head's matrix products, and which of them a device has.

fp32 on a CPU       oneDNN, tile by tile (not where DeepSpeed replaces `functional.linear`)
16 bit into fp32    inside the product, on CUDA from Ampere on
16 bit elsewhere    rounded once to the input's dtype, as the model's own forward does
"""

from __future__ import annotations

from types import BuiltinFunctionType

import torch
from torch import Tensor
from torch.nn import functional

# On a CPU oneDNN writes fp32 logits through tiles of this many columns: the buffer's rows lie V
# apart, and one product straight into it took 1.1 to 1.2x the time at both of the bench's shapes.
_TILE_COLUMNS_CPU = 768


def write_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor) -> None:
    """``out = hidden @ weight.T + bias``."""
    one_dnn = hidden.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    # DeepSpeed ZeRO-3 replaces the function by one of its own, which oneDNN's tensors cannot pass.
    one_dnn = one_dnn and isinstance(functional.linear, BuiltinFunctionType)
    if hidden.device.type != "cpu" or not one_dnn:
        matmul_out(hidden, weight.t(), out=out)
    else:
        packed = hidden.to_mkldnn()
        for first in range(0, weight.shape[0], _TILE_COLUMNS_CPU):
            columns = slice(first, first + _TILE_COLUMNS_CPU)
            out[:, columns] = functional.linear(packed, weight[columns]).to_dense()
    if bias is not None:
        out.add_(bias)


def matmul_out(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """``out = a @ b`` where ``out`` may be fp32 for 16-bit factors."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif multiplies_into_fp32(a.device):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))


def add_products(
    gradient: Tensor,
    weight: Tensor,
    hidden: Tensor,
    *,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    first: bool,
) -> None:
    """A chunk's ``grad_hidden = gradient @ weight`` and ``grad_weight += gradient.T @ hidden``.

    Args:
        gradient: ``[R, V]`` dL/dlogits, of ``weight``'s dtype or wider.
        weight: ``[V, H]`` in the dtype of the computation.
        hidden: ``[R, H]`` likewise.
        grad_hidden: ``[R, H]`` fp32 (fp64 for fp64), written; None where nobody needs it.
        grad_weight: ``[V, H]`` likewise, added to; no chunk's share is rounded to 16 bit.
        first: whether this chunk writes ``grad_weight``, which saves filling 545 MB with zeros.

    """
    direct = multiplies_into_fp32(weight.device)
    narrow = gradient  # cast once for both products
    if grad_hidden is not None or direct:
        narrow = gradient.to(weight.dtype)
    if grad_hidden is not None:
        matmul_out(narrow, weight, out=grad_hidden)
    if grad_weight is None:
        return
    beta = 0.0 if first else 1.0
    if hidden.dtype != grad_weight.dtype and direct:
        torch.addmm(
            grad_weight, narrow.t(), hidden, beta=beta, out_dtype=grad_weight.dtype, out=grad_weight
        )
    else:
        grad_weight.addmm_(gradient.t(), hidden.to(grad_weight.dtype), beta=beta)


def multiplies_into_fp32(device: torch.device) -> bool:
    """Whether 16-bit products with fp32 results exist: CUDA from Ampere on (not T4, V100, ROCm)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    # torch before 2.8 has no such product.
    known = "dtype_out" in torch.ops.aten.mm.overloads()
    return known and torch.cuda.get_device_capability(device) >= (8, 0)
