"""What can be named in SQL: the same in the notebook and in the snapshot."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.catalog.arrays import Rows, rows_table
from extraction_kit.catalog.labelled import labelled, labels_of
from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.memory import CONFIG, FAILURES
from extraction_kit.catalog.peaks import peaks_of
from extraction_kit.catalog.tables import (
    CATALOG,
    CONTEXTS,
    EXAMPLES,
    FEATURES,
    LABEL_COLUMNS,
    LABEL_HISTORY,
    LABELS,
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
    """Keys are the columns of `tables.RUNS`; missing ones are NULL. Datetimes are aware.

    What reads them all (with `digests`) is called when a query names them, and then tells
    what is true by then; rows that changed are rows."""
    trainings: Rows = field(default_factory=list)
    """As `tables.TRAININGS`."""
    events: Rows = field(default_factory=list)
    """As `tables.EVENTS`."""
    label_history: pa.Table = field(default_factory=LABEL_HISTORY.schema.empty_table)
    """As `tables.LABEL_HISTORY`, from `labelled.label_table`: made anew only when it grew."""
    folders: Mapping[str, Path | str] = field(default_factory=dict)
    """Run id to its published folder ``run_id=<run id>``; committed runs only."""
    corpora: Mapping[str, Path] = field(default_factory=dict)
    """Corpus digest to its ``<digest>/contexts.parquet``."""
    vocabs: Mapping[str, Path] = field(default_factory=dict)
    """Tokenizer digest to its ``<digest>.parquet``."""
    digests: Mapping[str, str | None] | None = None
    """Run id to result digest, of the runs with a folder; None: they are in `runs`."""
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
FILES = "files"
"""Schema of the views that name the files; those without a schema only read them."""
_FOLDERS = f"{FILES}.folders()"
"""Of all runs whose results are there, where all views are made at once."""


def columns_of(table: Table) -> tuple[Column, ...]:
    """Return the columns of a table of the catalog: a view has more than its files."""
    key = (_key(table).column,) if table in VIEWS else ()
    said = LABEL_COLUMNS if table is FEATURES else ()
    return (*key, *table.columns, *said)


@contextmanager
def in_one_step(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Do all of what is in it, or nothing; also where a person interrupts it."""
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


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
    with in_one_step(connection):
        for table in LEDGER_TABLES:
            make_table(connection, table, getattr(rows, table.name))
        make_labels(connection)
        make_names(connection)
        comment_all(connection)
        folders = sorted(map(str, rows.folders.values()))
        connection.execute(
            f"CREATE OR REPLACE MACRO {_FOLDERS} AS CAST({_list_of(folders)} AS VARCHAR[])"
        )
        there = {folder: frozenset(_listed(folder)) for folder in folders}
        for table in VIEWS:
            query = _select_at_once(table, rows, there, careful=careful)
            make_view(connection, table, with_labels(table, query, rows), schema=FILES)


def make_names(connection: duckdb.DuckDBPyConnection) -> None:
    """Make all views, empty, and the macros; the ledger's tables are there.

    Whatever names a view looks for all of its files: with ten thousand of them that takes
    long. So those that name files come last.
    """
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {FILES}")
    for table in VIEWS:
        make_view(connection, table, "", schema=FILES)
        make_view(connection, table, f"FROM {FILES}.{table.name}")
    make_macros(connection)


def make_macros(connection: duckdb.DuckDBPyConnection) -> None:
    """Make or replace the macros of the catalog."""
    for macro in MACROS:
        connection.execute(macro.definition)


def make_labels(connection: duckdb.DuckDBPyConnection) -> None:
    """Make or replace the table of labels from the one of their history."""
    connection.execute(
        f"CREATE OR REPLACE TABLE {LABELS.name} AS {labels_of(LABEL_HISTORY)}"
    )


def make_table(connection: duckdb.DuckDBPyConnection, table: Table, rows: Rows) -> None:
    """Make or replace a table of the ledger's rows."""
    connection.register("_content", rows_table(table, rows))
    connection.execute(f"CREATE OR REPLACE TABLE {table.name} AS FROM _content")
    connection.unregister("_content")


def make_view(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    query: str,
    *,
    schema: str | None = None,
) -> None:
    """Make or replace a view; without a query it is empty."""
    columns = columns_of(table)
    if not query:
        typed = ", ".join(f'NULL::{c.type} AS "{c.name}"' for c in columns)
        query = f"SELECT {typed} WHERE false"
    name = table.name if schema is None else f"{schema}.{table.name}"
    connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")


def _key(table: Table) -> _Key:
    return {CONTEXTS: _CORPUS, VOCAB: _TOKENIZER}.get(table, _RUN)


def with_labels(table: Table, query: str, rows: CatalogRows) -> str:
    """Return the SQL of a table of `VIEWS`, of features with their labels; "" is empty."""
    if table is not FEATURES or not query:
        return query
    return labelled(query, has_labels=rows.label_history.num_rows > 0)


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - 1,000 times
    except OSError:
        return []


def _select_at_once(
    table: Table,
    rows: CatalogRows,
    there: Mapping[str, Collection[str]],
    *,
    careful: bool,
) -> str:
    """Return `select_of` a table where `_FOLDERS` and the views before it have been made.

    The names of a thousand folders are there once, instead of six times; `there` tells the
    files in each.
    """
    if table is PEAKS:
        examples, tokens = (f"{FILES}.{one.name}" for one in (EXAMPLES, TOKENS))
        return peaks_of(examples, tokens, by="run_id, ")
    if table not in RESULT_TABLES:
        return select_of(table, rows, careful=careful)
    file = table.file
    present = [f"{folder}/{file}" for folder, names in there.items() if file in names]
    paths = _readable_first(table, present, careful=careful)
    if not paths or paths[0] != present[0] or len(paths) < len(there):
        return _select(table, paths)
    return _select_from(
        table, f"list_transform({_FOLDERS}, lambda one: one || {literal(f'/{file}')})"
    )


def select_of(table: Table, rows: CatalogRows, *, careful: bool = False) -> str:
    """Return the SQL that reads a table of `VIEWS` from its own files; "" without any.

    Features come without labels. `careful` is that of `populate`.
    """
    if table is PEAKS:
        examples, tokens = (
            select_of(one, rows, careful=careful) for one in (EXAMPLES, TOKENS)
        )
        counted = f"({tokens})" if tokens else None
        return peaks_of(f"({examples})", counted, by="run_id, ") if examples else ""
    paths = {
        CONTEXTS: rows.corpora.values,
        VOCAB: rows.vocabs.values,
    }.get(table, lambda: _files(rows.folders.values(), table))()
    present = sorted(path for path in map(str, paths) if os.path.isfile(path))  # noqa: PTH113 - as below
    return _select(table, _readable_first(table, present, careful=careful))


def _files(folders: Iterable[Path | str], table: Table) -> Iterable[str]:
    return (f"{folder}/{table.file}" for folder in folders)  # 10,000 times: no `Path`


def _select(table: Table, paths: Sequence[str]) -> str:
    return _select_from(table, _list_of(paths)) if paths else ""


def _select_from(table: Table, paths: str) -> str:
    key, source = _key(table), _scan(paths, options=", filename=true")
    return f'SELECT {key.sql} AS "{key.column.name}", {names_of(table)} FROM {source}'  # noqa: S608 - our own names


def names_of(table: Table) -> str:
    """Return the columns of a table, for a SELECT."""
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _readable_first(
    table: Table, present: Sequence[str], *, careful: bool = False
) -> list[str]:
    """Return the paths; one that can be read comes first, [] if none can.

    DuckDB takes the types from the first file. A damaged one further on fails the queries
    that need it, by name, and no other.
    """
    for number, path in enumerate(present):
        if _is_readable(path) and (not careful or is_bindable(table, path)):
            return [path, *present[:number], *present[number + 1 :]]
    return []


def _is_readable(path: Path | str) -> bool:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException, ValueError):  # also names that are no text
        return False
    return True


def is_bindable(table: Table, path: Path | str) -> bool:
    """Tell whether DuckDB itself, in a database apart, can read the columns of a file."""
    try:
        with duckdb.connect(":memory:", config=CONFIG) as apart:
            apart.execute(f"SELECT {names_of(table)} FROM {scan([path])} LIMIT 0")  # noqa: S608 - our own names
    except FAILURES:
        return False
    return True


def comment_all(
    connection: duckdb.DuckDBPyConnection, *, views: Literal["VIEW", "TABLE"] = "VIEW"
) -> None:
    """Put meanings and units on all tables, views, columns and macros of the catalog.

    `views` tells what those of `VIEWS` are.
    """
    for table in CATALOG:
        kind = views if table in VIEWS else "TABLE"
        said = [f"COMMENT ON {kind} {table.name} IS {literal(table.meaning)}"]
        said += [
            f'COMMENT ON COLUMN {table.name}."{column.name}" IS {literal(column.comment)}'
            for column in columns_of(table)
        ]
        connection.execute("; ".join(said))
    for macro in MACROS:
        connection.execute(
            f"COMMENT ON MACRO TABLE {macro.name} IS {literal(macro.comment)}"
        )


def scan(paths: Iterable[Path | str]) -> str:
    """Return the SQL that reads exactly these Parquet files.

    Nothing is taken from names of folders (``user=ek`` is no column), and characters of
    patterns in a path stand for themselves. Paths are absolute: a snapshot's views resolve
    against the reader's working directory.
    """
    return _scan(_list_of(paths))


def _scan(paths: str, options: str = "") -> str:
    return f"read_parquet({paths}, hive_partitioning=false{options})"


def _list_of(paths: Iterable[Path | str]) -> str:
    """Return the SQL of a list: one long text, split, is read 10 times faster than many."""
    names = [_absolute(str(path)) for path in paths]
    whole = "".join(names)
    if _SPECIAL.search(whole):
        names = [_exact(name).replace("'", "''") for name in names]
    if len(names) > 1 and "\n" not in whole:
        listed = "\n".join(names)
        return f"string_split('{listed}', chr(10))"
    listed = "', '".join(names)
    return f"['{listed}']" if names else "[]"


def _absolute(path: str) -> str:
    return path if os.path.isabs(path) else os.path.abspath(path)  # noqa: PTH117, PTH100 - 10,000 times


_SPECIAL = re.compile(r"['*?\[]")
_PATTERN = str.maketrans({letter: f"[{letter}]" for letter in "*?["})


def _exact(path: str) -> str:
    return path.translate(_PATTERN)


def literal(text: str) -> str:
    """Return `text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def names_of_relations() -> str:
    """Return what can be named in SQL, for messages."""
    return ", ".join(table.name for table in CATALOG)
