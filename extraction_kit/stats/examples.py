"""What examples have in common: how rows are captured, kept and handed over.

Peaks that could still be chosen are buffered together with the activations around them, in
the same pass. When the buffer is full it is sorted once and the best of each slot are kept.
What a statistic keeps as a bound is only ever too wide, never too narrow, so that the
choice does not depend on when the buffer was emptied.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from extraction_kit.results import Examples
from extraction_kit.stats.activations import (
    Activations,
    Peaks,
    flat_nonzero,
    picked,
    spans,
    starts,
)
from extraction_kit.stats.statistic import FeatureStatistic

MIN_BUFFER, MAX_BUFFER = 2**18, 2**22
"""Peaks buffered at least and at most before they are sorted: as many as are kept, between
these. The largest buffer takes some 300 MiB."""


@dataclass(frozen=True)
class Rows:
    """Examples with their windows; the window of row i has ``length[i]`` active tokens."""

    feature: Int64[Tensor, " row"]
    value: Float32[Tensor, " row"]
    context: Int64[Tensor, " row"]
    pos: Int64[Tensor, " row"]
    token: Int32[Tensor, " row"]
    identity: Int64[Tensor, " row"]  # rows of a slot that are equal in it are one example
    length: Int64[Tensor, " row"]
    act_off: Int32[Tensor, " entry"]
    act_val: Float32[Tensor, " entry"]

    @classmethod
    def none(cls, device: torch.device | str) -> "Rows":
        """Return no rows at all."""
        wide = torch.zeros(0, dtype=torch.int64, device=device)
        real = torch.zeros(0, dtype=torch.float32, device=device)
        narrow = torch.zeros(0, dtype=torch.int32, device=device)
        return cls(wide, real, wide, wide, narrow, wide, wide, narrow, real)

    @classmethod
    def joined(cls, parts: "Sequence[Rows]") -> "Rows":
        """Return the rows of all `parts`, one part after another."""
        return cls(
            *(torch.cat(column) for column in zip(*map(_columns, parts), strict=True))
        )

    @classmethod
    def captured(
        cls, batch: Activations, peaks: Peaks, window: tuple[int, int], *, identity: Tensor
    ) -> "Rows":
        """Return `peaks` of `batch` with the activations from and to `window` around them."""
        before, after = window
        n = peaks.begin.numel()
        entry = picked(batch.by_cell, spans(peaks.begin, peaks.length))
        owner = torch.repeat_interleave(peaks.length, output_size=entry.numel())
        pos = picked(batch.pos, entry)
        inside = pos - picked(peaks.pos, owner)
        near = flat_nonzero((inside >= -before) & (inside <= after))
        owner, entry, pos = (picked(each, near) for each in (owner, entry, pos))
        start = (peaks.pos - before).clamp_(min=0)
        return cls(
            feature=peaks.feature,
            value=peaks.value,
            context=peaks.context,
            pos=peaks.pos,
            token=batch.contexts.tokens[peaks.local, peaks.pos].to(torch.int32),
            identity=identity,
            length=torch.bincount(owner, minlength=n),
            act_off=(pos - picked(start, owner)).to(torch.int32),
            act_val=picked(batch.value, entry),
        )

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.feature.numel()

    def select(self, index: Int64[Tensor, " kept"]) -> "Rows":
        """Return the rows at `index`, with their windows."""
        begin = torch.cumsum(self.length, 0) - self.length
        entry = spans(picked(begin, index), picked(self.length, index))
        return Rows(
            **{
                name: picked(column, entry if name.startswith("act_") else index)
                for name, column in vars(self).items()
            }
        )

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on `device`."""
        return Rows(*(column.to(device) for column in _columns(self)))


def _columns(rows: Rows) -> list[Tensor]:
    return [getattr(rows, field.name) for field in fields(Rows)]


def ranks(slot: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the rank of each row among its slot's; `slot` is ascending."""
    place = torch.arange(slot.numel(), device=slot.device)
    begin = flat_nonzero(starts(slot))
    length = torch.diff(begin, append=begin.new_full((1,), slot.numel()))
    return place - torch.repeat_interleave(begin, length, output_size=slot.numel())


class ExampleStatistic(FeatureStatistic):
    """Keeps the best `k` rows of each slot, at most one per context and slot.

    A statistic says what its slots are, which rows come first, and which peaks could still
    be among the best.

    Parameters
    ----------
    n_kept : int
        Rows that can be kept in all; the buffer is as large, between its bounds.
    k : int
        Rows kept per slot.
    window : (int, int)
        Tokens (before, after) the peak whose activations of the feature are kept.
    """

    STATE: ClassVar[tuple[str, ...]] = tuple(field.name for field in fields(Rows))

    def __init__(
        self,
        n_kept: int,
        *,
        k: int,
        window: tuple[int, int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.k = k
        self.window = window
        self.device = torch.device(device)
        self._kept = Rows.none(device)
        self._pending: list[Rows] = []
        self._n_pending = 0
        self._limit = min(max(MIN_BUFFER, n_kept), MAX_BUFFER)

    @abstractmethod
    def could_enter(self, peaks: Peaks) -> Int64[Tensor, " index"]:
        """Return which of `peaks` could still be among the best of their slot."""

    @abstractmethod
    def ordered(self, rows: Rows) -> tuple[Int64[Tensor, " index"], Int64[Tensor, " slot"]]:
        """Return indices of the rows that count, by slot and then best first; and slots."""

    @abstractmethod
    def raise_bound(self, kept: Rows) -> None:
        """Take the bound of `could_enter` from what is kept, ordered."""

    @abstractmethod
    def group(self, kept: Rows) -> np.ndarray:
        """Return the group of each row as index into `results.GROUPS`: int8 [row]."""

    def identity(self, batch: Activations, peaks: Peaks) -> Int64[Tensor, " n"]:  # noqa: ARG002 - others look into the batch
        """Return what makes each of `peaks` the same example as another: its context."""
        return peaks.context

    def update(self, batch: Activations) -> "ExampleStatistic":
        """Buffer the peaks of `batch` that could enter."""
        peaks = batch.peaks
        enters = self.could_enter(peaks)
        if enters.numel():
            peaks = peaks.select(enters)
            identity = self.identity(batch, peaks)
            rows = Rows.captured(batch, peaks, self.window, identity=identity)
            self._pending.append(rows)
            self._n_pending += rows.n
        if self._n_pending > self._limit:
            self._settle()
        return self

    def _settle(self) -> None:
        if not self._pending:
            return
        rows = self.rows()
        order, slot = self.ordered(rows)
        self._kept = rows.select(order[ranks(slot) < self.k])
        self._pending, self._n_pending = [], 0
        self.raise_bound(self._kept)

    def rows(self) -> Rows:
        """Return what is kept and what is buffered, unordered."""
        return Rows.joined([self._kept, *self._pending])

    def merge(self, other: "ExampleStatistic") -> "ExampleStatistic":
        """Take in the examples of `other`; its buffered peaks are read, not emptied."""
        self._pending.append(other.rows().to(self.device))
        self._settle()
        return self

    def compute(self) -> Examples:
        """Return the examples, ordered by feature, group and rank."""
        self._settle()
        return examples(self._kept, self.group(self._kept), before=self.window[0])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept examples and their windows; the buffer is sorted in first."""
        self._settle()
        return dict(zip(self.STATE, _columns(self._kept), strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the examples by a copy of those in `state`."""
        rows = Rows(*(state[name].detach().clone() for name in self.STATE))
        self._kept = rows.to(self.device)
        self._pending, self._n_pending = [], 0
        self.raise_bound(self._kept)


def examples(rows: Rows, group: np.ndarray, *, before: int) -> Examples:
    """Return `rows`, ordered by (feature, group) and best first, as examples."""
    there = rows.to(torch.device("cpu"))
    slot = there.feature * np.iinfo(np.int8).max + torch.from_numpy(group.astype(np.int64))
    pos = there.pos.numpy()
    offsets = np.zeros(pos.size + 1, dtype=np.int64)
    np.cumsum(there.length.numpy(), out=offsets[1:])
    return Examples(
        feature=there.feature.numpy().astype(np.int32),
        group=group,
        rank=ranks(slot).numpy().astype(np.int16),
        context=there.context.numpy().copy(),
        pos=pos.astype(np.int32),
        start=np.maximum(pos - before, 0).astype(np.int32),
        act=there.value.numpy().copy(),
        peak_token=there.token.numpy().copy(),
        offsets=offsets,
        act_off=there.act_off.numpy().copy(),
        act_val=there.act_val.numpy().copy(),
    )
