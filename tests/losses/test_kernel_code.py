"""The GPU kernels' machine code for GPUs that are not there: registers, spills, barriers.

`make test-triton` runs this where Triton is installed: its wheel carries the whole compiler.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: make test-triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from entropyfloor_losses import triton_kernels  # noqa: E402

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32)}
NOTHING = {"CAPPED": False, "AVERAGE": False, "POWER": False, "BASE": False}
FOLD = {**NOTHING, "SECOND": True}
GRADIENT = {**NOTHING, "ENTROPY": False}
EVERYTHING = {"CAPPED": True, "AVERAGE": True, "POWER": True, "BASE": True}
VARIANTS = {
    "fold, ce and sed": ("fold_kernel", FOLD),
    "fold, gem": ("fold_kernel", {**FOLD, "POWER": True}),
    "fold, anchor": ("fold_kernel", {**FOLD, "BASE": True}),
    "fold, everything": ("fold_kernel", {**FOLD, **EVERYTHING}),
    "gradient, ce": ("gradient_kernel", GRADIENT),
    "gradient, entropy": ("gradient_kernel", {**GRADIENT, "ENTROPY": True}),
    "gradient, anchor": ("gradient_kernel", {**GRADIENT, "BASE": True}),
    "gradient, everything": ("gradient_kernel", {**GRADIENT, **EVERYTHING, "ENTROPY": True}),
}
TYPES = {
    "products": "*fp32",
    "base": "*fp32",
    "sums": "*fp32",
    "terms": "*fp32",
    "first_argmax": "*i32",
    "labels": "*i64",
    "gradient": "*bf16",
    **dict.fromkeys(("inner", "outer", "power"), "fp32"),
    **dict.fromkeys(
        ("vocabulary", "stride", "base_stride", "sums_stride", "gradient_stride"), "i32"
    ),
}


def compiled(kernel, flags, target, aligned):
    """A variant as `fold` and `write_gradient` launch it; rows aligned or not (an odd V)."""
    function = getattr(triton_kernels, kernel)
    constants = {**flags, "BLOCK": triton_kernels.BLOCK}
    if not flags["BASE"]:
        constants["base"] = None
    names = function.arg_names
    signature = {n: "constexpr" if n in constants else TYPES[n] for n in names}
    multiple = [n for n in signature if signature[n].startswith("*")]
    multiple += ["stride", "base_stride", "gradient_stride"] + (["vocabulary"] if aligned else [])
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in multiple}
    source = ASTSource(
        function, signature, {(names.index(n),): v for n, v in constants.items()}, attributes
    )
    options = {"num_warps": triton_kernels.WARPS, "num_stages": 1}
    return triton.compile(source, target=target, options=options)


def resources(cubin, folder):
    """Registers of a thread, bytes of local memory (spills) and stack."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    shown = subprocess.run(
        [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(re.search(rf"{name}:(\d+)", shown)[1]) for name in ("REG", "STACK", "LOCAL")}


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiles_without_spills(tmp_path, variant, target, aligned):
    kernel, flags = VARIANTS[variant]
    code = compiled(kernel, flags, TARGETS[target], aligned)
    used = resources(code.asm["cubin"], tmp_path)
    print(f"{target} {variant}, aligned {aligned}: {used}")
    assert used["LOCAL"] == used["STACK"] == 0
    # Of 65,536 of a multiprocessor: three programs of 8 warps at least.
    assert used["REG"] <= 80


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("gradient")])
def test_a_barrier_stands_between_reading_and_writing_in_place(variant, target):
    """In the machine's own order: no logits are read between the barrier and what is written."""
    ptx = compiled(*VARIANTS[variant], TARGETS[target], True).asm["ptx"]
    kinds = re.findall(r"ld\.global|st\.global|bar\.sync|cp\.async", ptx)
    assert "cp.async" not in kinds  # nothing is read ahead
    last_load = len(kinds) - 1 - kinds[::-1].index("ld.global")
    first_store = kinds.index("st.global")
    assert "bar.sync" in kinds[last_load:first_store]
