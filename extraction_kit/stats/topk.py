"""Where every feature is most active: its top examples, with what surrounds them."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from extraction_kit.results import GROUPS
from extraction_kit.stats.activations import Peaks
from extraction_kit.stats.examples import ExampleStatistic, Rows, ranks
from extraction_kit.stats.moments import best_first

TOP = GROUPS.index("top")


class TopK(ExampleStatistic):
    """The `k` largest activations of every feature, at most one per context.

    Order: value descending, then context ascending; within a context the earliest position
    of the largest value.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Examples kept per feature.
    window : (int, int)
        Tokens (before, after) the peak whose activations of the feature are kept.
    """

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        window: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(k * d_sae, k=k, window=window, device=device)
        self._bound = torch.zeros(d_sae, dtype=torch.float32, device=device)

    def could_enter(self, peaks: Peaks) -> Int64[Tensor, " index"]:
        """Return which of `peaks` are not below the smallest kept one of their feature."""
        # Equal values enter too: their context may be an earlier one.
        return torch.nonzero(peaks.value >= self._bound[peaks.feature]).squeeze(1)

    def ordered(self, rows: Rows) -> tuple[Int64[Tensor, " index"], Int64[Tensor, " slot"]]:
        """Return the order (feature asc, value desc, context asc), and the features."""
        order = best_first(rows.feature, rows.value, rows.context)
        return order, rows.feature[order]

    def raise_bound(self, kept: Rows) -> None:
        """Take the `k`-th value of each feature that has so many."""
        last = torch.nonzero(ranks(kept.feature) == self.k - 1).squeeze(1)
        self._bound.zero_()
        self._bound[kept.feature[last]] = kept.value[last]

    def group(self, kept: Rows) -> np.ndarray:
        """All are ``top``."""
        return np.full(kept.n, TOP, dtype=np.int8)
