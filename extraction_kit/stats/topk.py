"""Where every feature is most active: its top examples, with what surrounds them.

Peaks that could still enter are buffered together with the activations around them, in
the same pass. When the buffer is full it is sorted once, each feature keeps its best, and
its smallest kept value becomes the bound for later peaks. The bound is only ever too low,
never too high, so what is kept does not depend on when the buffer was emptied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from extraction_kit.results import GROUPS, Examples
from extraction_kit.stats.activations import Activations, Peaks
from extraction_kit.stats.moments import best_first
from extraction_kit.stats.statistic import FeatureStatistic

MIN_BUFFER = 2**18
"""Peaks buffered at least before they are sorted."""


@dataclass(frozen=True)
class Rows:
    """Examples with their windows; the window of row i has ``length[i]`` active tokens."""

    feature: Int64[Tensor, " row"]
    value: Float32[Tensor, " row"]
    context: Int64[Tensor, " row"]
    pos: Int64[Tensor, " row"]
    token: Int32[Tensor, " row"]
    length: Int64[Tensor, " row"]
    act_off: Int32[Tensor, " entry"]
    act_val: Float32[Tensor, " entry"]

    @classmethod
    def none(cls, device: torch.device | str) -> "Rows":
        """Return no rows at all."""
        wide = torch.zeros(0, dtype=torch.int64, device=device)
        real = torch.zeros(0, dtype=torch.float32, device=device)
        narrow = torch.zeros(0, dtype=torch.int32, device=device)
        return cls(wide, real, wide, wide, narrow, wide, narrow, real)

    @classmethod
    def joined(cls, parts: "Sequence[Rows]") -> "Rows":
        """Return the rows of all `parts`, one part after another."""
        return cls(
            *(torch.cat(column) for column in zip(*map(_columns, parts), strict=True))
        )

    def select(self, index: Int64[Tensor, " kept"]) -> "Rows":
        """Return the rows at `index`, with their windows."""
        begin = torch.cumsum(self.length, 0) - self.length
        length = self.length[index]
        # entry j of a selected row is at begin + j: one arange, shifted row by row
        shift = begin[index] - (torch.cumsum(length, 0) - length)
        entry = torch.repeat_interleave(shift, length)
        entry += torch.arange(entry.numel(), device=entry.device)
        return Rows(
            self.feature[index],
            self.value[index],
            self.context[index],
            self.pos[index],
            self.token[index],
            length,
            self.act_off[entry],
            self.act_val[entry],
        )

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on `device`."""
        return Rows(*(column.to(device) for column in _columns(self)))


def _columns(rows: Rows) -> list[Tensor]:
    return [getattr(rows, field.name) for field in fields(Rows)]


def best(rows: Rows, k: int) -> Rows:
    """Return the best `k` rows of each feature, ordered by feature and rank."""
    order = best_first(rows.feature, rows.value, rows.context)
    return rows.select(order[ranks(rows.feature[order]) < k])


def ranks(feature: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the rank of each row among its feature's; `feature` is ascending."""
    place = torch.arange(feature.numel(), device=feature.device)
    return place - torch.searchsorted(feature, feature)


class TopK(FeatureStatistic):
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

    STATE: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Rows))

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        window: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.k = k
        self.before, self.after = window
        self._kept = Rows.none(device)
        self._pending: list[Rows] = []
        self._n_pending = 0
        self._limit = max(MIN_BUFFER, k * d_sae)
        self._bound = torch.zeros(d_sae, dtype=torch.float32, device=device)

    def update(self, batch: Activations) -> "TopK":
        """Buffer the peaks of `batch` that could enter."""
        peaks = batch.peaks
        # Equal values enter too: their context may be an earlier one.
        enters = torch.nonzero(peaks.value >= self._bound[peaks.feature]).squeeze(1)
        if enters.numel():
            self._pending.append(self._capture(batch, peaks.select(enters)))
            self._n_pending += enters.numel()
        if self._n_pending > self._limit:
            self._settle()
        return self

    def _capture(self, batch: Activations, peaks: Peaks) -> Rows:
        n = peaks.cell.numel()
        owner = torch.full(
            (batch.n_cells,), -1, dtype=torch.int64, device=peaks.cell.device
        )
        owner[peaks.cell] = torch.arange(n, device=owner.device)
        owner = owner[batch.cell]
        entry = torch.nonzero(owner >= 0).squeeze(1)
        owner, pos = owner[entry], batch.pos[entry]
        inside = pos - peaks.pos[owner]
        near = torch.nonzero((inside >= -self.before) & (inside <= self.after)).squeeze(1)
        # Rows ascend in the batch, so a stable sort by owner leaves positions ascending.
        near = near[torch.argsort(owner[near], stable=True)]
        owner, entry, pos = owner[near], entry[near], pos[near]
        start = (peaks.pos - self.before).clamp_(min=0)
        local = peaks.context - batch.contexts.first
        return Rows(
            feature=peaks.feature,
            value=peaks.value,
            context=peaks.context,
            pos=peaks.pos,
            token=batch.contexts.tokens[local, peaks.pos].to(torch.int32),
            length=torch.bincount(owner, minlength=n),
            act_off=(pos - start[owner]).to(torch.int32),
            act_val=batch.value[entry],
        )

    def _settle(self) -> None:
        if not self._pending:
            return
        self._kept = best(self.rows(), self.k)
        self._pending, self._n_pending = [], 0
        self._raise_bound()

    def _raise_bound(self) -> None:
        last = torch.nonzero(ranks(self._kept.feature) == self.k - 1).squeeze(1)
        self._bound.zero_()
        self._bound[self._kept.feature[last]] = self._kept.value[last]

    def rows(self) -> Rows:
        """Return what is kept and what is buffered, unordered."""
        return Rows.joined([self._kept, *self._pending])

    def merge(self, other: "TopK") -> "TopK":
        """Take in the examples of `other`; its buffered peaks are read, not emptied."""
        self._pending.append(other.rows().to(self._bound.device))
        self._settle()
        return self

    def compute(self) -> Examples:
        """Return the examples, ordered by feature and rank."""
        self._settle()
        kept = self._kept.to(torch.device("cpu"))
        pos = kept.pos.numpy()
        offsets = np.zeros(pos.size + 1, dtype=np.int64)
        np.cumsum(kept.length.numpy(), out=offsets[1:])
        return Examples(
            feature=kept.feature.numpy().astype(np.int32),
            group=np.full(pos.size, GROUPS.index("top"), dtype=np.int8),
            rank=ranks(kept.feature).numpy().astype(np.int16),
            context=kept.context.numpy().copy(),
            pos=pos.astype(np.int32),
            start=np.maximum(pos - self.before, 0).astype(np.int32),
            act=kept.value.numpy().copy(),
            peak_token=kept.token.numpy().copy(),
            offsets=offsets,
            act_off=kept.act_off.numpy().copy(),
            act_val=kept.act_val.numpy().copy(),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept examples and their windows; the buffer is sorted in first."""
        self._settle()
        return dict(zip(self.STATE, _columns(self._kept), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the examples by a copy of those in `state`."""
        rows = Rows(*(state[name].detach().clone() for name in self.STATE))
        self._kept = rows.to(self._bound.device)
        self._pending, self._n_pending = [], 0
        self._raise_bound()
