"""One file that holds chosen runs with all that belongs to them, for any machine."""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from extraction_kit.atomic import write_new_file
from extraction_kit.catalog.memory import CONFIG
from extraction_kit.catalog.relations import (
    CatalogRows,
    comment_all,
    literal,
    make_macros,
    populate,
)
from extraction_kit.catalog.snapshot import STORAGE_VERSION
from extraction_kit.catalog.tables import (
    CATALOG,
    CONTEXTS,
    EVENTS,
    LABEL_HISTORY,
    LABELS,
    TRAININGS,
    VOCAB,
)
from extraction_kit.errors import BadExport, WorkspaceUnusable

# What of each table belongs to the runs that are in the file; all of the others.
_OF_THE_RUNS = {
    TRAININGS: "training_id IN (SELECT training_id FROM runs)",
    EVENTS: "run_id IN (SELECT run_id FROM runs)",
    LABELS: "sae_digest IN (SELECT sae_digest FROM runs)",
    LABEL_HISTORY: "sae_digest IN (SELECT sae_digest FROM runs)",
    CONTEXTS: "(corpus_digest, context) IN ("
    "SELECT (corpus_digest, context) FROM examples JOIN runs USING (run_id) UNION "
    "SELECT (corpus_digest, max_context) FROM features JOIN runs USING (run_id))",
    VOCAB: "tokenizer_digest IN (SELECT tokenizer_digest FROM runs)",
}


def export_runs(path: Path, rows: CatalogRows, *, run_ids: Sequence[str]) -> None:
    """Write a new DuckDB file with native tables: everything of these runs, nothing else.

    It has the tables, comments and macros of the catalog, but no path to any file: it can
    be copied anywhere and opened with DuckDB 1.4 or later. Of the corpora it holds the
    contexts that examples and maxima name.

    Parameters
    ----------
    path : Path
        Where the file appears, whole or not at all.
    rows : CatalogRows
        What the ledger says.
    run_ids : sequence of str
        Runs whose folders are in `rows`.

    Raises
    ------
    BadExport
        Something is at `path` already.
    WorkspaceUnusable
        The disk is full or the folder not writable; nothing is left behind.
    """
    try:
        done = write_new_file(path, lambda temporary: _whole(temporary, rows, run_ids))
    except (duckdb.IOException, duckdb.TransactionException) as error:
        raise WorkspaceUnusable(f"cannot write {path}: {error}") from error
    if not done:
        raise BadExport.taken(path)


def _whole(path: Path, rows: CatalogRows, run_ids: Sequence[str]) -> None:
    try:
        _build(path, rows, run_ids)
    finally:
        path.with_name(path.name + ".wal").unlink(missing_ok=True)


def _build(path: Path, rows: CatalogRows, run_ids: Sequence[str]) -> None:
    chosen = ", ".join(map(literal, run_ids))
    spill = {"temp_directory": str(path.parent)}
    with duckdb.connect(":memory:", config=CONFIG | spill) as connection:
        populate(connection, rows)
        connection.execute(f"DELETE FROM runs WHERE run_id NOT IN ({chosen})")  # noqa: S608 - quoted
        connection.execute(
            f"ATTACH {literal(str(path))} AS export (STORAGE_VERSION '{STORAGE_VERSION}')"
        )
        for table in CATALOG:
            wanted = _OF_THE_RUNS.get(table, "true")
            connection.execute(
                f"CREATE TABLE export.{table.name} AS FROM {table.name} WHERE {wanted}"
            )
        connection.execute("USE export")
        make_macros(connection)
        comment_all(connection, views="TABLE")
        connection.execute("CHECKPOINT")
        connection.execute("USE memory")
        connection.execute("DETACH export")
