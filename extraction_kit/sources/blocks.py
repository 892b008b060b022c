"""Pre-activations of some rows and features, and where they may be active."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from extraction_kit.sources.devices import sent
from extraction_kit.sources.lanes import Lanes, Mark
from extraction_kit.stats import Contexts
from extraction_kit.stats.activations import flat_nonzero, picked


@dataclass
class Block:
    """Memory of a piece of the encoder's work; the next but one uses it again."""

    pre: Float[Tensor, "row feature"]
    mask: Bool[Tensor, "row feature"]
    slot: "_Slot"
    lanes: Lanes
    tile: int
    first_row: int
    marked: Mark = None
    """Behind what filled it."""

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, column and value of the marked entries; the memory is free then."""
        index = flat_nonzero(self.mask)
        row = torch.div(index, self.mask.shape[1], rounding_mode="floor")
        column = index - row * self.mask.shape[1]
        value = picked(self.pre.view(-1), index)
        self.slot.read = self.lanes.here()
        return row + self.first_row, column, value


@dataclass
class _Slot:
    pre: Tensor
    mask: Tensor
    read: Mark = None


class Blocks:
    """Memory for the blocks of SAEs that take turns.

    Fresh memory would cost more than the scan: page faults on every tile.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self._slots = [
            _Slot(torch.empty(0), torch.empty(0, dtype=torch.bool))
            for _ in range(1 + lanes.ahead)
        ]

    def next(
        self, shape: tuple[int, int], *, like: Tensor, tile: int, first_row: int
    ) -> Block:
        """Return memory for `shape` numbers of the type of `like`, where it is."""
        slot = self._slots.pop(0)
        self._slots.append(slot)
        self.lanes.wait_for(slot.read)
        n, fits = shape[0] * shape[1], slot.pre.dtype is like.dtype
        if slot.pre.numel() < n or slot.pre.device != like.device or not fits:
            slot.pre = torch.empty(n, dtype=like.dtype, device=like.device)
            slot.mask = torch.empty(n, dtype=torch.bool, device=like.device)
        return Block(
            slot.pre[:n].view(shape),
            slot.mask[:n].view(shape),
            slot=slot,
            lanes=self.lanes,
            tile=tile,
            first_row=first_row,
        )


class Masked:
    """The rows of some contexts that do not count.

    Which they are the CPU knows, so that no block has to ask the GPU for their number.
    """

    def __init__(self, contexts: Contexts, device: torch.device) -> None:
        self._rows = contexts.masked_rows
        self._there = sent(self._rows, device)

    def between(self, start: int, stop: int) -> Int64[Tensor, " n"] | None:
        """Return those from row `start` to below `stop`, counted from `start`; None for none."""
        first, last = np.searchsorted(self._rows, (start, stop))
        return self._there[first:last] - start if last > first else None
