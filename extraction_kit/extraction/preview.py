"""What a run has found so far, for whoever watches it: read off the statistics, seldom.

It is made between two tiles, from what they have left in the statistics, and changes nothing
there. The features are drawn once, by a hash of their index among those that can be shown: no
choice of the best ones, and the same ones at every look.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from extraction_kit.corpora import Corpus
from extraction_kit.corpora.vocabulary import read_texts
from extraction_kit.results import DENSE
from extraction_kit.stats import Collection
from extraction_kit.stats.examples import Rows
from extraction_kit.stats.hashing import mixed
from extraction_kit.views import FeatureSoFar, Preview

log = logging.getLogger(__name__)

EVERY_S, AT_LEAST_EVERY_S = 1.0, 60.0
"""Seconds between two previews: at least the first, at most the second."""
SHARE = 0.002
"""Between the two, of the time that previews may take: after one of 10 ms there is none for
5 s."""
N_FEATURES = 4
MIN_CONTEXTS = 5
"""A feature is drawn only if it was active in so many contexts: else its top example is its
only one. One that is dense is not drawn."""
DRAWN_AFTER = 16_384
"""Valid tokens after which features are drawn, or a tenth of a smaller corpus: earlier only
frequent ones could be."""
TOKENS_BEFORE, MAX_TOKENS = 7, 12
"""Of a window: before the peak at most, and in all."""
MAX_TOKEN_CHARS = 16
MAX_BYTES = 12_288
"""A preview as JSON is never larger."""

_SALT = 1  # of the draw: the same in every run of an SAE


@dataclass(frozen=True)
class _Peak:
    """The window that is shown while the maximum stays where it is."""

    context: int
    pos: int
    tokens: tuple[str, ...]
    acts: tuple[float, ...]


class Previews:
    """Makes the previews of one run.

    Parameters
    ----------
    statistics : Collection
        Of the run; only looked at.
    corpus : Corpus
        What is measured.
    clock : callable
        Seconds that only go up.
    """

    figures: dict[str, Any]
    """``l0``, ``fvu``, ``n_dead`` and ``preview`` of `Progress`; empty before the first."""
    drawn: list[int]
    """The features that are shown, for a checkpoint."""

    def __init__(
        self, statistics: Collection, corpus: Corpus, *, clock: Callable[[], float]
    ) -> None:
        self._statistics, self._corpus, self._clock = statistics, corpus, clock
        self._peaks: dict[int, _Peak] = {}
        self._due = -math.inf
        self.figures, self.drawn = {}, []
        try:
            self._texts: list[str] | None = read_texts(corpus.vocab)
        except (OSError, pa.ArrowException) as error:  # a preview must not end a run
            log.warning("no examples are shown while this run extracts: %s", error)
            self._texts = None

    def look(self, *, at_once: bool = False) -> None:
        """Make the figures anew if it is time to, or `at_once`."""
        began = self._clock()
        if began < self._due and not at_once:
            return
        quality = self._statistics.quality.compute()
        n_tokens = int(quality["n_tokens"] or 0)
        self.figures = {
            "l0": quality["l0"],
            "fvu": quality["fvu"],
            "n_dead": self._statistics.n_dead(),
            "preview": Preview(n_tokens=n_tokens, features=self._features(n_tokens)),
        }
        now = self._clock()
        self._due = now + min(max(EVERY_S, (now - began) / SHARE), AT_LEAST_EVERY_S)

    def go_on(self, drawn: object) -> None:
        """Show the features that a checkpoint names, as far as there are such; look at once."""
        n_features = self._statistics.moments.n_active.numel()
        if isinstance(drawn, list):
            known = [one for one in drawn if type(one) is int and 0 <= one < n_features]
            self.drawn = list(dict.fromkeys(known))[:N_FEATURES]
        self.look(at_once=True)

    # --- features -------------------------------------------------------------------------

    def _features(self, n_tokens: int) -> tuple[FeatureSoFar, ...]:
        texts = self._texts
        if texts is None:
            return ()
        if len(self.drawn) < N_FEATURES:
            self._draw(n_tokens)
        if not self.drawn:
            return ()
        chosen = torch.tensor(self.drawn, device=self._statistics.device)
        maximum, moments = self._statistics.maximum, self._statistics.moments
        columns = (maximum.max_act, maximum.max_context, maximum.max_pos, moments.n_active)
        found = (column[chosen].tolist() for column in columns)
        rows = zip(self.drawn, *found, strict=True)
        places = [row for row in rows if row[2] >= 0]
        try:
            self._read([(one, context, pos) for one, _, context, pos, _ in places], texts)
        except (OSError, pa.ArrowException) as error:  # as above
            log.warning("a preview has no examples: %s", error)
            return ()
        return tuple(
            FeatureSoFar(
                feature=feature,
                density=n_active / n_tokens,
                max_act=act,
                tokens=self._peaks[feature].tokens,
                acts=self._peaks[feature].acts,
            )
            for feature, act, _, _, n_active in places
        )

    def _draw(self, n_tokens: int) -> None:
        """Fill up the features that are shown; who was drawn stays."""
        if n_tokens < min(DRAWN_AFTER, self._corpus.n_tokens // 10):
            return
        moments = self._statistics.moments
        fits = (moments.n_contexts >= MIN_CONTEXTS) & (moments.n_active <= DENSE * n_tokens)
        fits[self.drawn] = False
        index = torch.nonzero(fits).squeeze(1)
        first = torch.argsort(mixed(_SALT, index))[: N_FEATURES - len(self.drawn)]
        self.drawn += index[first].tolist()

    def _read(self, places: Sequence[tuple[int, int, int]], texts: Sequence[str]) -> None:
        """Read the windows of the maxima that have moved."""
        moved = [
            (feature, context, pos)
            for feature, context, pos in places
            if (known := self._peaks.get(feature)) is None
            or (known.context, known.pos) != (context, pos)
        ]
        if not moved:
            return
        device = self._statistics.device
        feature = torch.tensor([feature for feature, _, _ in moved], device=device)
        context = torch.tensor([context for _, context, _ in moved], device=device)
        rows = self._statistics.topk.best(feature, context).to(torch.device("cpu"))
        for row in range(rows.n):
            one = rows.select(torch.tensor([row]))
            self._peaks[int(one.feature)] = self._peak(one, texts)

    def _peak(self, row: Rows, texts: Sequence[str]) -> _Peak:
        """Return the window around the peak of one row, its texts cut and free of NUL."""
        before, after = self._statistics.sizes.window
        context, pos = int(row.context), int(row.pos)
        start = pos - min(before, TOKENS_BEFORE, pos)
        end = min(pos + after + 1, start + MAX_TOKENS)
        tokens = self._corpus.tokens_at(context)[start:end]
        acts = np.zeros(tokens.size, dtype=np.float32)
        at = _numpy(row.act_off) + max(pos - before, 0) - start
        inside = (at >= 0) & (at < tokens.size)
        acts[at[inside]] = _numpy(row.act_val)[inside]
        shown = (texts[token] if token < len(texts) else "" for token in tokens.tolist())
        return _Peak(context, pos, tuple(map(_short, shown)), tuple(acts.tolist()))


def _numpy(tensor: Tensor) -> np.ndarray:
    found: np.ndarray = tensor.numpy()
    return found


def _short(text: str) -> str:
    text = text.replace("\0", "␀")  # which no JSON of PostgreSQL may hold
    return text if len(text) <= MAX_TOKEN_CHARS else text[: MAX_TOKEN_CHARS - 1] + "…"
