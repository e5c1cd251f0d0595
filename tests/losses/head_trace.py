"""The head on fake CUDA tensors: what it would make a GPU do, counted where there is none.

    python tests/losses/head_trace.py LIBRARY            one line of JSON, a case each
    python tests/losses/head_trace.py LIBRARY model      waits of a patched model's steps
    python tests/losses/head_trace.py LIBRARY cached     the same with a reference from disk

FakeTensors have shapes, dtypes and a device, and no values, so true sizes cost nothing. Of one
forward and backward are counted

    waits       readings of the device by the host; each lets the GPU run dry
    passes      reads and writes of [n, V] numbers outside of matrix products, in passes over fp32
    products    matrix products, in those of the logits
    peak_mib    most memory at one time, inputs and gradients included

``LIBRARY`` is `compile_fake_cuda`'s; where torch has no CUDA, autograd needs it. It is loaded
before torch, hence a program of its own.
"""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

TORCH = Path(importlib.util.find_spec("torch").origin).parent
TOKENS, WIDTH, VOCABULARY = 4096, 2048, 151936
CAPABILITY = (9, 0)


def compile_fake_cuda(folder):
    """Build ``fake_cuda.cpp``; None where there is no compiler."""
    library = Path(folder) / "fake_cuda.so"
    words = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{TORCH}/include", f"-L{TORCH}/lib"]
    source = Path(__file__).with_name("fake_cuda.cpp")
    link = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH}/lib"]
    try:
        subprocess.run([*words, source, "-o", library, *link], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return library


if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from entropyfloor_losses import (  # noqa: E402
    LOSS_NAMES,
    CrossEntropyLoss,
    EntropyTerm,
    PenalisedLoss,
    ReferenceHead,
    ReferenceTopK,
    SequenceWeights,
    kernel_block,
    linear_loss,
    loss_by_name,
    needs_calibration,
)

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.addmm_}
# Operators that touch no element.
FREE = {
    *(
        "alias",
        "as_strided",
        "detach",
        "device",
        "empty",
        "empty_like",
        "expand",
        "lift_fresh",
        "new_empty",
    ),
    *("permute", "select", "slice", "split", "squeeze", "t", "transpose", "unflatten", "unsqueeze"),
    *("view", "_unsafe_view", "_reshape_alias"),
}
WRITES_ONLY = {"copy_", "zero_", "fill_"}


def tensors(value):
    """All tensors in an argument."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors(each)


class Trace(TorchDispatchMode):
    """Counts, and answers for the device: every token is scored, every number is finite."""

    def __init__(self):
        super().__init__()
        self.waits, self.bytes, self.products, self.peak, self._alive = [], 0, 0.0, 0, {}

    def wait(self, what):
        """Note where our code waited."""
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
        frames = [f for f in frames if f.filename != __file__]
        of = frames[-1] if frames and "entropyfloor" in frames[-1].filename else None
        self.waits.append(what if of is None else f"{what} in {Path(of.filename).name}:{of.name}")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        if packet is aten._local_scalar_dense:
            self.wait("read")
            return True if args[0].dtype == torch.bool else 1
        masks = []
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
        if masks:
            self.wait("mask")
            if packet is not aten.index:
                return args[0]
            return args[0].new_empty(TOKENS, *args[0].shape[masks[0].ndim :])
        if packet is aten._pin_memory:
            return args[0]
        if packet is aten._to_copy and not kwargs.get("non_blocking"):
            to = kwargs.get("device")
            if to is not None and torch.device(to).type != args[0].device.type:
                self.wait("copy")
        if packet is aten.unique_consecutive:
            self.wait("unique")
            return (args[0][:64], torch.empty_like(args[0]), args[0][:64])
        if packet is aten.nonzero:
            self.wait("nonzero")
            return args[0].new_empty((TOKENS, args[0].ndim), dtype=torch.int64)
        out = function(*args, **kwargs)
        self.count(function, args, kwargs, out)
        return out

    def count(self, function, args, kwargs, out):
        """Memory, products and passes of one operator."""
        storages = [tensor.untyped_storage() for tensor in tensors(out)]
        if any(storage.nbytes() >= 2**20 for storage in storages):
            self._alive |= {s._cdata: (StorageWeakRef(s), s.nbytes()) for s in storages}
            self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        name = function.overloadpacket.__name__
        if function.overloadpacket in PRODUCTS:
            rows, inner = (args if function.overloadpacket is aten.mm else args[1:])[0].shape
            columns = args[1 if function.overloadpacket is aten.mm else 2].shape[1]
            self.products += rows * inner * columns / (TOKENS * WIDTH * VOCABULARY)
            return
        if name in FREE:
            return
        read, written = [], []
        for i, argument in enumerate(function._schema.arguments):
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            writes = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors(value) if writes else ()
            read += (
                tensors(value) if not (writes and (argument.is_out or name in WRITES_ONLY)) else ()
            )
        written = written or list(tensors(out))
        if name in ("gather", "index", "index_select", "scatter_add_"):  # a few columns
            return
        self.bytes += sum(self.wide_bytes(tensor) for tensor in (*read, *written))

    @staticmethod
    def wide_bytes(tensor):
        """Bytes of a tensor of logits, or of the like; 0 of any other."""
        numbers = 1
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            numbers *= size if stride else 1
        of_weight = tensor.shape[-1:] == (WIDTH,)
        return 0 if of_weight or numbers < 64 * VOCABULARY else numbers * tensor.dtype.itemsize


class CountedKernels:
    """In place of ``triton_kernels``, which needs Triton: what its two functions read and write."""

    @staticmethod
    def _count(products, base, written):
        for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
            if isinstance(mode, Trace):
                of_base = 0 if base is None else base.numel() * 4
                mode.bytes += products.numel() * (4 + written) + of_base

    @classmethod
    def fold(cls, products, base, factors, **wanted):
        """Each product once; sums of rows."""
        cls._count(products, base, 0)
        rows = len(products)
        sums = torch.empty(len(kernel_block.Sum), rows, dtype=torch.float32, device="cuda")
        return sums, torch.empty(rows, dtype=torch.int32, device="cuda")

    @classmethod
    def write_gradient(cls, products, base, *args, wanted, dtype):
        """Each product once more, and dL/dproduct where it was."""
        cls._count(products, base if wanted["base"] else None, dtype.itemsize)
        return products.view(dtype)[:, : products.shape[1]]


def trace(loss, *, kernels, reference=None, advantages=None):
    """One forward and backward of a loss at the bench's shape."""
    os.environ["ENTROPYFLOOR_KERNELS"] = str(int(kernels))
    with FakeTensorMode(allow_non_fake_inputs=True), Trace() as counted:

        def made(*shape, dtype=torch.bfloat16):
            return torch.empty(shape, dtype=dtype, device="cuda")

        hidden, weight = made(TOKENS, WIDTH), made(VOCABULARY, WIDTH)
        labels = made(TOKENS, dtype=torch.int64)
        references = {
            None: lambda: None,
            "head": lambda: ReferenceHead(made(TOKENS, WIDTH), made(VOCABULARY, WIDTH)),
            "top_k": lambda: ReferenceTopK(
                made(TOKENS, 32, dtype=torch.int64),
                made(TOKENS, 32, dtype=torch.float32),
                made(TOKENS, dtype=torch.float32),
            ),
        }
        weights = {
            None: lambda: None,
            "given": lambda: made(TOKENS, dtype=torch.float32),
            "formed": lambda: SequenceWeights(loss, made(TOKENS, dtype=torch.int64)),
        }
        value, _ = linear_loss(
            hidden.requires_grad_(),
            weight.requires_grad_(),
            labels,
            loss,
            reference=references[reference](),
            advantages=weights[advantages](),
        )
        value.backward()
    return {
        "waits": counted.waits,
        "passes": counted.bytes / (4 * TOKENS * VOCABULARY),
        "products": counted.products,
        "peak_mib": counted.peak / 2**20,
    }


def cached_reference(folder, ids):
    """A reference from disk for rows of tokens, and the documents that a collator sees."""
    from entropyfloor.sft.floor import reference_cache
    from entropyfloor.sft.floor.documents import documents_of

    documents = tuple(documents_of(ids[:, 1:], {"input_ids": ids}))
    what = {"reference": "made up", "k": 4}
    part = reference_cache._Part(folder, 0, **what)
    part.open()
    rows = {d.key: np.zeros(len(d.labels), reference_cache._entry(4)) for d in documents}
    part.append(rows)
    reference_cache.finish_cache(folder, which="made up", k=4, parts=1)
    return reference_cache.ReferenceCache(folder, **what), documents


def trace_model(*, cached):
    """Waits of our code in two micro-batches of a patched model and the floor's reading of them.

    Its own are not counted, nor the optimizer's: with another head there are as many.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from entropyfloor.models.patch_model import patch_model

    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=2, **small)
    place, reference, more = "uniform", None, {}
    if cached:
        ids = torch.arange(TOKENS + 2).view(2, -1)
        reference, documents = cached_reference(Path(tempfile.mkdtemp()), ids)
        place, more = "anchor", {"documents": documents}
    with FakeTensorMode(allow_non_fake_inputs=True), Trace() as counted:
        with torch.device("cuda"):
            model = LlamaForCausalLM(config)
        head = patch_model(model, loss_by_name("sed", tau=0.7))
        head.term, head.weight, head.reference = EntropyTerm(place), 0.1, reference
        for _ in range(2):
            ids = torch.empty(2, TOKENS // 2 + 1, dtype=torch.int64, device="cuda")
            model(input_ids=ids, labels=ids, num_items_in_batch=TOKENS, **more).loss.backward()
        head.pop_sums()
    # Where the innermost file is one of ours.
    return [where for where in counted.waits if " in " in where]


def cases():
    """Name, and arguments of `trace`: every loss on kernels, some on torch alone."""
    anchored = PenalisedLoss(CrossEntropyLoss(), EntropyTerm("anchor"), weight=0.1)
    others = {
        "ce, anchor": (anchored, {"reference": "head"}),
        "ce, anchor from cache": (anchored, {"reference": "top_k"}),
        "ce, smoothed": (CrossEntropyLoss(smoothing=0.1), {}),
    }
    for name in LOSS_NAMES:
        loss = loss_by_name(name)
        loss = loss_by_name(name, tau=0.7) if needs_calibration(loss) else loss
        needs = getattr(loss, "request", None) is not None and loss.request.needs_reference
        weights = {"dco": "formed", "tail": "given"}.get(name)
        others[name] = (loss, {"reference": "top_k" if needs else None, "advantages": weights})
    for name, (loss, options) in others.items():
        yield name, (loss, {**options, "kernels": True})
    for name in ("ce", "gem", "ce, anchor"):
        yield f"{name}; torch", (others[name][0], {**others[name][1], "kernels": False})


def answer_lists(tensor):
    """``tolist`` of what `Call` and `Sequences` read: numbers of tokens, then of refused ones."""
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, Trace):
            mode.wait("read")
    if len(tensor) == 64:
        return [TOKENS // 64] * 64
    return [TOKENS, *[0] * (len(tensor) - 1)]


if __name__ == "__main__":
    FakeTensor.tolist = answer_lists
    sys.modules["entropyfloor_losses.triton_kernels"] = CountedKernels
    kernel_block._agrees = lambda *kind: True
    kernel_block._can_run = lambda device: os.environ.get("ENTROPYFLOOR_KERNELS") != "0"
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    if {"model", "cached"} & set(sys.argv):
        print(json.dumps(trace_model(cached="cached" in sys.argv)))
    else:
        print(json.dumps({name: trace(loss, **of) for name, (loss, of) in cases()}))
