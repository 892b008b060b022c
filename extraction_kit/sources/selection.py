"""Which pre-activations are active: one class per kind of SAE.

The encoder makes pre-activations tile by tile: some features, all rows. A `Scan` sees each
tile once: ``mark`` sets a dense mask where entries may be active, ``take`` is given the marked
ones, and ``result`` returns those that are, ordered by row and feature. Dense feature
activations are never made, and no more than one tile of pre-activations is held.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from extraction_kit.stats.activations import flat_nonzero, picked

GROUPS_PER_K = 4
"""Groups of features, per k, whose maxima bound the k-th largest pre-activation."""
_RADIX = 2**16  # NumPy sorts 16-bit integers in linear time

Found = tuple[Int64[Tensor, " _"], Int64[Tensor, " _"], Float[Tensor, " _"]]
"""Row, feature and value of some entries, as many of each."""


class Scan(ABC):
    """One pass over the tiles of a batch; keeps the entries that it is given."""

    def __init__(self) -> None:
        self.parts: list[Found] = []

    @abstractmethod
    def mark(
        self,
        pre: Float[Tensor, "row feature"],
        mask: Bool[Tensor, "row feature"],
        *,
        first_row: int,
        tile: int,
    ) -> None:
        """Set `mask` where entries of `pre` may be active."""

    def settle(self, *, tile: int) -> None:
        """Learn from what was found so far, before `tile` is marked; not before the first."""
        del tile

    def take(self, row: Tensor, feature: Tensor, value: Tensor, *, tile: int) -> None:
        """Take in the marked entries of a tile."""
        del tile
        self.parts.append((row, feature, value))

    def result(self) -> Found:
        """Return the active entries, ordered by row, then feature."""
        return by_row(joined(self.parts))


Selection = Callable[[int], Scan]
"""Begins a scan over so many rows."""


class AboveBound(Scan):
    """Features that do not compete: relu, jumprelu and gated.

    Active where the pre-activation h is above a bound of its feature. The activation is h;
    of a gated SAE it is h * gain + offset, where that is positive.

    Parameters
    ----------
    bound : sequence of Tensor [feature of the tile]
        By tile.
    gain, offset : sequence of Tensor float32, optional
        By tile; for a gated SAE.
    """

    def __init__(
        self,
        bound: tuple[Tensor, ...],
        *,
        gain: tuple[Tensor, ...] | None = None,
        offset: tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__()
        self._bound, self._gain, self._offset = bound, gain, offset
        self._first = [0, *accumulate(part.numel() for part in bound)]

    def __call__(self, n_rows: int) -> Scan:
        """Begin a scan."""
        del n_rows
        return AboveBound(self._bound, gain=self._gain, offset=self._offset)

    def mark(self, pre: Tensor, mask: Tensor, *, first_row: int, tile: int) -> None:
        """Set `mask` where `pre` is above the bound of its feature."""
        del first_row
        torch.gt(pre, self._bound[tile], out=mask)

    def take(self, row: Tensor, feature: Tensor, value: Tensor, *, tile: int) -> None:
        """Take in all of them, with the magnitudes of a gated SAE."""
        if self._gain is not None and self._offset is not None:
            column = feature - self._first[tile]
            value = value.float() * self._gain[tile][column] + self._offset[tile][column]
            active = value > 0
            row, feature, value = row[active], feature[active], value[active]
        super().take(row, feature, value, tile=tile)


class Largest(Scan):
    """The k largest of each row, where they are positive; of equal ones the lower features.

    The k-th largest so far is a floor under which nothing more can be among them. It is
    raised after the 1st, 2nd, 4th, 8th ... tile: each time about k entries per row have been
    marked since the last, so that some k log2(tiles) are looked at in all.
    """

    def __init__(self, k: int, n_rows: int = 0) -> None:
        super().__init__()
        self._k, self._n_rows = k, n_rows
        self._floor: Tensor | None = None
        self._raised_at = 0

    def __call__(self, n_rows: int) -> Scan:
        """Begin a scan."""
        return Largest(self._k, n_rows)

    def mark(self, pre: Tensor, mask: Tensor, *, first_row: int, tile: int) -> None:
        """Set `mask` where `pre` is not below the floor of its row."""
        if self._floor is None:
            self._floor = pre.new_zeros(self._n_rows)
        rows = slice(first_row, first_row + pre.shape[0])
        if tile == 0 and self._k <= pre.shape[1]:
            self._floor[rows] = floor_of_largest(pre, self._k).clamp_(min=0)
        torch.ge(pre, self._floor[rows, None], out=mask)

    def settle(self, *, tile: int) -> None:
        """Raise the floor, and keep the k largest so far."""
        if self._floor is None or tile < 2 * self._raised_at:
            return
        self._raised_at = tile
        row, feature, value = by_row(joined(self.parts))
        best, last = largest_per_row(row, value, k=self._k, n_rows=self._n_rows)
        torch.maximum(self._floor, last, out=self._floor)
        self.parts = [(picked(row, best), picked(feature, best), picked(value, best))]

    def result(self) -> Found:
        """Return the k largest positive ones of each row."""
        row, feature, value = by_row(joined(self.parts))
        best, _ = largest_per_row(row, value, k=self._k, n_rows=self._n_rows)
        return picked(row, best), picked(feature, best), picked(value, best)


class LargestOfGroups(Scan):
    """The largest of each group of `size` neighbouring features, where it is positive.

    A tile holds whole groups.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __call__(self, n_rows: int) -> Scan:
        """Begin a scan."""
        del n_rows
        return LargestOfGroups(self._size)

    def mark(self, pre: Tensor, mask: Tensor, *, first_row: int, tile: int) -> None:
        """Set `mask` at the largest of each group, if it is positive."""
        del first_row, tile
        groups = (pre.shape[0], -1, self._size)
        best = pre.view(groups).max(dim=2, keepdim=True)
        mask.zero_().view(groups).scatter_(2, best.indices, best.values > 0)


def joined(parts: list[Found]) -> Found:
    """Return the entries of all parts."""
    if len(parts) == 1:
        return parts[0]
    row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
    return row, feature, value


def by_row(found: Found) -> Found:
    """Return the entries in the order of their rows; within a row as they are."""
    row, feature, value = found
    if row.device.type == "cpu" and row.numel() and int(row.max()) < _RADIX:
        narrow = row.numpy().astype(np.uint16)
        order = torch.from_numpy(np.argsort(narrow, kind="stable"))
    else:
        order = torch.argsort(row, stable=True)
    return picked(row, order), picked(feature, order), picked(value, order)


def floor_of_largest(pre: Float[Tensor, "row feature"], k: int) -> Float[Tensor, " row"]:
    """Return a lower bound of the k-th largest number of each row.

    The maxima of any k or more groups of numbers are k different numbers, so that the k-th
    largest of them is at most the k-th largest of all: what is below it is not among the k.
    """
    n_groups = GROUPS_PER_K * k
    size = pre.shape[1] // n_groups
    if size > 1:
        pre = pre[:, : size * n_groups].view(-1, size, n_groups).amax(1)
    floor: Tensor = pre.topk(k, dim=1).values[:, -1]
    return floor.clone()


def largest_per_row(
    row: Int64[Tensor, " n"], value: Float[Tensor, " n"], *, k: int, n_rows: int
) -> tuple[Int64[Tensor, " kept"], Float[Tensor, " row"]]:
    """Return the indices of the `k` largest positive values of each row, ascending.

    `row` is ascending. Of equal values the one that comes first is kept. Also returned is
    the k-th largest value of each row, 0 where there are fewer positive ones.
    """
    length = torch.bincount(row, minlength=n_rows)
    begin = torch.cumsum(length, 0) - length
    column = torch.arange(row.numel(), device=row.device) - picked(begin, row)
    widest = max(k, int(length.max()) if length.numel() else 0)
    table = value.new_zeros((n_rows, widest))
    table[row, column] = value
    ordered = table.sort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(table, dtype=torch.bool)
    kept.scatter_(1, ordered.indices[:, :k], True)
    kept &= table > 0
    last = ordered.values[:, k - 1].clamp(min=0)
    return flat_nonzero(kept[row, column]), last
