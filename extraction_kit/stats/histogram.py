"""How the activations of every feature are distributed: a log2 histogram."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from extraction_kit.results import N_BINS, bin_edges
from extraction_kit.stats.activations import Activations, picked
from extraction_kit.stats.statistic import FeatureStatistic, count_into


def float32_edges() -> np.ndarray:
    """Return the inner edges as the smallest float32 that is not below each of them.

    A float32 is at or above a float64 edge exactly if it is at or above that number, so
    that activations need not be widened to be put into their bins.
    """
    exact = bin_edges()[1:-1]
    near = exact.astype(np.float32)
    return np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)


_CELL_BITS = 19
"""Bits of a float32 below those that number its cell: 16 cells in an octave of 8 bins, so
that no cell has two edges, and one comparison tells what a bisection would."""
_FIRST_CELL = int(np.float32(bin_edges()[1]).view(np.int32) >> _CELL_BITS) - 1


def _cells() -> tuple[np.ndarray, np.ndarray]:
    """Return of each cell the bin in which it begins, and the edge above that bin.

    The first cell stands for all smaller numbers, the last one for all larger ones.
    """
    edges = float32_edges()
    last = int(edges[-1].view(np.int32) >> _CELL_BITS)
    begin = np.arange(_FIRST_CELL, last + 1, dtype=np.int32) << _CELL_BITS
    bin_below = np.searchsorted(edges, begin.view(np.float32), side="right")
    return bin_below, np.append(edges, np.float32(np.inf))[bin_below]


class Histogram(FeatureStatistic):
    """Active tokens per bin of `extraction_kit.results.bin_edges`, for every feature.

    An activation equal to an edge belongs to the bin above it.
    """

    STATE: ClassVar[tuple[str, ...]] = ("counts",)
    counts: Int64[Tensor, " feature_bin"]

    def __init__(self, d_sae: int, *, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(d_sae * N_BINS, dtype=torch.int64, device=device)
        bin_below, next_edge = _cells()
        self._bin_below = torch.from_numpy(bin_below).to(device)
        self._next_edge = torch.from_numpy(next_edge).to(device)

    def bins(self, value: Float32[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """Return the bin of each positive value."""
        cell = (value.view(torch.int32) >> _CELL_BITS) - _FIRST_CELL
        cell = cell.clamp_(0, self._next_edge.numel() - 1)
        return picked(self._bin_below, cell) + (value >= picked(self._next_edge, cell))

    def update(self, batch: Activations) -> "Histogram":
        """Count the active tokens of `batch`."""
        count_into(self.counts, batch.feature * N_BINS + self.bins(batch.value))
        return self

    def merge(self, other: "Histogram") -> "Histogram":
        """Add the counts of `other`."""
        self.counts += other.counts.to(self.counts.device)
        return self

    def compute(self) -> np.ndarray:
        """Return the counts, int64 [d_sae, N_BINS]."""
        return self.counts.cpu().numpy().reshape(-1, N_BINS).copy()
