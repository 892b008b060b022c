"""In which order and shape the contexts of a corpus go through the model.

Contexts of like length go together, so that little padding is computed: a context of n tokens
stands in a tile that is as long as its bucket, n rounded up to an eighth of the context size.
The shape of a tile depends on nothing but that length, so that a context is computed in the
same shape whatever stands beside it, and wherever the work was interrupted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

LENGTHS = 8
"""Lengths of tiles between 0 and the context size."""
WINDOW_TOKENS = 2**21
"""Contexts are put in order within windows of about so many tokens, which are held."""


@dataclass(frozen=True)
class TilePlan:
    """Contexts that are computed together."""

    contexts: Int64[np.ndarray, " context"]
    """Their numbers in the corpus, ascending."""
    rows: int
    """Contexts that the tile has room for; the last of a kind is filled up with padding."""
    length: int
    """Tokens of each."""


class ReadingOrder:
    """The tiles of a corpus, in the order in which they are computed.

    Parameters
    ----------
    lengths : ndarray int [context]
        Tokens of each context.
    context_size : int
        The longest that a context may be.
    tile_tokens : int
        Tokens of a tile at most, but at least one context.
    """

    def __init__(self, lengths: np.ndarray, *, context_size: int, tile_tokens: int) -> None:
        step = -(-context_size // LENGTHS)
        rounded = np.maximum(-(-lengths.astype(np.int64) // step), 1) * step
        self._length = np.minimum(rounded, context_size)
        self._tile_tokens = tile_tokens
        self._window = max(1, WINDOW_TOKENS // context_size)

    def __iter__(self) -> Iterator[TilePlan]:
        """Yield all tiles: window by window, the longest contexts first."""
        for start in range(0, self._length.size, self._window):
            window = self._length[start : start + self._window]
            for length in np.unique(window)[::-1].tolist():
                contexts = start + np.flatnonzero(window == length)
                rows = max(1, self._tile_tokens // length)
                for first in range(0, contexts.size, rows):
                    yield TilePlan(contexts[first : first + rows], rows, length)

    def after(self, n_done: int) -> Iterator[TilePlan]:
        """Yield the tiles that are left once the first `n_done` contexts are computed.

        Raises
        ------
        ValueError
            No tile ends there.
        """
        n_passed = 0
        for plan in self:
            if n_passed >= n_done:
                yield plan
                continue
            n_passed += plan.contexts.size
            if n_passed > n_done:
                msg = f"no tile ends after {n_done} contexts"
                raise ValueError(msg)
