"""Everything known of one feature, as the JSON values that page and static HTML show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from extraction_kit.catalog.asking import manifest_of
from extraction_kit.catalog.listing import MEASURES, NOTHING_SAID
from extraction_kit.catalog.reading import why_absent
from extraction_kit.catalog.sorted_file import published
from extraction_kit.catalog.tables import (
    EXAMPLES,
    FEATURES,
    HISTOGRAMS,
    LOGITS,
    NEIGHBOURS,
    TOKENS,
    Table,
)
from extraction_kit.catalog.texts import texts_of
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.errors import BadQuery, ResultsDamaged
from extraction_kit.results import GROUPS, KINDS, SIGNS, feature_number
from extraction_kit.widgets import payload, words
from extraction_kit.widgets.browsed import Browsed

_READ = (FEATURES, HISTOGRAMS, EXAMPLES, LOGITS, NEIGHBOURS, TOKENS)

Page = dict[str, Any]


class FeaturePages:
    """Pages of the features of one result; usable from several threads.

    Parameters
    ----------
    browsed : Browsed
        The result.

    Raises
    ------
    ResultsDamaged
        A file is missing or cannot be read.
    BadQuery
        Another release wrote it.
    """

    def __init__(self, browsed: Browsed) -> None:
        self._browsed = browsed
        manifest = _manifest(browsed)
        self._files = {
            table.name: published(browsed.folder / table.file) for table in _READ
        }
        self._after = int(manifest["config"]["window"][1])
        self._absent = {
            "logits": why_absent(browsed.folder, LOGITS),
            "tokens": why_absent(browsed.folder, TOKENS),
            **{kind: why_absent(browsed.folder, NEIGHBOURS, kind) for kind in KINDS},
        }
        self.d_sae = self._files[FEATURES.name].n_rows

    def number(self, feature: object) -> int:
        """Return the index of a feature.

        Raises
        ------
        UnknownFeature
            It is outside the SAE.
        """
        return feature_number(feature, self.d_sae)

    def check_group(self, group: object) -> None:
        """Raise `BadQuery` unless `group` is one of `results.GROUPS`."""
        if group not in GROUPS:
            msg = f"group={group!r}: one of {', '.join(map(repr, GROUPS))} is allowed"
            raise BadQuery(msg)

    def page(self, feature: int, group: str = "top") -> Page:
        """Return all of a feature, with its examples of one group.

        Returns
        -------
        dict
            ``feature``, ``label``, ``description``, ``dead``, ``stats`` (column to number or
            None), ``hist`` (``first`` bin and ``counts``), ``groups`` (name to number of
            examples), ``group``, ``examples`` (see :meth:`examples`), ``logits`` (sign to rows
            of text and value), ``similar`` and ``partners`` (rows of feature, value, label),
            ``tokens`` (rows of text, n_active, mean_act), ``absent`` (what is not there to the
            reason).

        Raises
        ------
        UnknownFeature, BadQuery, ResultsDamaged
            There is no such feature or group, or a file cannot be read.
        """
        found = self._rows(FEATURES, feature).to_pylist()[0]
        examples = self._rows(EXAMPLES, feature)
        names = examples["group"].to_pylist()
        return {
            "feature": feature,
            "dead": found["dead"],
            "stats": {name: payload.safe(found[name]) for name in MEASURES},
            "hist": _trimmed(self._rows(HISTOGRAMS, feature)["hist"][0].values.to_numpy()),
            "groups": {name: names.count(name) for name in GROUPS},
            "group": group,
            "examples": self._examples(examples, group, whole=False),
            **self._tables(feature),
            "absent": {name: why for name, why in self._absent.items() if why is not None},
        }

    def examples(self, feature: int, group: str, *, whole: bool = False) -> list[Page]:
        """Return the examples of one group, by rank.

        Parameters
        ----------
        feature : int
            Whose.
        group : str
            One of `results.GROUPS`.
        whole : bool
            Whether ``before`` and ``after`` hold the rest of the context.

        Returns
        -------
        list of dict
            ``act``, ``context``, ``pos``, ``held_out``; ``tokens`` and ``acts`` of the
            window, ``peak`` its index of the peak; ``before`` and ``after``: the texts of
            the tokens around it, where activations are not kept.
        """
        return self._examples(self._rows(EXAMPLES, feature), group, whole=whole)

    def _rows(self, table: Table, feature: int) -> pa.Table:
        return self._files[table.name].rows(feature)

    def _examples(self, rows: pa.Table, group: str, *, whole: bool) -> list[Page]:
        self.check_group(group)
        chosen = [row for row in rows.to_pylist() if row["group"] == group]
        tokens_of = self._contexts({row["context"] for row in chosen})
        texts = texts_of(self._browsed.corpus.vocab)
        return [
            self._example(row, tokens_of[row["context"]], texts, whole=whole)
            for row in chosen
        ]

    def _contexts(self, numbers: set[int]) -> dict[int, np.ndarray]:
        if not numbers:
            return {}
        corpus, wanted = self._browsed.corpus, np.array(sorted(numbers))
        if wanted[-1] >= corpus.n_contexts:
            raise ResultsDamaged(
                f"{corpus.path} lacks context {wanted[-1]}: it is not the corpus of "
                f"{self._browsed.folder}"
            )
        batch = corpus.read_at(wanted, corpus.context_size)
        rows = zip(wanted.tolist(), batch.tokens, batch.present, strict=True)
        return {number: tokens[present] for number, tokens, present in rows}

    def _example(
        self, row: Page, ids: np.ndarray, texts: Sequence[str], *, whole: bool
    ) -> Page:
        begin, end = row["start"], row["pos"] + self._after + 1
        shown = [words.tame(texts[token]) for token in ids.tolist()]
        acts = [0.0] * len(shown[begin:end])
        for offset, value in zip(row["act_off"], row["act_val"], strict=True):
            acts[offset] = payload.short(value)
        return {
            "act": payload.short(row["act"]),
            "context": row["context"],
            "pos": row["pos"],
            "held_out": row["held_out"],
            "peak": row["pos"] - begin,
            "tokens": shown[begin:end],
            "acts": acts,
            "before": shown[:begin] if whole else [],
            "after": shown[end:] if whole else [],
        }

    def _tables(self, feature: int) -> Page:
        texts = texts_of(self._browsed.corpus.vocab)
        logits = self._rows(LOGITS, feature).to_pylist()
        tokens = self._rows(TOKENS, feature).to_pylist()
        near = self._rows(NEIGHBOURS, feature).to_pylist()
        others = sorted({row["other"] for row in near})
        labels = self._browsed.labels([feature, *others])

        said = {
            one: [payload.safe(text) for text in labels.get(one, NOTHING_SAID)]
            for one in (feature, *others)
        }

        def like(kind: str) -> list[list[Any]]:
            return [
                [row["other"], payload.short(row["value"]), said[row["other"]][0]]
                for row in near
                if row["kind"] == kind
            ]

        return {
            "label": said[feature][0],
            "description": said[feature][1],
            "logits": {
                sign: [
                    [words.tame(texts[row["token"]]), payload.short(row["value"])]
                    for row in logits
                    if row["sign"] == sign
                ]
                for sign in SIGNS
            },
            "similar": like("decoder"),
            "partners": like("coactivation"),
            "tokens": [
                [
                    words.tame(texts[row["token"]]),
                    row["n_active"],
                    payload.short(row["mean_act"]),
                ]
                for row in tokens
            ],
        }


def _manifest(browsed: Browsed) -> Mapping[str, Any]:
    manifest = manifest_of(browsed.folder)
    if manifest["format"] != STATISTICS_FORMAT:
        raise BadQuery(
            f"the run in {browsed.folder} was written in format {manifest['format']} by another "
            f"release; this one browses format {STATISTICS_FORMAT}: launch it again with the "
            "next generation="
        )
    return manifest


def _trimmed(counts: np.ndarray) -> Page:
    """Return the bins of a histogram from the first to the last that counts something."""
    used = np.flatnonzero(counts)
    if not used.size:
        return {"first": 0, "counts": []}
    first, last = int(used[0]), int(used[-1])
    return {"first": first, "counts": counts[first : last + 1].tolist()}
