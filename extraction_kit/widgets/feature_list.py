"""The list of features in the kernel: the answer to one SELECT, shown by windows of rows."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from extraction_kit.catalog.listing import CHANGE, LABEL, Listing
from extraction_kit.catalog.texts import texts_of
from extraction_kit.errors import BadQuery
from extraction_kit.widgets import payload, words
from extraction_kit.widgets.browsed import Browsed

MAX_ROWS = 400
"""Rows of one answer to the page."""


@dataclass(frozen=True, kw_only=True)
class PeakTokens:
    """The token at the largest activation of each feature."""

    tokens: np.ndarray
    """Token ids: int32 [d_sae], -1: none."""
    vocab: Path
    """The file with their texts."""
    instead: Callable[[np.ndarray], list[str | None]] = lambda features: (
        [None] * len(features)
    )
    """The texts for features that have none."""

    def texts(self, features: np.ndarray) -> list[str | None]:
        """Return the texts for some features, as a page may show them."""
        texts, tokens = texts_of(self.vocab), self.tokens[features]
        found = [words.tame(texts[token]) if token >= 0 else None for token in tokens]
        none = np.flatnonzero(tokens < 0)
        for at, text in zip(none, self.instead(features[none]), strict=True):
            found[at] = text
        return found


class FeatureList:
    """The features that a `Listing` gives, in its order.

    Parameters
    ----------
    browsed : Browsed
        Whose features.
    listing : Listing
        Which of them.
    peaks : PeakTokens
        What `peak_tokens` returns.
    comparing : collection of str
        Which of `catalog.listing.COMPARING` the features have.

    Raises
    ------
    BadQuery
        The listing asks for labels or for a comparison, and there is none.
    """

    def __init__(
        self,
        browsed: Browsed,
        listing: Listing,
        peaks: PeakTokens,
        *,
        comparing: Collection[str] = (),
    ) -> None:
        self.sql = listing.sql(
            browsed.names, labelled=browsed.labelled, comparing=comparing
        )
        self.listing = listing
        self._peaks = peaks
        self._rows: pa.Table = browsed.ask(self.sql).to_arrow_table().combine_chunks()
        self._features: np.ndarray = self._rows["feature"].to_numpy()
        self._place = np.full(len(peaks.tokens), -1, dtype=np.int64)
        self._place[self._features] = np.arange(len(self._features))

    def __len__(self) -> int:
        """Return the number of features in the list."""
        return len(self._features)

    def place(self, feature: int) -> int:
        """Return the row of a feature, -1 if it is not in the list."""
        return int(self._place[feature])

    def feature(self, row: int) -> int:
        """Return the feature of a row.

        Raises
        ------
        BadQuery
            The list has no such row.
        """
        if not 0 <= row < len(self):
            raise BadQuery(f"row {row}: the list has {len(self)}")
        return int(self._features[row])

    def rows(self, start: int, count: int) -> dict[str, Any]:
        """Return columns of rows for the page: numbers, labels, tokens of the largest peaks.

        Of a comparison also ``feature_b``, ``density_b`` and ``log2_ratio``.
        """
        start, count = max(0, start), min(max(0, count), MAX_ROWS)
        part = self._rows.slice(start, count)
        labels = {LABEL: part[LABEL].to_pylist()} if LABEL in part.column_names else {}
        both = {}
        if CHANGE in part.column_names:
            both = {name: _short(part[name]) for name in ("density_b", CHANGE)}
            both["feature_b"] = part["feature_b"].to_pylist()
        return {
            "start": start,
            "feature": part["feature"].to_pylist(),
            "density": _short(part["density"]),
            "measure": _short(part[self.listing.measure]),
            "token": self._peaks.texts(self._features[start : start + count]),
            **both,
            **{name: payload.safe(column) for name, column in labels.items()},
        }


def peak_tokens(browsed: Browsed, d_sae: int) -> PeakTokens:
    """Return the token at the largest activation of each feature."""
    query = browsed.names["examples"].select(
        "feature, peak_token", "\"group\" = 'top'", "rank = 0"
    )
    found = browsed.ask(query).to_arrow_table()
    peaks = np.full(d_sae, -1, dtype=np.int32)
    peaks[found["feature"].to_numpy()] = found["peak_token"].to_numpy()
    return PeakTokens(tokens=peaks, vocab=browsed.corpus.vocab)


def _short(column: pa.ChunkedArray) -> list[float | None]:
    return [None if value is None else payload.short(value) for value in column.to_pylist()]
