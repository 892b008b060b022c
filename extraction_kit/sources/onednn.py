"""Matrix products in float32 by oneDNN, on processors where torch's own are slow.

On x86 torch multiplies float32 matrices with Intel's MKL, which does not use the 512-bit units
of an AMD processor: on one core of Zen 5 it computes 105 GFLOP/s, and oneDNN, which comes with
torch, 245. Whether oneDNN is used depends on the processor and on torch alone, never on a
timing, so that one machine always computes the same bits.
"""

import platform
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

_CPUINFO = Path("/proc/cpuinfo")


def is_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN is to multiply matrices of `dtype` on `device`.

    With ``torch.backends.mkldnn.enabled = False`` it is not.
    """
    return (
        device.type == "cpu"
        and dtype is torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and is_there()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and _vendor() == "AuthenticAMD"
    )


def linear(
    x: Float[Tensor, "*row d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
) -> Float[Tensor, "*row d_out"]:
    """Return ``x weight^T + bias``, in fresh memory; `weight` may be a transposed view."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001 - compiled models use it
        x, weight, bias, "none", [], ""
    )
    return product


@cache
def is_there() -> bool:
    """Whether this torch multiplies with MKL, and has oneDNN's product to put in its place."""
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@cache
def _vendor() -> str:
    """Return the processor's maker as the processor names it; empty if it is not told."""
    if not _CPUINFO.exists():  # Windows says "AMD64 Family 25 Model 97 ..., AuthenticAMD"
        return platform.processor().rpartition(" ")[2]
    for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            return value.strip()
    return ""
