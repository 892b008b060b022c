"""SQL over all completed runs and the ledger's rows, always up to date."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import duckdb

from extraction_kit.catalog.answers import Answer
from extraction_kit.catalog.indexes import discard, discard_unreadable
from extraction_kit.catalog.known import Known
from extraction_kit.catalog.memory import FAILURES, Memory
from extraction_kit.catalog.peaks import limited, search
from extraction_kit.catalog.relations import CatalogRows, names_of_relations
from extraction_kit.catalog.soundness import find_damage
from extraction_kit.catalog.texts import tokens_of
from extraction_kit.errors import BadQuery, ExtractionKitError, ResultsDamaged

__all__ = ["CatalogRows", "Session"]

_READS = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})
# Errors of a statement, whatever the files hold: no file is looked at for them.
_OF_THE_STATEMENT = (
    duckdb.ParserException,
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.ConversionException,
    duckdb.OutOfRangeException,
    duckdb.OutOfMemoryException,
    duckdb.InterruptException,
)
_NAMED = 3  # damaged files in one message
_SEARCHED = 2**31  # bytes read after an error that names no file: 2 s or so


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

        Tables: ``runs``, ``trainings``, ``events``, ``labels``, ``label_history``,
        ``features``, ``histograms``,
        ``examples``, ``logits``, ``neighbours``, ``tokens``, ``peaks``, ``contexts``,
        ``vocab``;
        ``DESCRIBE features`` lists columns. Questions with a name:
        ``FROM top_features('<run id>', 50)`` and those of
        :mod:`extraction_kit.catalog.macros`.

        Parameters
        ----------
        query : str
            One statement that reads.
        params : sequence or mapping, optional
            Values of ``?`` or ``$name`` in it.

        Returns
        -------
        DuckDBPyRelation
            ``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()`` fetch it; without `params`
            nothing is computed before. Where a file is damaged, fetching raises
            `ResultsDamaged` with its name.

        Raises
        ------
        BadQuery
            DuckDB cannot run it, or it is no statement that reads.
        ResultsDamaged
            A file that it reads is damaged; run and file are named.
        """
        cursor = self._fresh(query)
        try:
            _check_reads(cursor, query)
            relation = cursor.sql(query, params=params)
        except FAILURES as error:
            raise self._explained(error) from error
        # It does all that a relation does; the types of duckdb say what that is.
        return cast("duckdb.DuckDBPyRelation", Answer(relation, self._explained))

    def search(self, text: str, *, k: int | None = None) -> duckdb.DuckDBPyRelation:
        """Return which features fire on a token, in all completed runs, surest first.

        Columns run_id, training_id, token, text, feature, n_examples, max_act, n_active.

        Raises
        ------
        BadQuery
            No token of these runs has this text; see `texts.forms_of`.
        ResultsDamaged
            A file that it reads is damaged; run and file are named.
        """
        self._fresh("")
        tokens = tokens_of(text, self._known.vocabs)
        return self.sql(limited(search(tokens, peaks="peaks", runs="runs"), k))

    def close(self) -> None:
        """Free its memory; the next query opens it again."""
        self._memory.close()

    def _fresh(self, query: str) -> duckdb.DuckDBPyConnection:
        memory = self._memory
        with memory.lock:
            now = self._cursor()  # before the rows: what comes between is seen next time
            if not memory.opened or now != self._seen:
                self._read(now)
            self._known.look()
            late = self._renew(query)
            if late and self._cursor() != now:  # runs that folders do not know of
                self._read(self._cursor())
                self._renew(query)
            return memory.cursor()

    def _renew(self, query: str) -> bool:
        """Have what `query` names made anew; see `Known.renew`."""
        try:
            return self._known.renew(self._memory.cursor(), query)
        except FAILURES:
            discard_unreadable(self._known.derived)
            self._memory.close()
            self._read(self._cursor(), careful=True)
            return self._known.renew(self._memory.cursor(), query)

    def _read(self, now: int, *, careful: bool = False) -> None:
        """Take over what the ledger says: all of it, or what changed since it was read."""
        first = not self._memory.opened
        connection = self._memory.cursor()
        if first or self._changes is None or now < self._seen:
            known = Known(self._rows(), careful=careful)
            known.open(connection, first=first)
            self._known = known
        else:
            self._known.take(connection, self._changes(self._seen))
        self._seen = now

    def _explained(self, error: Exception) -> Exception:
        """Return the error that says what a person can do about `error`."""
        if isinstance(error, ExtractionKitError):
            return error
        if not isinstance(error, _OF_THE_STATEMENT):
            # A file may have come or gone, and after an error inside DuckDB itself its
            # database answers nothing any more: the next query begins anew.
            self.close()
            damage = _damage(error, self._known.folders)
            if damage:
                return ResultsDamaged(
                    f"{damage}\nDuckDB says: {error}\nType ws.verify(): it lists all that is "
                    "damaged, and the views leave those runs out from then on. Until then "
                    "ask for the other ones, for example WHERE run_id <> '...'"
                )
            if discard(self._known.derived):
                return ResultsDamaged(
                    f"DuckDB says: {error}\nNo file of a run explains it: the index over many "
                    "runs may be damaged, and was removed. Ask again: each run is read from "
                    "its own files until the index is built anew"
                )
            text = (
                f"{error}\nIf the query is right, a file may be damaged: type ws.verify()"
            )
        else:
            text = str(error)
        return BadQuery(
            f"{text}\nThe catalog has: {names_of_relations()}. "
            "Type ws.sql('DESCRIBE features') for the columns of one"
        )


def _damage(error: Exception, folders: Mapping[str, Path]) -> str:
    """Return which files of which runs are damaged, a line each; those named in `error` first."""
    text = str(error)
    named = {run: folder for run, folder in folders.items() if str(folder) in text}
    found = list(islice(find_damage(named), _NAMED)) if named else []
    found = found or list(islice(find_damage(folders, max_bytes=_SEARCHED), 1))
    return "\n".join(f"{_run_of(problem, folders)}: {problem}" for problem in found)


def _run_of(problem: str, folders: Mapping[str, Path]) -> str:
    return next(
        f"run {run}" for run, folder in folders.items() if problem.startswith(f"{folder}/")
    )


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
