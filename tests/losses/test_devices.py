"""What a device can multiply decides how: 16-bit products with fp32 results are not everywhere."""

import pytest
import torch

from entropyfloor_losses import products


@pytest.mark.parametrize(
    ("capability", "hip", "direct"),
    [((7, 5), None, False), ((8, 0), None, True), ((9, 0), None, True), ((9, 4), "6.4", False)],
)
def test_which_devices_multiply_into_fp32(monkeypatch, capability, hip, direct):
    """A T4 (7.5) and ROCm refuse ``out_dtype``."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert products.multiplies_into_fp32(torch.device("cuda", 0)) is direct
    assert not products.multiplies_into_fp32(torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("direct", [True, False])
def test_the_products_obey(monkeypatch, direct, dtype):
    """Where the device cannot, results are rounded once, and the sum over chunks stays fp32."""
    asked, mm, addmm = [], torch.mm, torch.addmm

    def recorded(product):
        def call(*args, out_dtype=None, **kwargs):
            asked.append(out_dtype)
            if out_dtype is not None:  # what a GPU would do
                args = [t.to(out_dtype) for t in args]
            return product(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "mm", recorded(mm))
    monkeypatch.setattr(torch, "addmm", recorded(addmm))
    monkeypatch.setattr(products, "multiplies_into_fp32", lambda device: direct)
    a, b = torch.randn(4, 3).to(dtype), torch.randn(3, 5).to(dtype)
    out, total = torch.empty(4, 5), torch.ones(5, 3)
    products.matmul_out(a, b, out=out)
    torch.testing.assert_close(out, mm(a.float(), b.float()), rtol=1e-2, atol=1e-2)
    gradient = torch.randn(4, 5)
    products.add_products(
        gradient, b.T.contiguous(), a, grad_hidden=None, grad_weight=total, first=False
    )
    torch.testing.assert_close(total, 1 + gradient.T @ a.float(), rtol=1e-2, atol=3e-2)
    wide = [dtype for dtype in asked if dtype is not None]
    assert wide == ([torch.float32] * 2 if direct and dtype != torch.float32 else [])
