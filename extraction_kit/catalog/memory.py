"""An in-memory DuckDB, one per process, that reads files and needs no extension."""

import ctypes
import os
import threading
import weakref

import duckdb

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,  # a compute node has no network: fail at once
    "autoload_known_extensions": False,
    "python_enable_replacements": False,  # a name is a view, never a variable of this code
}


FAILURES = (duckdb.Error, RuntimeError, UnicodeDecodeError)
"""What DuckDB raises when a file is not what it seems."""


class Memory:
    """A database in memory; safe across threads and forks.

    It is opened at the first use, and again in a forked child: DuckDB's threads do not
    exist there, so the inherited one can be neither used nor closed.

    Parameters
    ----------
    *settings : str
        What is set in it, ``name = value`` in SQL.
    """

    def __init__(self, *settings: str) -> None:
        # Published files never change: parse each footer once (checked by mtime).
        self._settings = ("parquet_metadata_cache = true", *settings)
        self.lock = threading.RLock()
        self._database: duckdb.DuckDBPyConnection | None = None
        here = weakref.ref(self)

        def forget() -> None:
            memory = here()
            if memory is not None:
                memory._forget()  # noqa: SLF001 - its own method

        os.register_at_fork(after_in_child=forget)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Return a connection of its own to the database; relations keep it alive."""
        with self.lock:
            if self._database is None:
                database = duckdb.connect(":memory:", config=CONFIG)
                for setting in self._settings:
                    database.execute(f"SET GLOBAL {setting}")
                self._database = database
            return self._database.cursor()

    @property
    def opened(self) -> bool:
        """Whether the database exists in this process."""
        return self._database is not None

    def close(self) -> None:
        """Close it; the next use opens an empty one."""
        with self.lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    def _forget(self) -> None:
        if self._database is not None:
            # Closing it here crashes (duckdb 2.0.0: SIGSEGV), also at interpreter exit:
            # leave it alone for good.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
        self._database = None
        self.lock = threading.RLock()
