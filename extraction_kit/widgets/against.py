"""The other result of a comparison, as the feature browser reads it beside the first one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from extraction_kit.catalog.asking import readable
from extraction_kit.catalog.comparing import beside
from extraction_kit.catalog.listing import COMPARING, Named, Names
from extraction_kit.catalog.relations import scan
from extraction_kit.catalog.tables import EXAMPLES, FEATURES
from extraction_kit.comparison import Pairing
from extraction_kit.views import short
from extraction_kit.widgets.browsed import Browsed
from extraction_kit.widgets.feature_list import PeakTokens, peak_tokens
from extraction_kit.widgets.feature_page import FeaturePages, Page

_WHY = {"cosine", "mutual"}


@dataclass(frozen=True, kw_only=True)
class Against:
    """A second result, and which of its features belongs to each feature of the first.

    Raises
    ------
    ResultsDamaged, BadQuery
        A file of it is missing or not the published one, or another release wrote it.
    """

    browsed: Browsed
    pairing: Pairing
    _pages: FeaturePages = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Open its files."""
        object.__setattr__(self, "_pages", FeaturePages(self.browsed))

    @property
    def measures(self) -> Mapping[str, str]:
        """What a list may show and sort by beside the measures of the first: to meaning."""
        left_out = {"cosine"} if self.pairing.file is None else set()
        return {name: says for name, says in COMPARING.items() if name not in left_out}

    @cached_property
    def pairs(self) -> Mapping[str, np.ndarray]:
        """``feature_b`` int32 [d_sae], ``cosine``, ``mutual`` by feature; what there is."""
        if self.pairing.file is None:
            return {}
        with readable(self.pairing.file):
            found = pq.read_table(self.pairing.file)
        return {name: found[name].to_numpy() for name in found.column_names}

    def beside(self, first: Browsed) -> Browsed:
        """Return `first` with the features of the other result beside its own, in SQL."""
        names = self._names(first)
        features = beside(first.names["features"], names["features"], self.pairing.file)
        added = {f"{name}_b": names[name] for name in ("examples", "vocab")}
        return replace(first, names={**first.names, "features": features, **added})

    def _names(self, first: Browsed) -> Names:
        """Return the other tables as the place answers that is asked of the first."""
        if first.ask == self.browsed.ask:  # one workspace
            return self.browsed.names
        folder = self.browsed.folder
        return {
            "features": Named(scan([folder / FEATURES.file])),
            "examples": Named(scan([folder / EXAMPLES.file])),
            "vocab": Named(scan([self.browsed.corpus.vocab])),
        }

    def titles(self, first: Browsed) -> tuple[str, str]:
        """Return what the two are called; where that is the same, with what tells them apart."""
        if first.title != self.browsed.title:
            return first.title, self.browsed.title
        marks = zip(_marks(first), _marks(self.browsed), strict=True)
        abouts = zip(first.about, self.browsed.about, strict=False)
        here, there = next(((a, b) for a, b in (*abouts, *marks) if a != b), ("A", "B"))
        return f"{first.title} · {here}", f"{first.title} · {there}"

    def facts(self, first: Browsed) -> dict[str, Any]:
        """Return what never changes, for the page and for static HTML.

        Returns
        -------
        dict
            ``names`` of both; ``about``, ``d_sae`` and ``n_tokens`` of the other; ``one_sae``:
            activations have one unit; ``one_lens``: logits and neighbours are the same;
            ``matched``: the features that belong together may have other numbers.
        """
        one_sae, one_model = self.pairing.one_sae, self.pairing.one_model
        return {
            "names": list(self.titles(first)),
            "about": list(self.browsed.about),
            "d_sae": self._pages.d_sae,
            "n_tokens": self.browsed.corpus.n_tokens,
            "one_sae": one_sae,
            "one_lens": one_sae and one_model and self.pairing.file is None,
            "matched": "mutual" in self.pairs,
        }

    def peaks(self, features: np.ndarray) -> list[str | None]:
        """Return the tokens at the largest peaks of what belongs to `features`."""
        return self._peaks.texts(self._others(features))

    def page(self, feature: int, group: str) -> Page:
        """Return the page of what belongs to `feature`, with ``cosine`` and ``mutual``."""
        found = {
            name: self.pairs[name][feature].item() for name in _WHY & self.pairs.keys()
        }
        return self._pages.page(self._other(feature), group) | found

    def examples(self, feature: int, group: str, *, whole: bool) -> list[Page]:
        """Return the examples of what belongs to `feature`."""
        return self._pages.examples(self._other(feature), group, whole=whole)

    @cached_property
    def _peaks(self) -> PeakTokens:
        return peak_tokens(self.browsed, self._pages.d_sae)

    def _others(self, features: np.ndarray) -> np.ndarray:
        return self.pairs["feature_b"][features] if self.pairs else features

    def _other(self, feature: int) -> int:
        return int(self._others(np.array([feature]))[0])


def _marks(browsed: Browsed) -> tuple[str, ...]:
    """Return what may tell a result from one of the same name, the plainest first."""
    corpus = browsed.corpus
    tokens = f"{corpus.n_tokens:,} tokens"
    return short(corpus.source), tokens, corpus.digest[:8], browsed.key
