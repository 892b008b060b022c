"""The list of features in the kernel: the answer to one SELECT, shown by windows of rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from extraction_kit.catalog.listing import LABEL, Listing
from extraction_kit.catalog.reading import texts_of
from extraction_kit.errors import BadQuery
from extraction_kit.widgets import payload, words
from extraction_kit.widgets.browsed import Browsed

Said = tuple[str | None, str | None]
NOTHING_SAID: Said = (None, None)

MAX_ROWS = 400
"""Rows of one answer to the page."""


class FeatureList:
    """The features that a `Listing` gives, in its order.

    Parameters
    ----------
    browsed : Browsed
        Whose features.
    listing : Listing
        Which of them.
    peaks : ndarray int32 [d_sae]
        What `peak_tokens` returns.

    Raises
    ------
    BadQuery
        The features have no labels and the listing asks for them.
    """

    def __init__(self, browsed: Browsed, listing: Listing, peaks: np.ndarray) -> None:
        self.sql = listing.sql(browsed.names, labelled=browsed.labelled)
        self.listing = listing
        self._vocab = browsed.corpus.vocab
        self._peaks = peaks
        self._rows: pa.Table = browsed.ask(self.sql).to_arrow_table().combine_chunks()
        self._features: np.ndarray = self._rows["feature"].to_numpy()
        self._place = np.full(len(peaks), -1, dtype=np.int64)
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
        """Return columns of rows for the page: numbers, labels, tokens of the largest peaks."""
        start, count = max(0, start), min(max(0, count), MAX_ROWS)
        part = self._rows.slice(start, count)
        peaks = self._peaks[self._features[start : start + count]]
        texts = texts_of(self._vocab)
        labels = {LABEL: part[LABEL].to_pylist()} if LABEL in part.column_names else {}
        return {
            "start": start,
            "feature": part["feature"].to_pylist(),
            "density": _short(part["density"]),
            "measure": _short(part[self.listing.measure]),
            "token": [None if peak < 0 else words.tame(texts[peak]) for peak in peaks],
            **{name: payload.safe(column) for name, column in labels.items()},
        }


def peak_tokens(browsed: Browsed, d_sae: int) -> np.ndarray:
    """Return the token id at the largest activation of each feature: int32 [d_sae], -1: none."""
    query = browsed.names["examples"].select(
        "feature, peak_token", "\"group\" = 'top'", "rank = 0"
    )
    found = browsed.ask(query).to_arrow_table()
    peaks = np.full(d_sae, -1, dtype=np.int32)
    peaks[found["feature"].to_numpy()] = found["peak_token"].to_numpy()
    return peaks


def labels_of(browsed: Browsed, features: list[int]) -> Mapping[int, Said]:
    """Return what is said of some features, as it was written: name and description."""
    if not features or not browsed.labelled:
        return {}
    inside = ", ".join(map(str, features))
    query = browsed.names["features"].select(
        f"feature, {LABEL}, description",
        f"feature IN ({inside})",
        f"coalesce({LABEL}, description) IS NOT NULL",
    )
    return {feature: tuple(said) for feature, *said in browsed.ask(query).fetchall()}


def _short(column: pa.ChunkedArray) -> list[float | None]:
    return [None if value is None else payload.short(value) for value in column.to_pylist()]
