"""The GPU kernels' arithmetic in Triton's interpreter on a CPU: values and gradients.

`make test-triton` runs this where Triton is installed. What an interpreter cannot show: races, and
how the compiled code rounds. On a GPU the kernels compare themselves before their first use.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: make test-triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: make test-triton", allow_module_level=True)

from cases import HEADS, LOSSES, SCALES, SHAPES, head_arguments, problem
from entropyfloor_losses import (
    AnchoredLoss,
    CrossEntropyLoss,
    EntropyTerm,
    GibbsLoss,
    PenalisedLoss,
    ProximalLoss,
    ReferenceHead,
    ReferenceTopK,
    StatisticsRequest,
    kernel_block,
    linear_loss,
    linear_token_statistics,
    products,
    triton_kernels,
)

ANCHORED = PenalisedLoss(CrossEntropyLoss(), EntropyTerm("anchor"), weight=0.3)
WITH_REFERENCE = {
    "gift": GibbsLoss(beta=3.0),
    "asft": AnchoredLoss(),
    "psft": ProximalLoss(),
    "anchor": ANCHORED,
}
# More than two of the most likely tokens: torch computes.
KNOWN = [name for name in LOSSES if name not in ("eaft", "eaft_release", "sed_strong")]
KNOWN = [name for name in KNOWN if name != "bonus_selective"]


@pytest.fixture
def written(monkeypatch):
    """Chunks that the kernels wrote; rows of several blocks, and products as a GPU has them."""
    chunks, write, mm, addmm = [], triton_kernels.write_gradient, torch.mm, torch.addmm

    def recorded(products_, *args, **kwargs):
        chunks.append(len(products_))
        return write(products_, *args, **kwargs)

    def wide(product):
        def call(*args, out_dtype=None, **kwargs):
            if out_dtype is not None:
                args = [tensor.to(out_dtype) for tensor in args]
            return product(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "mm", wide(mm))
    monkeypatch.setattr(torch, "addmm", wide(addmm))
    for module in (products, kernel_block):
        monkeypatch.setattr(module, "multiplies_into_fp32", lambda device: True)
    monkeypatch.setattr(triton_kernels, "write_gradient", recorded)
    monkeypatch.setattr(triton_kernels, "BLOCK", 128)
    monkeypatch.setattr(kernel_block, "_ROWS_COMPARED", 3)
    kernel_block._agrees.cache_clear()
    yield chunks
    kernel_block._agrees.cache_clear()


def run(loss, inputs, labels, **options):
    hidden, weight, bias = (t.clone().requires_grad_() for t in inputs)
    value, statistics = linear_loss(hidden, weight, labels, loss, bias=bias, **options)
    (2.0 * value).backward()
    of_all = {name: statistics.get(name) for name in vars(statistics)}
    return {
        "value": value,
        "hidden": hidden.grad,
        "weight": weight.grad,
        "bias": bias.grad,
        **of_all,
    }


def both(monkeypatch, *args, **options):
    """Results of the kernels and of torch in fp64."""
    fast = run(*args, **options)
    with monkeypatch.context() as patch:
        patch.setenv("ENTROPYFLOOR_KERNELS", "0")
        loss, inputs, labels = args
        return fast, run(loss, [t.double() for t in inputs], labels, **options)


def assert_close(fast, exact, *, dtype, scale):
    """Relative to the largest entry: dL/dz is rounded once to the dtype of the products."""
    rounding = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
    for name, expected in exact.items():
        if expected.dtype == torch.bool:
            # A cap that is reached makes likely tokens equal but for rounding.
            likely = exact["log_prob"] > -1.0 if scale > 10 else torch.ones_like(expected)
            assert torch.equal(fast[name][likely], expected[likely]), name
            continue
        largest = float(expected.detach().abs().max())
        of_gradient = name in ("hidden", "weight", "bias")
        allowed = (2e-5 + rounding * of_gradient) * max(largest, 1e-3) + 1e-6 * scale
        worst = float((fast[name].detach().double() - expected.detach()).abs().max())
        assert worst <= allowed, (name, worst, allowed)


# An interpreted element costs microseconds: few rows, and the shapes take the dtypes in turn.
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("head", ["plain", "all"])
@pytest.mark.parametrize("name", KNOWN)
def test_losses_equal_torch(monkeypatch, written, name, head, scale):
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    for shape, dtype in zip(SHAPES[1:], dtypes, strict=True):
        *inputs, labels = problem(shape, SCALES[scale], dtype=dtype)
        options = {"chunk_size": 5, **head_arguments(HEADS[head])}
        fast, exact = both(monkeypatch, LOSSES[name][0], inputs, labels, **options)
        assert_close(fast, exact, dtype=dtype, scale=SCALES[scale])
    assert sum(written) >= sum(shape[0] for shape in SHAPES[1:])


@pytest.mark.parametrize("kind", ["head", "top_k"])
@pytest.mark.parametrize("head", ["plain", "all"])
@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_losses_with_a_reference_equal_torch(monkeypatch, written, name, head, kind):
    *inputs, labels = problem(SHAPES[1], 2.0, dtype=torch.float32)
    noise = problem(SHAPES[1], 0.3, seed=1, dtype=torch.float32)[1]
    reference = ReferenceHead(inputs[0], inputs[1] + noise, inputs[2])
    options = head_arguments(HEADS[head])
    if kind == "top_k":
        logits = inputs[0] @ (inputs[1] + noise).T
        likely = logits.log_softmax(-1).topk(5)
        of_labels = logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)
        reference = ReferenceTopK(likely.indices, likely.values, of_labels)
    loss = WITH_REFERENCE[name]
    fast = run(loss, inputs, labels, reference=reference, **options)
    assert sum(written) >= len(labels)
    with monkeypatch.context() as patch:
        patch.setenv("ENTROPYFLOOR_KERNELS", "0")
        exact = run(loss, inputs, labels, reference=reference, **options)
    assert_close(fast, exact, dtype=torch.float32, scale=2.0)


def test_per_token_upstream_is_honoured(monkeypatch, written):
    *inputs, labels = problem(SHAPES[1], 2.0, dtype=torch.float32)
    labels[3] = -100
    request = StatisticsRequest(mean_log_prob=True, gem_beta=0.6)
    gradients = []
    for switch in ("1", "0"):
        monkeypatch.setenv("ENTROPYFLOOR_KERNELS", switch)
        leaves = [t.clone().requires_grad_() for t in inputs]
        s = linear_token_statistics(*leaves[:2], labels, bias=leaves[2], request=request)
        upstream = torch.linspace(-1, 2, len(labels))
        total = s.log_prob + 0.5 * s.entropy - 0.2 * s.mean_log_prob + 2.0 * s.tempered_log_prob
        (total * upstream).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert written
    for fast, exact in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, exact, rtol=1e-4, atol=2e-5)


def test_ties_and_a_masked_vocabulary(monkeypatch, written):
    """The first of equals is the most likely; -inf in the bias takes tokens out."""
    *inputs, labels = problem(SHAPES[1], 1.0, dtype=torch.float32)
    inputs[1][:150], inputs[2][:150] = 0.0, 0.25
    inputs[2][200:] = -torch.inf
    labels[:] = torch.arange(len(labels))
    fast = run(CrossEntropyLoss(), inputs, labels)
    monkeypatch.setenv("ENTROPYFLOOR_KERNELS", "0")
    exact = run(CrossEntropyLoss(), inputs, labels)
    assert_close(fast, exact, dtype=torch.float32, scale=1.0)
    assert sum(written) >= len(labels)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(written, bad):
    *inputs, labels = problem(SHAPES[1], 1.0, dtype=torch.float32)
    run(CrossEntropyLoss(), inputs, labels)
    inputs[0][2, 0] = bad
    with pytest.raises(ValueError, match="NaN or"):
        run(CrossEntropyLoss(), inputs, labels)


@pytest.mark.parametrize(
    ("dtype", "request_", "runs"),
    [
        (torch.float32, StatisticsRequest(), True),
        (torch.bfloat16, StatisticsRequest(gem_beta=0.7), True),
        (torch.float64, StatisticsRequest(), False),
        (torch.float32, StatisticsRequest(top_k=3), False),
        (torch.float32, StatisticsRequest(top_k_entropy=20), False),
        (torch.float32, StatisticsRequest(gem_beta=0.7, collision_prob=True), False),
    ],
)
def test_who_has_kernels(written, dtype, request_, runs):
    transform = kernel_block.LogitTransform()
    weight = torch.zeros(123, 4, dtype=dtype)
    found = kernel_block.kernels_for(request_, transform, weight, has_base=False)
    assert (found is not None) == runs


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_kernels_that_fail_their_comparison_are_not_used(monkeypatch, written, fault):
    """Said once, and torch computes."""
    fold = triton_kernels.fold

    def broken(*args, **kwargs):
        if fault == "raises":
            raise RuntimeError("no compiler")
        sums, first = fold(*args, **kwargs)
        sums[kernel_block.Sum.MEAN_SHIFTED] += 0.1
        return sums, first

    monkeypatch.setattr(triton_kernels, "fold", broken)
    *inputs, labels = problem(SHAPES[1], 1.0, dtype=torch.float32)
    message = "no compiler" if fault == "raises" else "entropy differs"
    with pytest.warns(RuntimeWarning, match=f"kernels are not used.*{message}") as said:
        results = [run(CrossEntropyLoss(), inputs, labels) for _ in range(2)]
    assert len(said) == 1
    monkeypatch.setenv("ENTROPYFLOOR_KERNELS", "0")
    assert torch.equal(results[1]["weight"], run(CrossEntropyLoss(), inputs, labels)["weight"])
