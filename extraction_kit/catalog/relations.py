"""What can be named in SQL: the same in the notebook and in the snapshot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.catalog.arrays import rows_table
from extraction_kit.catalog.labelled import labelled, labels_of
from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.memory import CONFIG, FAILURES
from extraction_kit.catalog.tables import (
    CATALOG,
    CONTEXTS,
    FEATURES,
    LABEL_COLUMNS,
    LABEL_HISTORY,
    LABELS,
    LEDGER_TABLES,
    RESULT_TABLES,
    VOCAB,
    Column,
    Table,
)


@dataclass(frozen=True, kw_only=True)
class CatalogRows:
    """What the ledger hands to the catalog: rows, and where the files are."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    """Keys are the columns of `tables.RUNS`; missing ones are NULL. Datetimes are aware."""
    trainings: list[dict[str, Any]] = field(default_factory=list)
    """As `tables.TRAININGS`."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """As `tables.EVENTS`."""
    label_history: pa.Table = field(default_factory=LABEL_HISTORY.schema.empty_table)
    """As `tables.LABEL_HISTORY`, from `labelled.label_table`: made anew only when it grew."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Run id to its published folder ``run_id=<run id>``; committed runs only."""
    corpora: Mapping[str, Path] = field(default_factory=dict)
    """Corpus digest to its ``<digest>/contexts.parquet``."""
    vocabs: Mapping[str, Path] = field(default_factory=dict)
    """Tokenizer digest to its ``<digest>.parquet``."""


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


def columns_of(table: Table) -> tuple[Column, ...]:
    """Return the columns of a table of the catalog: a view has more than its files."""
    keys = dict.fromkeys(RESULT_TABLES, (_RUN.column,))
    keys |= {CONTEXTS: (_CORPUS.column,), VOCAB: (_TOKENIZER.column,)}
    said = LABEL_COLUMNS if table is FEATURES else ()
    return (*keys.get(table, ()), *table.columns, *said)


def populate(
    connection: duckdb.DuckDBPyConnection, rows: CatalogRows, *, careful: bool = False
) -> None:
    """Make or replace every table, view and macro of the catalog, with comments, in one step.

    Parameters
    ----------
    connection : DuckDBPyConnection
        Where.
    rows : CatalogRows
        What the ledger says.
    careful : bool
        Ask DuckDB itself, in a database apart, which file can be read: after it failed on
        one that seemed readable. An error inside DuckDB costs the database that it is in.
    """
    connection.execute("BEGIN")
    try:
        for table in LEDGER_TABLES:
            given = getattr(rows, table.name)
            content = given if isinstance(given, pa.Table) else rows_table(table, given)
            _make_table(connection, table, content)
        _make_labels(connection)
        for table in RESULT_TABLES:
            paths = [folder / table.file for folder in rows.folders.values()]
            usable = _readable_first(table, paths, careful=careful)
            if table is FEATURES:
                has_labels = rows.label_history.num_rows > 0
                _make_features(connection, usable, has_labels=has_labels)
            else:
                _make_view(connection, table, key=_RUN, paths=usable)
        corpora = _readable_first(CONTEXTS, rows.corpora.values(), careful=careful)
        _make_view(connection, CONTEXTS, key=_CORPUS, paths=corpora)
        vocabs = _readable_first(VOCAB, rows.vocabs.values(), careful=careful)
        _make_view(connection, VOCAB, key=_TOKENIZER, paths=vocabs)
        make_macros(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def make_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Make or replace the macros of the catalog, with comments."""
    for macro in MACROS:
        connection.execute(macro.definition)
        connection.execute(
            f"COMMENT ON MACRO TABLE {macro.name} IS {literal(macro.comment)}"
        )


def _make_table(
    connection: duckdb.DuckDBPyConnection, table: Table, content: pa.Table
) -> None:
    connection.register("_content", content)
    connection.execute(f"CREATE OR REPLACE TABLE {table.name} AS FROM _content")
    connection.unregister("_content")
    comment(connection, table, kind="TABLE", columns=table.columns)


def _make_view(
    connection: duckdb.DuckDBPyConnection, table: Table, *, key: _Key, paths: list[Path]
) -> None:
    columns = (key.column, *table.columns)
    query = _select(table, key, paths)
    connection.execute(f"CREATE OR REPLACE VIEW {table.name} AS {query}")
    comment(connection, table, kind="VIEW", columns=columns)


def _make_labels(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        f"CREATE OR REPLACE TABLE {LABELS.name} AS {labels_of(LABEL_HISTORY)}"
    )
    comment(connection, LABELS, kind="TABLE", columns=LABELS.columns)


def _make_features(
    connection: duckdb.DuckDBPyConnection, paths: list[Path], *, has_labels: bool
) -> None:
    plain = _select(FEATURES, _RUN, paths)
    query = labelled(plain, has_labels=has_labels)
    connection.execute(f"CREATE OR REPLACE VIEW {FEATURES.name} AS {query}")
    columns = (_RUN.column, *FEATURES.columns, *LABEL_COLUMNS)
    comment(connection, FEATURES, kind="VIEW", columns=columns)


def _select(table: Table, key: _Key, paths: list[Path]) -> str:
    if not paths:
        columns = (key.column, *table.columns)
        typed = ", ".join(f'NULL::{c.type} AS "{c.name}"' for c in columns)
        return f"SELECT {typed} WHERE false"
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    source = scan(paths, options=", filename=true")
    return f'SELECT {key.sql} AS "{key.column.name}", {names} FROM {source}'  # noqa: S608 - our own names


def _readable_first(
    table: Table, paths: Iterable[Path], *, careful: bool = False
) -> list[Path]:
    """Return the paths that exist; one that can be read comes first, [] if none can.

    DuckDB takes the types from the first file. A damaged one further on fails the queries
    that need it, by name, and no other.
    """
    present = sorted(path for path in paths if path.is_file())
    for number, path in enumerate(present):
        if _is_readable(path) and (not careful or _is_bindable(table, path)):
            return [path, *present[:number], *present[number + 1 :]]
    return []


def _is_readable(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException, ValueError):  # also names that are no text
        return False
    return True


def _is_bindable(table: Table, path: Path) -> bool:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    try:
        with duckdb.connect(":memory:", config=CONFIG) as apart:
            apart.execute(f"SELECT {names} FROM {scan([path])} LIMIT 0")  # noqa: S608 - our own names
    except FAILURES:
        return False
    return True


def comment(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    *,
    kind: str,
    columns: Iterable[Column],
) -> None:
    """Put meanings and units on a table and its columns."""
    connection.execute(f"COMMENT ON {kind} {table.name} IS {literal(table.meaning)}")
    for column in columns:
        connection.execute(
            f'COMMENT ON COLUMN {table.name}."{column.name}" IS {literal(column.comment)}'
        )


def scan(paths: Iterable[Path], options: str = "") -> str:
    """Return the SQL that reads exactly these Parquet files.

    Nothing is taken from names of folders (``user=ek`` is no column), and characters of
    patterns in a path stand for themselves. Paths are absolute: a snapshot's views resolve
    against the reader's working directory.
    """
    names = ", ".join(literal(_exact(path.absolute())) for path in paths)
    return f"read_parquet([{names}], hive_partitioning=false{options})"


def _exact(path: Path) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def literal(text: str) -> str:
    """Return `text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def names_of_relations() -> str:
    """Return what can be named in SQL, for messages."""
    tables = ", ".join(table.name for table in CATALOG)
    return f"{tables}; and {', '.join(macro.call for macro in MACROS)}"
