"""Which device computes, on which one the statistics live, and memory used."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from extraction_kit.errors import BadSettings

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""torch's types by the names of `ExtractionConfig.dtype`."""


def resolve_device(device: str) -> torch.device:
    """Return the torch device that ``Settings.device`` means.

    Raises
    ------
    BadSettings
        torch does not know the device, or it is not there.
    """
    if device == "auto":
        return torch.device(_best_available())
    try:
        found = torch.device(device)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise BadSettings(
            f"device={device!r} cannot be used ({reason}): 'auto', 'cpu', 'cuda', "
            "'cuda:1' or 'mps' are allowed, as far as this machine has them"
        ) from error
    return found


def _best_available() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def statistics_device(device: torch.device) -> torch.device:
    """Return where the statistics of what `device` computes are kept."""
    # MPS has no float64, which the sums are.
    return torch.device("cpu") if device.type == "mps" else device


def describe_device(device: torch.device) -> str:
    """Return the class of `device`: what decides its arithmetic."""
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def reduced_precision(device: torch.device) -> str | None:
    """Return in what this process multiplies float32 matrices, ``tf32`` or ``bf16``.

    None in full precision, which is torch's default. ``torch.set_float32_matmul_precision``
    changes it, and environment variables of CUDA do.
    """
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    told = getattr(matmul, "fp32_precision", None)  # before torch 2.9 there is none
    if told is None:
        reduced = {"high": "tf32", "medium": "bf16"}
        return reduced.get(torch.get_float32_matmul_precision())
    return None if told in {"ieee", "none"} else str(told)


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """Return an array on `device`, without waiting for it."""
    here = torch.from_numpy(array)
    if device.type == "cuda":  # the copy overlaps with what is being computed
        return here.pin_memory().to(device, non_blocking=True)
    return here.to(device)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[int]:
    """Let torch use so many CPU threads; None leaves its choice. Yields the number."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def peak_rss_bytes() -> int:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
