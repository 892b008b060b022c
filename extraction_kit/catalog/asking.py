"""How a file of a published result is asked, and what is said of one that cannot be."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from extraction_kit.catalog.memory import FAILURES, Memory
from extraction_kit.catalog.publish import read_manifest
from extraction_kit.catalog.soundness import require_sound
from extraction_kit.catalog.tables import Table
from extraction_kit.errors import ResultsDamaged


def manifest_of(folder: Path) -> dict[str, Any]:
    """Return what a published run says of itself.

    Raises
    ------
    ResultsDamaged
        The manifest is missing or torn.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        msg = (
            f"the manifest in {folder} is missing or torn: type ws.verify() to see what is "
            "damaged, and put the folder back from a backup"
        )
        raise ResultsDamaged(msg)
    return manifest


def in_memory(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return the rows of a relation as one that needs their files no more."""
    return held(relation.to_arrow_table())


def held(rows: pa.Table) -> duckdb.DuckDBPyRelation:
    """Return rows that are in memory as a relation."""
    relation: duckdb.DuckDBPyRelation = memory().cursor().from_arrow(rows)
    return relation


@functools.cache
def memory() -> Memory:
    """Return the database in memory that reads the files of single runs.

    It reads a small file once: for the first rows of an order DuckDB would read it twice.
    """
    return Memory("late_materialization_max_rows = 0")


def query_of(folder: Path, table: Table, query: str) -> duckdb.DuckDBPyRelation:
    """Ask one table of a run, once it is known that its file is the published one."""
    require_sound(folder / table.file)
    return ask(folder, query)


def rows_of(folder: Path, table: Table, query: str) -> list[dict[str, Any]]:
    """Return the answer of `query_of` as dictionaries."""
    return fetched(folder, query_of(folder, table, query))


def ask(path: Path, query: str) -> duckdb.DuckDBPyRelation:
    """Return the answer to one of our own SELECTs; what cannot be read is named by `path`."""
    with readable(path):
        return memory().cursor().sql(query)


def fetched(path: Path, found: duckdb.DuckDBPyRelation) -> list[dict[str, Any]]:
    """Return the rows of an answer as dictionaries."""
    with readable(path):
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise `ResultsDamaged`, which names `path`, for whatever cannot be read in here."""
    try:
        yield
    except (*FAILURES, pa.ArrowException, OSError, ValueError) as error:
        msg = (
            f"{path} cannot be read: {error}. Type ws.verify() (or `extraction-kit verify`) "
            "to see which files are damaged"
        )
        raise ResultsDamaged(msg) from error
