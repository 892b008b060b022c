"""What can be named in SQL: the same in the notebook and in the snapshot."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.catalog.arrays import Rows, rows_table
from extraction_kit.catalog.peaks import make_macros, peaks_of
from extraction_kit.catalog.tables import (
    CATALOG,
    CONTEXTS,
    EXAMPLES,
    LEDGER_TABLES,
    PEAKS,
    RESULT_TABLES,
    TOKENS,
    VOCAB,
    Column,
    Table,
)


@dataclass(frozen=True, kw_only=True)
class CatalogRows:
    """What the ledger hands to the catalog: rows, and where the files are."""

    runs: Rows = field(default_factory=list)
    """Keys are the columns of `tables.RUNS`; missing ones are NULL. Datetimes are aware."""
    trainings: Rows = field(default_factory=list)
    """As `tables.TRAININGS`."""
    events: Rows = field(default_factory=list)
    """As `tables.EVENTS`."""
    folders: Mapping[str, Path | str] = field(default_factory=dict)
    """Run id to its published folder ``run_id=<run id>``; committed runs only."""
    corpora: Mapping[str, Path] = field(default_factory=dict)
    """Corpus digest to its ``<digest>/contexts.parquet``."""
    vocabs: Mapping[str, Path] = field(default_factory=dict)
    """Tokenizer digest to its ``<digest>.parquet``."""
    changed: frozenset[str] | set[str] | None = None
    """Runs that are told anew, or are gone; None: all are told, and no other exists."""
    derived: Path | None = None
    """Folder of the indexes over many runs."""


@dataclass(frozen=True)
class _Key:
    """The column that tells the files of a view apart, read off their paths."""

    column: Column
    sql: str  # of `filename`, so that DuckDB opens matching files only


_RUN = _Key(
    Column("run_id", "VARCHAR", "", "run it belongs to"), "parse_path(filename)[-2][8:]"
)
_CORPUS = _Key(
    Column("corpus_digest", "VARCHAR", "", "corpus it belongs to"),
    "parse_path(filename)[-2]",
)
_TOKENIZER = _Key(
    Column("tokenizer_digest", "VARCHAR", "", "tokenizer it belongs to"),
    "parse_filename(filename, true)",
)


VIEWS = (*RESULT_TABLES, PEAKS, CONTEXTS, VOCAB)
"""What is read from files when it is asked for."""


def populate(connection: duckdb.DuckDBPyConnection, rows: CatalogRows) -> None:
    """Make or replace every table and view of the catalog, with comments, in one step."""
    connection.execute("BEGIN")
    try:
        for table in LEDGER_TABLES:
            make_table(connection, table, getattr(rows, table.name))
        for table in VIEWS:
            make_view(connection, table, select_of(table, rows))
        make_macros(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def make_table(connection: duckdb.DuckDBPyConnection, table: Table, rows: Rows) -> None:
    """Make or replace a table of the ledger's rows, with comments."""
    connection.register("_content", rows_table(table, rows))
    connection.execute(f"CREATE OR REPLACE TABLE {table.name} AS FROM _content")
    connection.unregister("_content")
    _comment(connection, table, kind="TABLE", columns=table.columns)


def make_view(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    query: str,
    *,
    schema: str | None = None,
) -> None:
    """Make or replace a view; without a query it is empty.

    It has comments unless it is in a schema of its own: each comment copies the view, with
    the names of ten thousand files.
    """
    columns = (_key(table).column, *table.columns)
    if not query:
        typed = ", ".join(f'NULL::{c.type} AS "{c.name}"' for c in columns)
        query = f"SELECT {typed} WHERE false"
    name = table.name if schema is None else f"{schema}.{table.name}"
    connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
    if schema is None:
        _comment(connection, table, kind="VIEW", columns=columns)


def _key(table: Table) -> _Key:
    return {CONTEXTS: _CORPUS, VOCAB: _TOKENIZER}.get(table, _RUN)


def select_of(table: Table, rows: CatalogRows) -> str:
    """Return the SQL that reads a table of `VIEWS` from its own files; "" without any."""
    if table is PEAKS:
        examples, tokens = (select_of(one, rows) for one in (EXAMPLES, TOKENS))
        counted = f"({tokens})" if tokens else None
        return peaks_of(f"({examples})", counted, by="run_id, ") if examples else ""
    paths = {
        CONTEXTS: rows.corpora.values,
        VOCAB: rows.vocabs.values,
    }.get(table, lambda: _files(rows.folders.values(), table))()
    return _select(table, _key(table), _readable_first(map(str, paths)))


def _files(folders: Iterable[Path | str], table: Table) -> Iterable[str]:
    return (f"{folder}/{table.file}" for folder in folders)  # 10,000 times: no `Path`


def _select(table: Table, key: _Key, paths: Sequence[str]) -> str:
    if not paths:
        return ""
    source = scan(paths, options=", filename=true")
    return f'SELECT {key.sql} AS "{key.column.name}", {names_of(table)} FROM {source}'  # noqa: S608 - our own names


def names_of(table: Table) -> str:
    """Return the columns of a table, for a SELECT."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _readable_first(paths: Iterable[str]) -> list[str]:
    """Return the paths that exist; one that can be read comes first, [] if none can.

    DuckDB takes the types from the first file. A damaged one further on fails the queries
    that need it, by name, and no other.
    """
    present = sorted(path for path in paths if os.path.isfile(path))  # noqa: PTH113 - as above
    for number, path in enumerate(present):
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            continue
        return [path, *present[:number], *present[number + 1 :]]
    return []


def _comment(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    *,
    kind: str,
    columns: Iterable[Column],
) -> None:
    said = [f"COMMENT ON {kind} {table.name} IS {literal(table.meaning)}"]
    said += [
        f'COMMENT ON COLUMN {table.name}."{column.name}" IS {literal(column.comment)}'
        for column in columns
    ]
    connection.execute("; ".join(said))


def scan(paths: Iterable[Path | str], options: str = "") -> str:
    """Return the SQL that reads exactly these Parquet files.

    Nothing is taken from names of folders (``user=ek`` is no column), and characters of
    patterns in a path stand for themselves. Paths are absolute: a snapshot's views resolve
    against the reader's working directory.
    """
    names = ", ".join(literal(_exact(os.path.abspath(path))) for path in paths)  # noqa: PTH100 - 10,000 times
    return f"read_parquet([{names}], hive_partitioning=false{options})"


_PATTERN = str.maketrans({letter: f"[{letter}]" for letter in "*?["})


def _exact(path: str) -> str:
    return path.translate(_PATTERN)


def literal(text: str) -> str:
    """Return `text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def names_of_relations() -> str:
    """Return what can be named in SQL, for messages."""
    return ", ".join(table.name for table in CATALOG)
