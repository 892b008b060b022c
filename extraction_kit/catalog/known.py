"""What a session knows of the workspace, and which of its relations must be made anew.

With ten thousand runs their rows take 0.3 s to be read, and a view 0.1 s to be made. So a
change of the ledger costs the rows that changed, and the rest is made when a query names it.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from extraction_kit.catalog.arrays import Rows, rows_table
from extraction_kit.catalog.indexes import INDEXED, Index, read_index, select_indexed
from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.relations import (
    FILES,
    VIEWS,
    CatalogRows,
    comment_all,
    in_one_step,
    make_labels,
    make_names,
    make_table,
    make_view,
    select_of,
    with_labels,
)
from extraction_kit.catalog.tables import (
    EVENTS,
    FEATURES,
    LABEL_HISTORY,
    LEDGER_TABLES,
    RUNS,
    Table,
)

_AFTER_CHANGES = (EVENTS, *VIEWS)
"""What is made anew when a query names it after a change; runs are kept up to date."""
LATER = (RUNS, *_AFTER_CHANGES)
"""What is made when a query names it."""

_BY_NAME = re.compile(r"query(_table)?\s*\(")
"""Functions of DuckDB to which the name of a relation is a value."""
_COMMENTS = re.compile(r"duckdb_|information_schema|pg_")
"""Where comments can be seen: to put them on takes longer than most questions."""


_FEW = 100
"""Folders that are looked at one by one sooner than their parent is listed."""


@dataclass(frozen=True)
class _Made:
    """What a relation was made of."""

    change: int
    index: Index | None


class Known:
    """The rows of the ledger in a session's database, and the state of its relations.

    Parameters
    ----------
    rows : CatalogRows
        All of them.
    careful : bool
        After DuckDB failed on a file that seemed readable: it is asked in a database apart
        which files it can read (see `relations.populate`), and no index is used.
    """

    def __init__(self, rows: CatalogRows, *, careful: bool = False) -> None:
        self._careful = careful
        self._rows = rows
        self._digests = _digests(rows)
        self._change = 0
        self._made: dict[Table, _Made] = {}
        self._absent = _absent(rows.folders)
        self._commented = False

    @property
    def folders(self) -> Mapping[str, Path]:
        """Run id to published folder, of the runs that the views show."""
        return {run_id: Path(folder) for run_id, folder in self._rows.folders.items()}

    @property
    def vocabs(self) -> Mapping[str, Path]:
        """Tokenizer digest to vocabulary, of the completed runs."""
        return self._rows.vocabs

    @property
    def derived(self) -> Path | None:
        """Folder of the indexes over many runs."""
        return self._rows.derived

    def look(self) -> None:
        """Have all views made anew if a folder that was absent is there again."""
        if any(os.path.isdir(folder) for folder in self._absent.values()):  # noqa: PTH112
            self._absent = _absent(self._rows.folders)
            self._change += 1

    def open(self, connection: duckdb.DuckDBPyConnection, *, first: bool) -> None:
        """Make the ledger's tables, and at first the names of all others; in one step.

        Afterwards those stay as they are until a query names them: somebody may be reading.
        """
        with in_one_step(connection):
            for table in LEDGER_TABLES:
                rows = getattr(self._rows, table.name)
                if table not in LATER or (table is RUNS and not callable(rows)):
                    make_table(connection, table, rows)
                    self._made[table] = _Made(self._change, None)
                elif first:
                    make_table(connection, table, [])
            make_labels(connection)
            if first:
                make_names(connection)

    def take(self, connection: duckdb.DuckDBPyConnection, new: CatalogRows) -> None:
        """Take over the rows that changed."""
        runs = rows_table(RUNS, new.runs)
        told = RUNS in self._made  # else all of them are read when they are named
        with in_one_step(connection):
            for table in LEDGER_TABLES:
                if table is RUNS and told:
                    _replace_runs(connection, new.changed or (), runs)
                elif table is LABEL_HISTORY:
                    if new.label_history is not self._rows.label_history:
                        make_table(connection, table, new.label_history)
                        make_labels(connection)
                elif table not in LATER and not self._is_known(table, new):
                    make_table(connection, table, getattr(new, table.name))
        folders = dict(self._rows.folders)
        for run_id in new.changed or ():
            folders.pop(run_id, None)
            self._digests.pop(run_id, None)
        self._digests |= _digests(replace(new, runs=runs))
        self._rows = replace(
            new,
            runs=self._rows.runs,
            folders=folders | dict(new.folders),
            corpora={**self._rows.corpora, **new.corpora},
            vocabs={**self._rows.vocabs, **new.vocabs},
        )
        gone = new.changed or ()
        self._absent = {one: path for one, path in self._absent.items() if one not in gone}
        self._absent |= _absent(new.folders)
        self._change += 1
        self._commented = False  # what was made anew has none

    def _is_known(self, table: Table, new: CatalogRows) -> bool:
        """Tell whether rows are columns of plain values, and those that are there already."""
        rows: Rows = getattr(new, table.name)
        return isinstance(rows, Mapping) and rows == getattr(self._rows, table.name)

    def renew(self, connection: duckdb.DuckDBPyConnection, query: str) -> bool:
        """Make those relations anew that `query` names and that are not up to date.

        Returns
        -------
        bool
            Whether the ledger was read for it, later than for the rest.
        """
        named = self._named(query)
        if FEATURES.name in named and self._rows.label_history.num_rows:
            named.add(RUNS.name)  # they tell which SAE a label is of
        late = RUNS.name in named and RUNS not in self._made
        if late:
            make_table(connection, RUNS, self._rows.runs)
            self._made[RUNS] = _Made(self._change, None)  # `take` keeps it up to date
            self._commented = False
        derived = self._rows.derived
        index = None if derived is None or self._careful else read_index(derived)
        for table in _AFTER_CHANGES:
            now = _Made(self._change, index if table in INDEXED else None)
            if table.name in named and self._made.get(table) != now:
                if table is EVENTS:
                    make_table(connection, table, self._rows.events)
                    self._commented = False
                else:
                    select = with_labels(table, self._select(table, now.index), self._rows)
                    make_view(connection, table, select, schema=FILES)
                self._made[table] = now
        if not self._commented and _COMMENTS.search(query.lower()):
            comment_all(connection)
            self._commented = True
        return late

    def _named(self, query: str) -> set[str]:
        """Return the relations that `query` may read: too many are no harm, one too few is.

        A macro reads what its text names.
        """
        names = {table.name for table in LATER}
        text = query.lower()
        if _BY_NAME.search(text):
            return names
        others = {macro.name: macro.query.lower() for macro in MACROS}
        while called := [name for name in others if name in text]:
            text = " ".join([text, *(others.pop(name) for name in called)])
        return {name for name in names if name in text}

    def _select(self, table: Table, index: Index | None) -> str:
        rows, derived = self._rows, self._rows.derived
        if index is None or derived is None:
            return select_of(table, rows, careful=self._careful)
        shown = {run_id: self._digests.get(run_id) for run_id in rows.folders}
        indexed, covered = select_indexed(table, index, folder=derived, runs=shown)
        others = {
            run_id: folder
            for run_id, folder in rows.folders.items()
            if run_id not in covered
        }
        own = select_of(table, replace(rows, folders=others))
        return " UNION ALL ".join(query for query in (indexed, own) if query)


def _absent(folders: Mapping[str, Path | str]) -> dict[str, str]:
    """Return the folders that are not there; one listing for all that are side by side."""
    if len(folders) <= _FEW:
        return {
            run_id: str(path)
            for run_id, path in folders.items()
            if not os.path.isdir(path)  # noqa: PTH112 - as below
        }
    there: dict[str, set[str]] = {}
    absent = {}
    for run_id, path in folders.items():
        folder = str(path)
        parent, _, name = folder.rpartition(os.sep)
        if parent not in there:
            there[parent] = set(os.listdir(parent)) if os.path.isdir(parent) else set()  # noqa: PTH208, PTH112 - 10,000 times
        if name not in there[parent]:
            absent[run_id] = folder
    return absent


def _digests(rows: CatalogRows) -> dict[str, str | None]:
    if rows.digests is not None:
        return dict(rows.digests)
    runs = rows_table(RUNS, rows.runs)
    run_ids, digests = (runs[name].to_pylist() for name in ("run_id", "result_digest"))
    return dict(zip(run_ids, digests, strict=True))


def _replace_runs(
    connection: duckdb.DuckDBPyConnection, changed: Collection[str], runs: pa.Table
) -> None:
    if changed:
        marks = ", ".join("?" for _ in changed)
        connection.execute(
            f"DELETE FROM {RUNS.name} WHERE run_id IN ({marks})",  # noqa: S608 - ours
            sorted(changed),
        )
    connection.register("_content", runs)
    connection.execute(f"INSERT INTO {RUNS.name} FROM _content")
    connection.unregister("_content")
