"""Which pre-activations are active: one class per kind of SAE.

``mark`` sets a dense mask where a tile of pre-activations [row, feature] may be active;
``keep`` returns those of the marked entries, ordered by row, that are, and their values.
Dense feature activations are never made.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

GROUPS_PER_K = 4
"""Groups of features, per k, whose maxima bound the k-th largest pre-activation."""


class AboveBound:
    """Features that do not compete: relu, jumprelu and gated.

    Active where the pre-activation h is above a bound of its feature. The activation is h;
    of a gated SAE it is h * gain + offset, where that is positive.
    """

    def __init__(
        self,
        bound: Float[Tensor, " feature"],
        *,
        width: int,
        gain: Float[Tensor, " feature"] | None = None,
        offset: Float[Tensor, " feature"] | None = None,
    ) -> None:
        self._bound = torch.split(bound, width)
        self._affine = None
        if gain is not None and offset is not None:
            parts = torch.split(gain.float(), width), torch.split(offset.float(), width)
            self._affine = list(zip(*parts, strict=True))

    def mark(self, pre: Tensor, mask: Tensor, *, tile: int) -> None:
        """Set `mask` where `pre` is above the bound of its feature."""
        torch.gt(pre, self._bound[tile], out=mask)

    def keep(
        self, row: Tensor, feature: Tensor, value: Tensor, *, n_rows: int, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all of them, with the magnitudes of a gated SAE."""
        del n_rows
        if self._affine is None:
            return row, feature, value
        gain, offset = self._affine[tile]
        value = value.float() * gain[feature] + offset[feature]
        active = value > 0
        return row[active], feature[active], value[active]


class Largest:
    """The k largest of each row, where they are positive."""

    def __init__(self, k: int) -> None:
        self._k = k

    def mark(self, pre: Tensor, mask: Tensor, *, tile: int) -> None:
        """Set `mask` where `pre` may be among the k largest."""
        del tile
        floor = floor_of_largest(pre, self._k).clamp_(min=0)
        torch.ge(pre, floor[:, None], out=mask)

    def keep(
        self, row: Tensor, feature: Tensor, value: Tensor, *, n_rows: int, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the k largest of each row; of equal ones the lower features."""
        del tile
        best = largest_per_row(row, value, k=self._k, n_rows=n_rows)
        return row[best], feature[best], value[best]


class LargestOfGroups:
    """The largest of each of k groups of neighbouring features, where it is positive."""

    def __init__(self, k: int) -> None:
        self._k = k

    def mark(self, pre: Tensor, mask: Tensor, *, tile: int) -> None:
        """Set `mask` at the largest of each group, if it is positive."""
        del tile
        groups = (pre.shape[0], self._k, -1)
        best = pre.view(groups).max(dim=2, keepdim=True)
        mask.zero_().view(groups).scatter_(2, best.indices, best.values > 0)

    def keep(
        self, row: Tensor, feature: Tensor, value: Tensor, *, n_rows: int, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return all of them."""
        del n_rows, tile
        return row, feature, value


Selection = AboveBound | Largest | LargestOfGroups


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
) -> Int64[Tensor, " kept"]:
    """Return the indices of the `k` largest positive values of each row, ascending.

    `row` is ascending. Of equal values the one that comes first is kept.
    """
    length = torch.bincount(row, minlength=n_rows)
    begin = torch.cumsum(length, 0) - length
    column = torch.arange(row.numel(), device=row.device) - begin[row]
    widest = int(length.max()) if length.numel() else 0
    table = value.new_zeros((n_rows, widest))
    table[row, column] = value
    order = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(1, order, True)
    kept &= table > 0
    return torch.nonzero(kept[row, column]).squeeze(1)
