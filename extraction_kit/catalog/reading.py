"""One run at a time, straight from its files: milliseconds, however many runs there are."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import duckdb
import numpy as np

from extraction_kit.catalog.asking import (
    ask,
    fetched,
    held,
    manifest_of,
    query_of,
)
from extraction_kit.catalog.peaks import limited, peaks_of
from extraction_kit.catalog.peaks import search as tokens_search
from extraction_kit.catalog.relations import literal, scan
from extraction_kit.catalog.sorted_file import d_sae_of, published
from extraction_kit.catalog.soundness import require_sound
from extraction_kit.catalog.tables import (
    EXAMPLES,
    FEATURES,
    HISTOGRAMS,
    LOGITS,
    NEIGHBOURS,
    TOKENS,
    VOCAB,
    Table,
)
from extraction_kit.catalog.texts import texts_of, tokens_of
from extraction_kit.errors import BadQuery, ResultsDamaged
from extraction_kit.results import GROUPS, KINDS, SIGNS, feature_number


@dataclass(frozen=True, kw_only=True)
class ExampleWindow:
    """One example with its surroundings, ready to be shown."""

    rank: int
    act: float
    """Activation at the peak."""
    context: int
    pos: int
    """Position of the peak in its context."""
    start: int
    """Position of the first token of the window; the peak is token ``pos - start``."""
    token_ids: list[int]
    tokens: list[str]
    acts: list[float]
    """Activation of each token, 0.0 where the feature is not active."""
    held_out: bool = False
    """Whether its context is held out from explanations, to score them with."""


def features(folder: Path) -> duckdb.DuckDBPyRelation:
    """Return the features of a published run, in order.

    Raises
    ------
    ResultsDamaged
        The file is missing or cannot be read.
    """
    file = published(folder / FEATURES.file)
    if file.is_small:  # DuckDB would decode it for every question
        return held(file.all_rows())
    # In order because the file is, and DuckDB keeps the order of one file; to sort it again
    # costs a quarter of a question to it.
    return ask(folder, f"FROM {scan([folder / FEATURES.file])}")


def examples(
    folder: Path,
    feature: SupportsIndex | None = None,
    *,
    k: int | None = None,
    group: str = "top",
) -> duckdb.DuckDBPyRelation:
    """Return the examples of one feature of a published run, or of all features.

    Parameters
    ----------
    folder : Path
        ``Paths.results_of(run_id)``.
    feature : int, optional
        All features if None.
    k : int, optional
        At most so many per feature.
    group : str
        One of `results.GROUPS`.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    BadQuery
        There is no such group.
    ResultsDamaged
        The file is missing or cannot be read.
    """
    return query_of(folder, EXAMPLES, _examples_sql(folder, feature, k=k, group=group))


def _examples_sql(
    folder: Path, feature: SupportsIndex | None, *, k: int | None, group: str
) -> str:
    _check_choice("group", group, GROUPS)
    wanted = [f"\"group\" = '{group}'", *_wanted(folder, feature, k=k)]
    source = scan([folder / EXAMPLES.file])
    return f"FROM {source} WHERE {' AND '.join(wanted)} ORDER BY feature, rank"


def logits(
    folder: Path,
    feature: SupportsIndex | None = None,
    *,
    vocab: Path,
    k: int | None = None,
    sign: str | None = None,
) -> duckdb.DuckDBPyRelation:
    """Return the tokens that a feature makes most and least likely, or those of all features.

    Parameters
    ----------
    folder : Path
        ``Paths.results_of(run_id)``.
    feature : int, optional
        All features if None.
    vocab : Path
        Token texts of the run's tokenizer.
    k : int, optional
        At most so many at each end.
    sign : str, optional
        One of `results.SIGNS`; both if None.

    Returns
    -------
    DuckDBPyRelation
        Columns feature, sign, rank, token, text, value.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    BadQuery
        There is no such sign, or the run has no logits; the message says why.
    ResultsDamaged
        The file is missing or cannot be read.
    """
    wanted = _wanted(folder, feature, k=k)
    if sign is not None:
        _check_choice("sign", sign, SIGNS)
        wanted.append(f"sign = {literal(sign)}")
    _refuse_absent(folder, LOGITS, ())
    return query_of(
        folder,
        LOGITS,
        "SELECT feature, sign, rank, token, text, value "  # noqa: S608 - checked values
        f"FROM {scan([folder / LOGITS.file])} "
        f"LEFT JOIN {scan([vocab])} AS {VOCAB.name} ON token = token_id "
        f"WHERE {' AND '.join(wanted)} ORDER BY feature, sign = 'bottom', rank",
    )


def similar(
    folder: Path,
    feature: SupportsIndex | None = None,
    *,
    k: int | None = None,
    kind: str = "decoder",
) -> duckdb.DuckDBPyRelation:
    """Return the features that are most like a feature, or those of all features.

    Parameters as for `logits`, and

    kind : str
        One of `results.KINDS`.

    Returns
    -------
    DuckDBPyRelation
        Columns feature, kind, rank, other, value, n_both.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    BadQuery
        There is no such kind, or the run has none of it; the message says why.
    ResultsDamaged
        The file is missing or cannot be read.
    """
    _check_choice("kind", kind, KINDS)
    wanted = [*_wanted(folder, feature, k=k), f"kind = {literal(kind)}"]
    _refuse_absent(folder, NEIGHBOURS, (kind,))
    source = scan([folder / NEIGHBOURS.file])
    return query_of(
        folder,
        NEIGHBOURS,
        f"FROM {source} WHERE {' AND '.join(wanted)} ORDER BY feature, rank",
    )


def _wanted(folder: Path, feature: SupportsIndex | None, *, k: int | None) -> list[str]:
    number = None if feature is None else feature_number(feature, d_sae_of(folder))
    return [
        "true" if number is None else f"feature = {number}",
        "true" if k is None else f"rank < {operator.index(k)}",
    ]


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        msg = f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is allowed"
        raise BadQuery(msg)


def _refuse_absent(folder: Path, table: Table, kind: tuple[str, ...]) -> None:
    why = why_absent(folder, table, *kind)
    if why is not None:
        raise BadQuery(why)


def why_absent(folder: Path, table: Table, *kind: str) -> str | None:
    """Return why a run has no rows of a table, if it says so itself."""
    manifest = manifest_of(folder)
    if manifest["format"] < table.since:
        return (
            f"the run in {folder} was measured by a release that knew no {table.name}: "
            "launch it again with the next generation="
        )
    said = manifest["provenance"].get(table.name, {})
    for name in kind:
        said = said.get(name, {})
    if said.get("absent_because") is None:
        return None
    noun = " ".join([*kind, table.name])
    return f"this run has no {noun}: {said['absent_because']}"


def histogram(folder: Path, feature: SupportsIndex) -> np.ndarray:
    """Return the active tokens of a feature per bin of `results.bin_edges`, int64 [N_BINS].

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    ResultsDamaged
        The file is missing or cannot be read.
    """
    file = published(folder / HISTOGRAMS.file)
    row = file.rows(feature_number(feature, file.n_rows))
    found: np.ndarray = row["hist"][0].values.to_numpy()
    return found.copy()  # the file's own is read-only, and holds its neighbours in memory


def top_tokens(
    folder: Path,
    feature: SupportsIndex | None = None,
    *,
    vocab: Path,
    k: int | None = None,
) -> duckdb.DuckDBPyRelation:
    """Return the tokens on which a feature is active most often, or those of all features.

    Parameters as for `logits`.

    Returns
    -------
    DuckDBPyRelation
        Columns feature, rank, token, text, n_active, sum_act, mean_act, max_act.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    BadQuery
        The run did not count them.
    ResultsDamaged
        A file is missing or cannot be read.
    """
    wanted = _wanted(folder, feature, k=k)
    _refuse_absent(folder, TOKENS, ())
    return query_of(
        folder,
        TOKENS,
        "SELECT feature, rank, token, text, n_active, sum_act, mean_act, max_act "  # noqa: S608 - checked values
        f"FROM {scan([folder / TOKENS.file])} "
        f"LEFT JOIN {scan([vocab])} AS {VOCAB.name} ON token = token_id "
        f"WHERE {' AND '.join(wanted)} ORDER BY feature, rank",
    )


def search(
    folder: Path, text: str, *, vocab: Path, k: int | None = None
) -> duckdb.DuckDBPyRelation:
    """Return the features that fire on a token, those that it marks most surely first.

    Parameters
    ----------
    folder : Path
        ``Paths.results_of(run_id)``.
    text : str
        Text of a token; see `texts.forms_of`.
    vocab : Path
        Token texts of the run's tokenizer.
    k : int, optional
        At most so many rows.

    Returns
    -------
    DuckDBPyRelation
        One row per feature and token: token, text, feature, n_examples, max_act, n_active.

    Raises
    ------
    BadQuery
        No token has this text.
    ResultsDamaged
        A file is missing, altered or cannot be read.
    """
    there = [folder / EXAMPLES.file]
    if manifest_of(folder)["format"] >= TOKENS.since:
        there.append(folder / TOKENS.file)
    for path in there:
        require_sound(path)
    found = peaks_of(*(scan([path]) for path in there))
    query = tokens_search(tokens_of(text, {"": vocab}), peaks=f"({found})", runs=None)
    return ask(folder, limited(query, k))


def example_windows(
    folder: Path,
    feature: SupportsIndex,
    *,
    contexts: Path,
    vocab: Path,
    k: int = 20,
    group: str = "top",
) -> list[ExampleWindow]:
    """Return the first `k` examples of a feature with token texts and activations.

    Parameters
    ----------
    folder : Path
        ``Paths.results_of(run_id)``.
    feature : int
        Index of the feature; [] comes back if it has no example of the group.
    contexts : Path
        ``contexts.parquet`` of the run's corpus.
    vocab : Path
        Token texts of its tokenizer.
    k : int
        At most so many.
    group : str
        One of `results.GROUPS`.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    BadQuery
        There is no such group.
    ResultsDamaged
        A file of the run, or the context of an example, is missing or cannot be read.
    """
    _check_choice("group", group, GROUPS)
    number = feature_number(feature, d_sae_of(folder))
    n = operator.index(k)
    rows = [
        row
        for row in published(folder / EXAMPLES.file).rows(number).to_pylist()
        if row["group"] == group and row["rank"] < n
    ]
    if not rows:
        return []
    numbers = ", ".join(str(row["context"]) for row in rows)
    found = fetched(
        contexts,
        ask(contexts, f"FROM {scan([contexts])} WHERE context IN ({numbers})"),
    )
    ids_of = {row["context"]: token_ids_of(row["tokens"], row["n_tok"]) for row in found}
    missing = [row["context"] for row in rows if row["context"] not in ids_of]
    if missing:
        msg = f"{contexts} lacks context {missing[0]}: it is not the corpus of {folder}"
        raise ResultsDamaged(msg)
    texts, after = texts_of(vocab), tokens_after(folder)
    windows = [
        ids_of[row["context"]][row["start"] : row["pos"] + after + 1] for row in rows
    ]
    return [
        window_of(row, ids.tolist(), texts) for row, ids in zip(rows, windows, strict=True)
    ]


def window_of(row: dict[str, Any], token_ids: list[int], texts: list[str]) -> ExampleWindow:
    """Return a row of the examples with the tokens around its peak."""
    acts = [0.0] * len(token_ids)
    for offset, value in zip(row["act_off"], row["act_val"], strict=True):
        acts[offset] = value
    return ExampleWindow(
        rank=row["rank"],
        act=row["act"],
        context=row["context"],
        pos=row["pos"],
        start=row["start"],
        token_ids=token_ids,
        tokens=[texts[token] for token in token_ids],
        acts=acts,
        held_out=row["held_out"],
    )


def token_ids_of(blob: bytes, n_tok: int) -> np.ndarray:
    """Return the token ids of a context as it is stored: two or four bytes each."""
    return np.frombuffer(blob, dtype="<u2" if len(blob) == 2 * n_tok else "<u4")


def tokens_after(folder: Path) -> int:
    """Return how many tokens after its peak a window has at most."""
    return int(manifest_of(folder)["config"]["window"][1])
