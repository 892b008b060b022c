"""SQL over all completed runs and the ledger's rows, always up to date."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from extraction_kit.catalog.memory import Memory
from extraction_kit.catalog.relations import CatalogRows, names_of_relations, populate
from extraction_kit.errors import BadQuery

__all__ = ["CatalogRows", "Session"]

_READS = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})


class Session:
    """A DuckDB in memory with the ledger's rows and the published results.

    Views list the folders of committed runs one by one, so that a run which is being
    written cannot show up. No file is locked. Usable from threads and after a fork.

    Parameters
    ----------
    rows : callable
        Returns the ledger's rows; called when `cursor` moved.
    cursor : callable
        Returns a number that grows with every change in the ledger; called before each
        query.
    """

    def __init__(self, rows: Callable[[], CatalogRows], cursor: Callable[[], int]) -> None:
        self._rows = rows
        self._cursor = cursor
        self._memory = Memory()
        self._seen = 0

    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyRelation:
        """Return the answer to one SELECT (or DESCRIBE, SUMMARIZE, EXPLAIN).

        Views: ``runs``, ``trainings``, ``events``, ``features``, ``histograms``,
        ``examples``, ``contexts``, ``vocab``; ``DESCRIBE features`` lists columns.

        Parameters
        ----------
        query : str
            One statement that reads.
        params : sequence or mapping, optional
            Values of ``?`` or ``$name`` in it.

        Returns
        -------
        duckdb.DuckDBPyRelation
            ``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()`` fetch it; without `params`
            nothing is computed before.

        Raises
        ------
        BadQuery
            DuckDB cannot run it, or it is no statement that reads.
        """
        cursor = self._fresh()
        try:
            _check_reads(cursor, query)
            return cursor.sql(query, params=params)
        except duckdb.Error as error:
            msg = (
                f"{error}\nThe catalog has: {names_of_relations()}. "
                "Type ws.sql('DESCRIBE features') for the columns of one"
            )
            raise BadQuery(msg) from error

    def close(self) -> None:
        """Free its memory; the next query opens it again."""
        self._memory.close()

    def _fresh(self) -> duckdb.DuckDBPyConnection:
        memory = self._memory
        with memory.lock:
            now = self._cursor()  # before the rows: what comes between is seen next time
            if not memory.opened or now != self._seen:
                rows = self._rows()
                populate(memory.cursor(), rows)
                self._seen = now
            return memory.cursor()


def _check_reads(cursor: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = cursor.extract_statements(query)
    if len(statements) == 1 and statements[0].type in _READS:
        return
    kinds = ", ".join(statement.type.name for statement in statements) or "nothing"
    msg = (
        f"one SELECT is allowed here, this is {kinds}. To write a file, type "
        "ws.sql('SELECT ...').write_parquet('name.parquet') or .write_csv('name.csv')"
    )
    raise BadQuery(msg)
