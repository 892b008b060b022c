"""Everything that a run says of many features, some hundred at a time, for exports."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pyarrow as pa

from extraction_kit.catalog.asking import manifest_of, query_of, readable, rows_of
from extraction_kit.catalog.reading import (
    ExampleWindow,
    token_ids_of,
    tokens_after,
    why_absent,
    window_of,
)
from extraction_kit.catalog.relations import scan
from extraction_kit.catalog.sorted_file import d_sae_of
from extraction_kit.catalog.tables import (
    EXAMPLES,
    FEATURES,
    HISTOGRAMS,
    LOGITS,
    NEIGHBOURS,
    VOCAB,
    Table,
)
from extraction_kit.catalog.texts import texts_of
from extraction_kit.errors import BadExport, ResultsDamaged
from extraction_kit.results import GROUPS, SIGNS, feature_number

_AT_ONCE = 256  # features that are in memory at a time


@dataclass(frozen=True, kw_only=True)
class ResultFiles:
    """Where the files of a result are."""

    folder: Path
    """Its Parquet files and manifest."""
    contexts: Path
    """``contexts.parquet`` of its corpus."""
    vocab: Path
    """Token texts of its tokenizer."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the run says of itself.

        Raises
        ------
        ResultsDamaged
            It is missing or torn.
        """
        return manifest_of(self.folder)

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return d_sae_of(self.folder)


@dataclass(frozen=True, kw_only=True)
class FeatureRecord:
    """What a run says of one feature."""

    feature: int
    row: Mapping[str, Any]
    """Its row of ``features``; None where a number is absent."""
    hist: np.ndarray
    """Active tokens per bin of `results.bin_edges`, int64."""
    windows: Mapping[str, Sequence[ExampleWindow]]
    """Examples by group, by rank."""
    logits: Mapping[str, Sequence[tuple[str, float]]] | None
    """Token and value by sign, by rank; None where the run has none."""
    nearest: Sequence[tuple[int, float]] | None
    """The other features with the nearest decoder rows and their cosines; None likewise."""


def chosen(files: ResultFiles, features: Iterable[SupportsIndex] | None) -> list[int]:
    """Return the features that are meant, each once, in the order given; None is all.

    Raises
    ------
    UnknownFeature
        One is outside the SAE.
    BadExport
        It is no list, or an empty one.
    """
    if features is None:
        return list(range(files.d_sae))
    try:
        given = list(features)
    except TypeError:
        raise BadExport(
            f"features={features!r}: a list of features is needed, for example "
            f"features=[{features!r}]; None takes all"
        ) from None
    if not given:
        raise BadExport("features=[] is empty: name some features, or None for all")
    d_sae = files.d_sae
    return list(dict.fromkeys(feature_number(one, d_sae) for one in given))


def records(
    files: ResultFiles, features: Sequence[int], *, groups: Sequence[str] = GROUPS
) -> Iterator[list[FeatureRecord]]:
    """Yield the records of `features` in their order, some at a time.

    Parameters
    ----------
    files : ResultFiles
        What is read.
    features : sequence of int
        As `chosen` returns them.
    groups : sequence of str
        Groups of examples that are read, of `results.GROUPS`.

    Raises
    ------
    ResultsDamaged
        A file is missing or cannot be read.
    """
    for first in range(0, len(features), _AT_ONCE):
        yield _some(files, features[first : first + _AT_ONCE], groups)


def condition(features: Sequence[int]) -> str:
    """Return the SQL that holds for these features."""
    return f"feature IN ({', '.join(map(str, features))})"


def has(files: ResultFiles, table: Table, *kind: str) -> bool:
    """Tell whether the run measured a table, or a kind of its rows."""
    counted = files.manifest["files"].get(table.file, {}).get("rows", 0)
    return bool(counted) and why_absent(files.folder, table, *kind) is None


def active_tokens(files: ResultFiles, features: Sequence[int]) -> dict[str, np.ndarray]:
    """Return every place at which the examples show a feature to be active, each once.

    Returns
    -------
    dict of str to ndarray [place]
        ``feature``, ``context``, ``pos`` (int64), ``act`` (float32), sorted in that order.
    """
    return _arrays(
        files,
        "SELECT DISTINCT feature::BIGINT AS feature, context, pos::BIGINT AS pos, act "  # noqa: S608 - checked values
        "FROM (SELECT feature, context, start + unnest(act_off) AS pos, "
        f"unnest(act_val) AS act FROM {scan([files.folder / EXAMPLES.file])} "
        f"WHERE {condition(features)}) ORDER BY feature, context, pos",
    )


def contexts_of(
    files: ResultFiles, features: Sequence[int]
) -> list[tuple[int, np.ndarray]]:
    """Return number and token ids of each context that the features have an example in."""
    found = rows_of(
        files.folder,
        EXAMPLES,
        "SELECT DISTINCT context, n_tok, tokens FROM "  # noqa: S608 - checked values
        f"(SELECT DISTINCT context FROM {scan([files.folder / EXAMPLES.file])} "
        f"WHERE {condition(features)}) LEFT JOIN {scan([files.contexts])} USING (context) "
        "ORDER BY context",
    )
    return [(row["context"], _ids(files, row)) for row in found]


def n_active(files: ResultFiles, features: Sequence[int]) -> dict[int, int]:
    """Return on how many tokens each feature is active."""
    rows = rows_of(
        files.folder,
        FEATURES,
        f"SELECT feature, n_active FROM {scan([files.folder / FEATURES.file])} "  # noqa: S608 - checked values
        f"WHERE {condition(features)}",
    )
    return {row["feature"]: row["n_active"] for row in rows}


def selected(files: ResultFiles, table: Table, features: Sequence[int]) -> pa.Table:
    """Return the rows of ``features``, ``logits`` (with texts) or ``neighbours``."""
    source = scan([files.folder / table.file])
    if table is LOGITS:
        source = (
            "(SELECT feature, sign, rank, token, text, value "  # noqa: S608 - our own names
            f"FROM {source} LEFT JOIN {scan([files.vocab])} AS {VOCAB.name} "
            "ON token = token_id)"
        )
    order = {"features": "feature", "logits": "feature, sign = 'bottom', rank"}
    keys = order.get(table.name, "feature, kind, rank")
    with readable(files.folder):
        return query_of(
            files.folder,
            table,
            f"FROM {source} WHERE {condition(features)} ORDER BY {keys}",
        ).to_arrow_table()


def _some(
    files: ResultFiles, features: Sequence[int], groups: Sequence[str]
) -> list[FeatureRecord]:
    where = condition(features)
    rows = {row["feature"]: row for row in _table(files, FEATURES, where)}
    hists = {row["feature"]: row["hist"] for row in _table(files, HISTOGRAMS, where)}
    windows = _windows(files, where, groups)
    logits, nearest = _logits(files, features), _nearest(files, where)
    return [
        FeatureRecord(
            feature=feature,
            row=rows[feature],
            hist=np.asarray(hists[feature], dtype=np.int64),
            windows=windows.get(feature, {group: [] for group in groups}),
            logits=None
            if logits is None
            else logits.get(feature, {sign: [] for sign in SIGNS}),
            nearest=None if nearest is None else nearest.get(feature, []),
        )
        for feature in features
    ]


def _table(files: ResultFiles, table: Table, where: str) -> list[dict[str, Any]]:
    source = scan([files.folder / table.file])
    return rows_of(files.folder, table, f"FROM {source} WHERE {where}")


def _windows(
    files: ResultFiles, where: str, groups: Sequence[str]
) -> dict[int, dict[str, list[ExampleWindow]]]:
    names = ", ".join(f"'{group}'" for group in groups)
    rows = rows_of(
        files.folder,
        EXAMPLES,
        f"SELECT examples.*, n_tok, tokens FROM {scan([files.folder / EXAMPLES.file])} "  # noqa: S608 - checked values
        f"AS examples LEFT JOIN {scan([files.contexts])} USING (context) "
        f'WHERE {where} AND "group" IN ({names}) ORDER BY feature, "group", rank',
    )
    texts, after = texts_of(files.vocab), tokens_after(files.folder)
    found: dict[int, dict[str, list[ExampleWindow]]] = {}
    for row in rows:
        ids = _ids(files, row)[row["start"] : row["pos"] + after + 1]
        of_feature = found.setdefault(row["feature"], {group: [] for group in groups})
        of_feature[row["group"]].append(window_of(row, ids.tolist(), texts))
    return found


def _ids(files: ResultFiles, row: Mapping[str, Any]) -> np.ndarray:
    if row["tokens"] is None:
        msg = f"{files.contexts} lacks context {row['context']}: it is not the corpus of "
        raise ResultsDamaged(msg + str(files.folder))
    return token_ids_of(row["tokens"], row["n_tok"])


def _logits(
    files: ResultFiles, features: Sequence[int]
) -> dict[int, dict[str, list[tuple[str, float]]]] | None:
    if not has(files, LOGITS):
        return None
    found: dict[int, dict[str, list[tuple[str, float]]]] = {}
    for row in selected(files, LOGITS, features).to_pylist():
        feature, sign, text, value = (
            row[name] for name in ("feature", "sign", "text", "value")
        )
        of_feature = found.setdefault(feature, {name: [] for name in SIGNS})
        of_feature[sign].append((text, value))
    return found


def _nearest(files: ResultFiles, where: str) -> dict[int, list[tuple[int, float]]] | None:
    if not has(files, NEIGHBOURS, "decoder"):
        return None
    rows = _table(files, NEIGHBOURS, f"{where} AND kind = 'decoder' ORDER BY feature, rank")
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        found.setdefault(row["feature"], []).append((row["other"], row["value"]))
    return found


def _arrays(files: ResultFiles, query: str) -> dict[str, np.ndarray]:
    with readable(files.folder):
        found: dict[str, np.ndarray] = query_of(files.folder, EXAMPLES, query).fetchnumpy()
    return found
