"""Where every feature is most active: its top examples, with what surrounds them."""

import bisect
import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from extraction_kit.results import GROUPS
from extraction_kit.stats.activations import (
    Activations,
    Peaks,
    flat_nonzero,
    picked,
    starts,
)
from extraction_kit.stats.examples import ExampleStatistic, Rows, ranks
from extraction_kit.stats.hashing import LARGEST, mixed
from extraction_kit.stats.moments import best_first

TOP = GROUPS.index("top")
_WINDOWS = 0  # salt: what is the same text depends on no seed


class TopK(ExampleStatistic):
    """The `k` largest activations of every feature, at most one per context.

    Order: value descending, then context ascending; within a context the earliest position
    of the largest value.

    With `dedupe`, of examples with the same window only the first is kept, so that copies
    of one text do not fill the places. Windows are the same if the same counted tokens
    stand at the same offsets from the peak; tokens that are masked, and padding, do not
    matter. A window that the context's edge cuts is another one than the whole: "equal as
    far as both go" would be no equivalence, and which of them stays a matter of order.
    Which are kept depends on the set of contexts alone: a row that falls behind an equal
    one can never come first again, and one behind `k` different ones stays behind them.
    Windows are told apart by a 62-bit hash. An example is lost only to a better one with
    the same hash: with probability below k^2 / 2^63 per feature, 4e-17 for 20.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Examples kept per feature.
    window : (int, int)
        Tokens (before, after) the peak whose activations of the feature are kept.
    dedupe : bool
        Whether examples have different windows.
    """

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        window: tuple[int, int],
        dedupe: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(k * d_sae, k=k, window=window, device=device)
        self.dedupe = dedupe
        self._bound = torch.zeros(d_sae, dtype=torch.float32, device=device)

    def could_enter(self, peaks: Peaks) -> Int64[Tensor, " index"]:
        """Return which of `peaks` are not below the smallest kept one of their feature."""
        # Equal values enter too: their context may be an earlier one.
        return flat_nonzero(peaks.value >= picked(self._bound, peaks.feature))

    def ordered(self, rows: Rows) -> tuple[Int64[Tensor, " index"], Int64[Tensor, " slot"]]:
        """Return the order (feature asc, value desc, context asc), and the features."""
        order = best_first(rows.feature, rows.value, rows.context)
        if self.dedupe:
            order = order[_first_of_each(rows.feature[order], rows.identity[order])]
        return order, picked(rows.feature, order)

    def identity(self, batch: Activations, peaks: Peaks) -> Int64[Tensor, " n"]:
        """Return the hash of each peak's window, or what is always different."""
        if not self.dedupe:
            return super().identity(batch, peaks)
        known, (before, after) = batch.contexts, self.window
        offset = torch.arange(-before, after + 1, device=peaks.pos.device)
        pos = peaks.pos[:, None] + offset
        inside = (pos >= 0) & (pos < known.size)
        place = peaks.local[:, None], pos.clamp(0, known.size - 1)
        inside &= known.valid[place]
        hashed = mixed(_WINDOWS, offset, known.tokens[place])
        # a sum wraps without harm, and a place that is not there adds nothing
        return hashed.masked_fill(~inside, 0).sum(dim=1) & LARGEST

    def raise_bound(self, kept: Rows) -> None:
        """Take the `k`-th value of each feature that has so many."""
        last = flat_nonzero(ranks(kept.feature) == self.k - 1)
        self._bound.zero_()
        self._bound[kept.feature[last]] = kept.value[last]

    def best(self, feature: Int64[Tensor, " n"], context: Int64[Tensor, " n"]) -> Rows:
        """Return the best row of each `feature`, which is in `context`, in any order.

        Looks up the kept rows by bisection, and at the feature and context of every buffered
        one if a row is not among them.
        """
        at = torch.searchsorted(self._kept.feature, feature)
        kept = at < self._kept.n
        kept[kept.clone()] = (self._kept.feature[at[kept]] == feature[kept]) & (
            self._kept.context[at[kept]] == context[kept]
        )
        found = [self._kept.select(at[kept])]
        if not bool(kept.all()) and self._pending:
            found += self._buffered(feature[~kept], context[~kept])
        return Rows.joined(found)

    def _buffered(self, feature: Tensor, context: Tensor) -> Iterator[Rows]:
        features = torch.cat([rows.feature for rows in self._pending])
        contexts = torch.cat([rows.context for rows in self._pending])
        wanted = torch.zeros_like(features, dtype=torch.bool)
        for one, there in zip(feature, context, strict=True):
            wanted |= (features == one) & (contexts == there)
        ends = list(itertools.accumulate(rows.n for rows in self._pending))
        for place in flat_nonzero(wanted).tolist():
            part = bisect.bisect_right(ends, place)
            rows = self._pending[part]
            first = ends[part] - rows.n
            yield rows.select(torch.tensor([place - first], device=features.device))

    def group(self, kept: Rows) -> np.ndarray:
        """All are ``top``."""
        return np.full(kept.n, TOP, dtype=np.int8)


def _first_of_each(
    feature: Int64[Tensor, " n"], identity: Int64[Tensor, " n"]
) -> Int64[Tensor, " kept"]:
    """Return, in order, the places where a (feature, identity) comes for the first time."""
    order = torch.argsort(identity, stable=True)
    order = order[torch.argsort(feature[order], stable=True)]
    return torch.sort(order[starts(feature[order], identity[order])]).values
