"""``catalog.duckdb``: a snapshot for other programs, made again whenever it is written.

Nothing ever depends on it, and it may be deleted. A program that holds it open keeps the
file that it opened; the next one to open it sees the new file.
"""

from collections.abc import Callable
from pathlib import Path

import duckdb

from extraction_kit.atomic import write_file
from extraction_kit.catalog.memory import FAILURES
from extraction_kit.catalog.relations import CatalogRows, literal, populate
from extraction_kit.errors import WorkspaceUnusable

STORAGE_VERSION = "v1.4.0"
"""Readable by DuckDB 1.4 and later, and the first version that refuses the WAL of another
file; older ones replay it silently."""


def write_snapshot(path: Path, rows: CatalogRows) -> None:
    """Put a new snapshot at `path`, whatever was there: old, damaged or too new.

    It has the tables and views of `Session`, with units and meanings as comments
    (``SELECT column_name, comment FROM duckdb_columns()``). A program that has the old one
    open is not disturbed, but tables that it made itself there are lost: open it read-only.

    Raises
    ------
    WorkspaceUnusable
        The disk is full or the folder not writable; the old snapshot stays.
    """

    def write(temporary: Path) -> None:
        leftover = _wal(temporary)
        try:
            try:
                _build(temporary, rows)
            except FAILURES:  # a damaged file that seemed readable, or a full disk
                temporary.unlink(missing_ok=True)
                leftover.unlink(missing_ok=True)
                _build(temporary, rows, careful=True)
        except (duckdb.IOException, duckdb.TransactionException) as error:
            msg = f"cannot write {path}: {error}"
            raise WorkspaceUnusable(msg) from error
        finally:
            leftover.unlink(missing_ok=True)

    put_snapshot(path, write)


def put_snapshot(path: Path, write: bytes | Callable[[Path], None]) -> None:
    """Replace the snapshot at `path`; who has the old one open keeps it.

    Parameters
    ----------
    path : Path
        Where.
    write : bytes or callable
        The new one, or a function that writes it to the path it is given.
    """

    def made(temporary: Path) -> None:
        if isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        # A program that wrote to the old file left it: the new one could not be opened.
        _wal(path).unlink(missing_ok=True)

    write_file(path, made)


def _build(path: Path, rows: CatalogRows, *, careful: bool = False) -> None:
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        connection.execute(
            f"ATTACH {literal(str(path))} AS catalog (STORAGE_VERSION '{STORAGE_VERSION}')"
        )
        connection.execute("USE catalog")
        populate(connection, rows, careful=careful)
        connection.execute("CHECKPOINT")
        connection.execute("USE memory")
        connection.execute("DETACH catalog")


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")
