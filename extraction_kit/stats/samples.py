"""Examples that stand for all of a feature's contexts, not for its largest values only.

Which contexts are drawn is decided by the smallest hash of (seed, feature, context): the
same for any batches, order, shards and merges, and uniform without replacement.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from extraction_kit.results import GROUPS, LOG2_HIGH, LOG2_LOW, N_BANDS
from extraction_kit.stats.activations import Peaks, flat_nonzero, ordered_bits, picked
from extraction_kit.stats.examples import ExampleStatistic, Rows, ranks
from extraction_kit.stats.hashing import LARGEST, Draw, mixed

N_OCTAVES = LOG2_HIGH - LOG2_LOW + 2
"""Powers of two told apart: all below 2^-10 are one, and all from 2^10."""
_EXPONENT = 23  # bits of a float32's mantissa
_BIAS = 127


def held_out(
    context: Int64[Tensor, " n"], *, share: float, seed: int
) -> Bool[Tensor, " n"]:
    """Return which contexts are held out, each with probability `share`, by its hash.

    Explanations that saw the other contexts only can be scored on these.
    """
    return mixed(Draw.HELD_OUT.seed(seed), context) < int(share * (LARGEST + 1))


def octave(value: Float32[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return floor(log2(value)) - LOG2_LOW + 1, at least 0 and below `N_OCTAVES`."""
    exponent = (ordered_bits(value) >> _EXPONENT) - _BIAS
    return (exponent - LOG2_LOW + 1).clamp_(0, N_OCTAVES - 1)


class _Sample(ExampleStatistic):
    """The `k` rows of each slot with the smallest hash."""

    draw: Draw

    def __init__(
        self,
        n_slots: int,
        *,
        n_kept: int,
        k: int,
        window: tuple[int, int],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_kept, k=k, window=window, device=device)
        self._seed = self.draw.seed(seed)
        self._bound = torch.full((n_slots,), LARGEST, dtype=torch.int64, device=device)

    def slot(self, of: Peaks | Rows) -> Int64[Tensor, " n"]:
        """Return the slot of each peak or row."""
        return of.feature

    def hash(self, of: Peaks | Rows) -> Int64[Tensor, " n"]:
        """Return what decides, of each peak or row."""
        return mixed(self._seed, of.feature, of.context)

    def could_enter(self, peaks: Peaks) -> Int64[Tensor, " index"]:
        """Return which of `peaks` have no larger hash than the last of a full slot."""
        return flat_nonzero(self.hash(peaks) <= picked(self._bound, self.slot(peaks)))

    def ordered(self, rows: Rows) -> tuple[Int64[Tensor, " index"], Int64[Tensor, " slot"]]:
        """Return the order (slot asc, hash asc, context asc), and the slots."""
        order = torch.argsort(rows.context, stable=True)
        order = picked(order, torch.argsort(picked(self.hash(rows), order), stable=True))
        slot = self.slot(rows)
        order = picked(order, torch.argsort(picked(slot, order), stable=True))
        return order, picked(slot, order)

    def raise_bound(self, kept: Rows) -> None:
        """Take the hash of the `k`-th of each slot that has so many."""
        slot = self.slot(kept)
        last = flat_nonzero(ranks(slot) == self.k - 1)
        self._bound.fill_(LARGEST)
        self._bound[slot[last]] = self.hash(kept)[last]


class RandomExamples(_Sample):
    """`k` of the contexts in which a feature is active, drawn uniformly; at their peaks.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Examples per feature.
    window : (int, int)
        Tokens (before, after) the peak whose activations of the feature are kept.
    seed : int
        Of the draw.
    """

    draw = Draw.RANDOM

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        window: tuple[int, int],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            d_sae, n_kept=k * d_sae, k=k, window=window, seed=seed, device=device
        )

    def group(self, kept: Rows) -> np.ndarray:
        """All are ``random``."""
        return np.full(kept.n, GROUPS.index("random"), dtype=np.int8)


class BandExamples(_Sample):
    """`k` contexts of each of the highest octaves in which a feature peaks, drawn uniformly.

    Band 1 is the octave (from one power of two to the next) of the feature's largest
    activation, band 2 the one below, to band `N_BANDS`. A context belongs to the band of
    its peak. While the corpus is read, examples of octaves that the largest activation so
    far has already left behind are dropped; none of them could be in the result.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Examples per feature and band.
    window : (int, int)
        Tokens (before, after) the peak whose activations of the feature are kept.
    seed : int
        Of the draw.
    """

    draw = Draw.BANDS

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        window: tuple[int, int],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            d_sae * N_OCTAVES,
            n_kept=k * N_BANDS * d_sae,
            k=k,
            window=window,
            seed=seed,
            device=device,
        )
        self._highest = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def slot(self, of: Peaks | Rows) -> Int64[Tensor, " n"]:
        """Return feature and octave as one index, the highest octave first."""
        return of.feature * N_OCTAVES + (N_OCTAVES - 1 - octave(of.value))

    def could_enter(self, peaks: Peaks) -> Int64[Tensor, " index"]:
        """Return those that are not too low for any band either."""
        self._raise(peaks)
        near = flat_nonzero(self._band(peaks) < N_BANDS)
        return picked(near, super().could_enter(peaks.select(near)))

    def ordered(self, rows: Rows) -> tuple[Int64[Tensor, " index"], Int64[Tensor, " slot"]]:
        """Return the order without the rows that have become too low."""
        self._raise(rows)
        order, slot = super().ordered(rows)
        near = flat_nonzero(picked(self._band(rows), order) < N_BANDS)
        return picked(order, near), picked(slot, near)

    def raise_bound(self, kept: Rows) -> None:
        """Take the bounds, and the highest octaves."""
        self._highest.zero_()
        self._raise(kept)
        super().raise_bound(kept)

    def _raise(self, of: Peaks | Rows) -> None:
        self._highest.scatter_reduce_(0, of.feature, octave(of.value), "amax")

    def _band(self, of: Peaks | Rows) -> Int64[Tensor, " n"]:
        return picked(self._highest, of.feature) - octave(of.value)

    def group(self, kept: Rows) -> np.ndarray:
        """Return ``band_1`` and so on."""
        band = self._band(kept).cpu().numpy()
        return (GROUPS.index("band_1") + band).astype(np.int8)
