"""What a call computes: the largest tensor it makes, the multiplications of its products."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The two factors among an operator's arguments.
FACTORS = {
    torch.ops.aten.mm: lambda args: args[:2],
    torch.ops.aten.addmm_: lambda args: args[1:3],
    torch.ops.aten.mkldnn_linear: lambda args: args[:2],
}


class Recorder(TorchDispatchMode):
    """Largest tensor made, and the multiplications of all matrix products."""

    def __init__(self):
        super().__init__()
        self.largest, self.multiplications = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        factors = FACTORS.get(function.overloadpacket, lambda args: ())(args)
        if factors:
            rows, inner = factors[0].shape
            self.multiplications += rows * inner * (factors[1].numel() // inner)
        return out
