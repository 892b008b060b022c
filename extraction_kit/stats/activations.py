"""Sparse activations of a few whole contexts: what every statistic is fed with."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Integer, Shaped
from torch import Tensor

POSITION_BITS = 20
"""Bits of a position in a packed key: contexts of up to 1 048 576 tokens."""
_LAST_POSITION = (1 << POSITION_BITS) - 1


def flat_nonzero(mask: Tensor) -> Tensor:
    """Return the flat indices (int64, ascending) at which `mask` is nonzero.

    NumPy's scan is four times faster than torch's on the CPU.
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask.reshape(-1)).squeeze(1)


def picked(
    column: Shaped[Tensor, " m"], index: Integer[Tensor, " n"]
) -> Shaped[Tensor, " n"]:
    """Return ``column[index]``, which torch finds four times as fast under this name."""
    return column.index_select(0, index)


def starts(*columns: Shaped[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Return which rows differ from the row before them in any column; the first one does."""
    one, *others = columns
    found = torch.ones_like(one, dtype=torch.bool)
    torch.ne(one[1:], one[:-1], out=found[1:])
    for column in others:
        found[1:] |= column[1:] != column[:-1]
    return found


def spans(
    begin: Int64[Tensor, " span"], length: Int64[Tensor, " span"]
) -> Int64[Tensor, " entry"]:
    """Return ``begin[0], begin[0] + 1, ...``, `length` of each, one span after another."""
    shift = begin - (torch.cumsum(length, 0) - length)
    entry = torch.repeat_interleave(shift, length)
    entry += torch.arange(entry.numel(), device=entry.device)
    return entry


def ordered_bits(value: Float32[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return integers that order like the positive floats `value`."""
    return value.view(torch.int32).to(torch.int64)


@dataclass(frozen=True)
class Contexts:
    """Tokens of some contexts, and which of them the statistics count.

    Parameters
    ----------
    number : Tensor int64 [context]
        Index of each context in the corpus.
    tokens : Tensor int64 [context pos]
        Token ids; anything where there is padding.
    valid : Tensor bool [context pos]
        False on padding and on masked tokens.
    masked : ndarray int64 [row], optional
        Where `valid`, flattened, is False, if it is known already; ascending.
    """

    number: Int64[Tensor, " context"]
    tokens: Int64[Tensor, "context pos"]
    valid: Bool[Tensor, "context pos"]
    masked: np.ndarray | None = None

    @cached_property
    def masked_rows(self) -> np.ndarray:
        """Where `valid`, flattened, is False: int64 [row], ascending, on the CPU."""
        if self.masked is not None:
            return self.masked
        return np.flatnonzero(~self.valid.cpu().numpy())

    @classmethod
    def consecutive(cls, first: int, tokens: Tensor, valid: Tensor) -> "Contexts":
        """Return contexts that follow one another from number `first` on."""
        number = torch.arange(first, first + tokens.shape[0], device=tokens.device)
        return cls(number, tokens, valid)

    @property
    def n(self) -> int:
        """Number of contexts."""
        return self.tokens.shape[0]

    @property
    def size(self) -> int:
        """Tokens per context."""
        return self.tokens.shape[1]


@dataclass(frozen=True)
class Peaks:
    """The largest activation of each feature in each context in which it is active.

    Ordered by context, then feature. Of equal values the earliest position counts. The pairs
    of a peak's cell are ``length`` ones from ``begin`` on in `Activations.by_cell`.
    """

    begin: Int64[Tensor, " peak"]
    length: Int64[Tensor, " peak"]
    feature: Int64[Tensor, " peak"]
    local: Int64[Tensor, " peak"]  # place of the context in its batch
    context: Int64[Tensor, " peak"]  # index in the corpus
    pos: Int64[Tensor, " peak"]
    value: Float32[Tensor, " peak"]

    def select(self, index: Int64[Tensor, " kept"]) -> "Peaks":
        """Return the peaks at `index`."""
        return Peaks(**{name: picked(column, index) for name, column in vars(self).items()})


@dataclass(frozen=True)
class Activations:
    """Active (token, feature) pairs of some contexts, for a range of features.

    Valid tokens only, each pair once, ordered by row. All contexts are whole: a (context,
    feature) pair is never split over two batches.

    Parameters
    ----------
    contexts : Contexts
        Where the rows are.
    row : Tensor int64 [active]
        place of the context in the batch * tokens per context + position, ascending.
    feature : Tensor int64 [active]
        Feature index, from `first_feature` to `first_feature` + `n_features` - 1.
    value : Tensor float32 [active]
        Activation, above 0.
    first_feature, n_features : int
        The tile of features that this batch is about.
    """

    contexts: Contexts
    row: Int64[Tensor, " active"]
    feature: Int64[Tensor, " active"]
    value: Float32[Tensor, " active"]
    first_feature: int
    n_features: int

    def to(self, device: torch.device) -> "Activations":
        """Return the same on `device`."""
        if self.row.device == device:
            return self
        there = Contexts(
            self.contexts.number.to(device),
            self.contexts.tokens.to(device),
            self.contexts.valid.to(device),
            self.contexts.masked,
        )
        return Activations(
            there,
            self.row.to(device),
            self.feature.to(device),
            self.value.to(device),
            self.first_feature,
            self.n_features,
        )

    @property
    def n_active(self) -> int:
        """Number of active pairs."""
        return self.row.shape[0]

    @cached_property
    def context(self) -> Tensor:
        """Place of each pair's context in the batch: int64 [active]."""
        return torch.div(self.row, self.contexts.size, rounding_mode="floor")

    @cached_property
    def pos(self) -> Tensor:
        """Position of each pair in its context: int64 [active]."""
        return self.row - self.context * self.contexts.size

    @cached_property
    def cell(self) -> Tensor:
        """(context, column) of each pair as one index: int64 [active]."""
        return self.context * self.n_features + (self.feature - self.first_feature)

    @cached_property
    def by_cell(self) -> Tensor:
        """The pairs ordered by cell, then position: int64 [active]."""
        narrow = self.contexts.n * self.n_features < 2**31  # twice as fast
        return torch.argsort(
            self.cell.to(torch.int32) if narrow else self.cell, stable=True
        )

    @cached_property
    def peaks(self) -> Peaks:
        """One peak per (context, feature) that is active."""
        order = self.by_cell
        cell = picked(self.cell, order)
        first = starts(cell)
        begin = flat_nonzero(first)
        cell = picked(cell, begin)
        # One integer maximum decides by value, then by earliest position: deterministic
        # on every device, unlike a float argmax.
        key = (ordered_bits(self.value) << POSITION_BITS) | (_LAST_POSITION - self.pos)
        best = torch.zeros_like(begin)
        best.scatter_reduce_(0, torch.cumsum(first, 0) - 1, picked(key, order), "amax")
        local = torch.div(cell, self.n_features, rounding_mode="floor")
        return Peaks(
            begin=begin,
            length=torch.diff(begin, append=begin.new_full((1,), order.numel())),
            feature=cell - local * self.n_features + self.first_feature,
            local=local,
            context=picked(self.contexts.number, local),
            pos=_LAST_POSITION - (best & _LAST_POSITION),
            value=(best >> POSITION_BITS).to(torch.int32).view(torch.float32),
        )
