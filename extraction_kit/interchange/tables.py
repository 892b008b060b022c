"""Features, examples with their texts, logits and neighbours as Parquet or CSV."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from extraction_kit.catalog.bulk import (
    FeatureRecord,
    ResultFiles,
    chosen,
    has,
    records,
    selected,
)
from extraction_kit.catalog.listing import Labels
from extraction_kit.catalog.tables import FEATURES, LOGITS, NEIGHBOURS
from extraction_kit.interchange.writing import new_folder

_EXAMPLES = pa.schema(
    [
        ("feature", pa.int32()),
        ("group", pa.string()),
        ("rank", pa.int16()),
        ("context", pa.int64()),
        ("pos", pa.int32()),
        ("start", pa.int32()),
        ("act", pa.float32()),
        ("held_out", pa.bool_()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.string())),
        ("acts", pa.list_(pa.float32())),
    ]
)


def write(
    files: ResultFiles,
    path: Path | str,
    *,
    as_csv: bool,
    features: Iterable[SupportsIndex] | None,
    labels: Labels | None = None,
) -> Path:
    """Write the folder; return where it is. See `Exports.parquet` and `Exports.csv`."""
    wanted = chosen(files, features)
    tables = [FEATURES, *(each for each in (LOGITS, NEIGHBOURS) if has(files, each))]
    with new_folder(path) as (final, staged):
        for table in tables:
            rows = selected(files, table, wanted)
            if table is FEATURES and labels is not None:
                rows = _labelled(rows, labels)
            _write(staged / table.name, rows.schema, iter([rows]), as_csv=as_csv)
        examples = (_examples(batch, as_csv=as_csv) for batch in records(files, wanted))
        schema = _flat(_EXAMPLES) if as_csv else _EXAMPLES
        _write(staged / "examples", schema, examples, as_csv=as_csv)
    return final


def _labelled(rows: pa.Table, labels: Labels) -> pa.Table:
    """Append what is said of each feature, in the columns that the catalog has for it."""
    said = [labels.get(feature, (None, None)) for feature in rows["feature"].to_pylist()]
    for place, name in enumerate(("label", "description")):
        column = pa.array([each[place] for each in said], pa.string())
        rows = rows.append_column(name, column)
    return rows


def _write(
    path: Path, schema: pa.Schema, parts: Iterator[pa.Table], *, as_csv: bool
) -> None:
    writer = (
        pa_csv.CSVWriter(path.with_suffix(".csv"), schema)
        if as_csv
        else pq.ParquetWriter(path.with_suffix(".parquet"), schema, compression="zstd")
    )
    with writer:
        for part in parts:
            writer.write_table(part)


def _flat(schema: pa.Schema) -> pa.Schema:
    """Return the columns with lists as texts: JSON arrays."""
    return pa.schema(
        [
            pa.field(each.name, pa.string() if pa.types.is_list(each.type) else each.type)
            for each in schema
        ]
    )


def _examples(batch: Sequence[FeatureRecord], *, as_csv: bool) -> pa.Table:
    rows = [
        {
            "feature": record.feature,
            "group": group,
            "rank": window.rank,
            "context": window.context,
            "pos": window.pos,
            "start": window.start,
            "act": window.act,
            "held_out": window.held_out,
            "text": "".join(window.tokens),
            "tokens": _list(window.tokens, as_csv=as_csv),
            "acts": _list(window.acts, as_csv=as_csv),
        }
        for record in batch
        for group, windows in record.windows.items()
        for window in windows
    ]
    return pa.Table.from_pylist(rows, schema=_flat(_EXAMPLES) if as_csv else _EXAMPLES)


def _list(values: Sequence[Any], *, as_csv: bool) -> Any:  # noqa: ANN401 - a list or JSON
    return json.dumps(values, ensure_ascii=False) if as_csv else values
