"""Results and ledger rows as Arrow tables, with the columns that `tables` lists."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from extraction_kit.catalog.tables import (
    ARROW_TYPES,
    EXAMPLES,
    FEATURES,
    HISTOGRAMS,
    Column,
    Table,
)
from extraction_kit.results import GROUPS, KINDS, SIGNS, ExtractionResult, bin_edges

Columns: TypeAlias = Mapping[str, Sequence[Any]]
Rows: TypeAlias = Sequence[Mapping[str, Any]] | Columns | pa.Table | Callable[[], Columns]
"""Rows of the ledger: one by one, as columns of plain values, as a table made here
before, or what reads the columns."""

_BLOCK = 2**16  # features whose histograms are summed up at once


def features_table(result: ExtractionResult) -> pa.Table:
    """Return the features of `result` with their derived columns.

    Columns from the weights that `result` does not have are NULL; columns that the schema
    does not know are kept, after the known ones.
    """
    columns = {
        name: pa.array(np.ascontiguousarray(values))
        for name, values in result.features.items()
    }
    columns |= _derived(result)
    known = [
        columns.pop(field.name, pa.nulls(result.d_sae)).cast(field.type)
        for field in FEATURES.schema
    ]
    schema = FEATURES.schema
    for name, array in columns.items():
        schema = schema.append(pa.field(name, array.type))
    return pa.table([*known, *columns.values()], schema=schema)


def _derived(result: ExtractionResult) -> dict[str, pa.Array]:
    given = result.features
    n_active = given["n_active"]
    dead = n_active == 0
    active = np.maximum(n_active, 1)
    mean = given["sum_act"] / active
    variance = np.maximum(given["sum_sq_act"] / active - mean**2, 0)
    columns = {
        "feature": pa.array(np.arange(result.d_sae, dtype=np.int32)),
        "density": pa.array(n_active / max(int(result.summary["n_tokens"]), 1)),
        "context_density": pa.array(
            given["n_contexts"] / max(int(result.summary["n_contexts"]), 1)
        ),
        "mean_act": pa.array(mean, mask=dead),
        "std_act": pa.array(np.sqrt(variance), mask=dead),
        "dead": pa.array(dead),
    }
    for percent in (50, 90, 99):
        values = quantile(result.histograms, given["max_act"], percent)
        columns[f"q{percent}"] = pa.array(values, mask=dead)
    return columns


def quantile(histograms: np.ndarray, max_act: np.ndarray, percent: int) -> np.ndarray:
    """Return a quantile of the active tokens of each feature, read off its histogram.

    The value with rank ``ceil(n * percent / 100)`` is placed in its bin by linear
    interpolation, and is never above `max_act`. It lies in the bin of the true one, so the
    error is less than 1/8 octave (9 %); below 2^-10 it is less than 2^-10, and above 2^10
    it is bounded by `max_act` only.

    Parameters
    ----------
    histograms : ndarray int64 [feature, N_BINS]
        Active tokens per bin.
    max_act : ndarray float32 [feature]
        Largest activations.
    percent : int
        1 to 100.

    Returns
    -------
    ndarray float32 [feature]
        Without meaning where a histogram is empty.
    """
    found = [
        _quantile(histograms[i : i + _BLOCK], max_act[i : i + _BLOCK], percent)
        for i in range(0, len(histograms), _BLOCK)
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.float32)


def _quantile(histograms: np.ndarray, max_act: np.ndarray, percent: int) -> np.ndarray:
    edges = bin_edges()
    upto = np.cumsum(histograms, axis=1)
    rank = -(-upto[:, -1] * percent // 100)  # integers: 0.99 * n may round up
    bins = np.argmax(upto >= rank[:, None], axis=1)
    row = np.arange(len(histograms))
    inside = histograms[row, bins]
    share = (rank - (upto[row, bins] - inside)) / np.maximum(inside, 1)
    low = edges[bins]
    high = np.minimum(edges[bins + 1], max_act)
    value: np.ndarray = np.minimum(low + (high - low) * share, max_act).astype(np.float32)
    return value


def histograms_table(result: ExtractionResult) -> pa.Table:
    """Return the histograms of `result`."""
    bins = result.histograms.shape[1]
    offsets = np.arange(result.d_sae + 1, dtype=np.int64) * bins
    flat = np.ascontiguousarray(result.histograms).reshape(-1)
    feature = pa.array(np.arange(result.d_sae, dtype=np.int32))
    hist = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
    return pa.table([feature, hist.cast(ARROW_TYPES["BIGINT[]"])], schema=HISTOGRAMS.schema)


def examples_table(result: ExtractionResult) -> pa.Table:
    """Return the examples of `result`, groups by name."""
    given = result.examples
    names = pa.DictionaryArray.from_arrays(pa.array(given.group), pa.array(GROUPS))
    offsets = pa.array(given.offsets)
    special = {
        "group": names.cast(pa.string()),
        "held_out": pa.array(result.held_out),
        "act_off": pa.LargeListArray.from_arrays(offsets, pa.array(given.act_off)),
        "act_val": pa.LargeListArray.from_arrays(offsets, pa.array(given.act_val)),
    }
    arrays = [
        special[field.name].cast(field.type)
        if field.name in special
        else pa.array(getattr(given, field.name)).cast(field.type)
        for field in EXAMPLES.schema
    ]
    return pa.table(arrays, schema=EXAMPLES.schema)


def flat_table(table: Table, result: ExtractionResult) -> pa.Table:
    """Return the rows that `result` has of one of the `FLAT_TABLES`; none is fine."""
    given = result.tables.get(table.name)
    if given is None:
        return table.schema.empty_table()
    arrays = [
        _flat_column(column.name, given[column.name]).cast(ARROW_TYPES[column.type])
        for column in table.columns
    ]
    return pa.table(arrays, schema=table.schema)


def _flat_column(name: str, values: np.ndarray) -> pa.Array:
    array = pa.array(
        np.ascontiguousarray(values), mask=values < 0 if name == "n_both" else None
    )
    names = {"sign": SIGNS, "kind": KINDS}.get(name)
    return (
        array if names is None else pa.DictionaryArray.from_arrays(array, pa.array(names))
    )


def rows_table(table: Table, rows: Rows) -> pa.Table:
    """Return ledger rows as an Arrow table; a missing key is NULL, also with no row at all.

    Aware datetimes become naive UTC (DuckDB needs pytz to return aware ones).
    """
    if isinstance(rows, pa.Table):
        return rows
    rows = rows() if callable(rows) else rows
    if isinstance(rows, Mapping):
        n_rows = len(next(iter(rows.values()), ()))
        arrays = [
            pa.array(rows.get(column.name, [None] * n_rows), ARROW_TYPES[column.type])
            for column in table.columns
        ]
        return pa.table(arrays, schema=table.schema)
    arrays = [
        pa.array(
            [_plain(row.get(column.name), column) for row in rows], ARROW_TYPES[column.type]
        )
        for column in table.columns
    ]
    return pa.table(arrays, schema=table.schema)


def _plain(value: object, column: Column) -> object:
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    return str(value) if column.type == "VARCHAR" else value
