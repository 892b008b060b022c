"""SQL over all completed runs and the ledger's rows, always up to date."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb

from extraction_kit.catalog.known import Known
from extraction_kit.catalog.memory import Memory
from extraction_kit.catalog.peaks import limited, search
from extraction_kit.catalog.relations import CatalogRows, names_of_relations
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
    changes : callable, optional
        Returns the rows that changed after a cursor (`CatalogRows.changed`); without it all
        rows are read again.
    """

    def __init__(
        self,
        rows: Callable[[], CatalogRows],
        cursor: Callable[[], int],
        changes: Callable[[int], CatalogRows] | None = None,
    ) -> None:
        self._rows = rows
        self._cursor = cursor
        self._changes = changes
        self._memory = Memory()
        self._seen = 0
        self._known = Known(CatalogRows())

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
        cursor = self._fresh(query)
        try:
            _check_reads(cursor, query)
            return cursor.sql(query, params=params)
        except duckdb.Error as error:
            msg = (
                f"{error}\nThe catalog has: {names_of_relations()}. "
                "Type ws.sql('DESCRIBE features') for the columns of one"
            )
            raise BadQuery(msg) from error

    def search(self, text: str, *, k: int | None = None) -> duckdb.DuckDBPyRelation:
        """Return which features fire on a token, in all completed runs, surest first.

        Columns run_id, training_id, token, text, feature, n_examples, max_act, n_active.

        Raises
        ------
        BadQuery
            No token of these runs has this text; see `peaks.forms_of`.
        """
        query = search(self.sql, text, vocab="vocab", peaks="peaks", runs="runs")
        return self.sql(limited(query, k))

    def close(self) -> None:
        """Free its memory; the next query opens it again."""
        self._memory.close()

    def _fresh(self, query: str) -> duckdb.DuckDBPyConnection:
        memory = self._memory
        with memory.lock:
            now = self._cursor()  # before the rows: what comes between is seen next time
            if not memory.opened or now != self._seen:
                self._read(now)
            self._known.renew(memory.cursor(), query)
            return memory.cursor()

    def _read(self, now: int) -> None:
        """Take over what the ledger says: all of it, or what changed since it was read."""
        first = not self._memory.opened
        whole = first or self._changes is None or now < self._seen
        connection = self._memory.cursor()
        if whole:
            rows = self._rows()
            known = Known(rows)
            known.open(connection, first=first)
            self._known = known
        else:
            assert self._changes is not None  # noqa: S101 - for the type checker
            self._known.take(connection, self._changes(self._seen))
        self._seen = now


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
