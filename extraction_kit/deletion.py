"""Deleting a run, and having it back: a mark in the ledger at once, no file touched.

What is marked leaves every list, view and card. :mod:`extraction_kit.purging` removes the
files later; until then :func:`restore` brings everything back.
"""

from pathlib import Path

from extraction_kit import refusals
from extraction_kit.atomic import unusable, write_json
from extraction_kit.errors import UnknownRun
from extraction_kit.ledger import records, tombstones
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Connection
from extraction_kit.lifecycle import ACTIVE
from extraction_kit.service import read_run
from extraction_kit.workbench import Workbench


def delete(bench: Workbench, run_id: str) -> bool:
    """Delete a run that has ended; nothing happens to one that is deleted already.

    Returns
    -------
    bool
        True if this call deleted it.

    Raises
    ------
    StillActive
        It waits, computes or publishes; nothing was changed.
    UnknownRun
        There is none.
    WorkspaceUnusable
        The results folder is not writable; nothing was changed.
    """
    if read_run(bench, run_id).state in ACTIVE:
        bench.reconcile()  # its process may be gone since somebody looked last
    by = bench.mover()
    with bench.store.write() as connection:
        run = _known(connection, run_id)
        refusal = refusals.of_delete(run)
        if refusal is not None:
            refusals.note(connection, run, refusal, by=by)
        buried = refusal is None and tombstones.bury(connection, run.target, by=by)
        if buried:  # a ledger that is lost and built anew must not bring it back
            mark = {"run_id": run_id, "deleted_at": by.at.isoformat(), "by": by.name}
            write_json(bench.paths.tombstone_of(run_id), mark)
    if refusal is not None:
        raise refusal
    return buried


def restore(bench: Workbench, run_id: str) -> bool:
    """Undo a deletion; nothing happens to a run that is not deleted.

    Returns
    -------
    bool
        True if this call restored it.

    Raises
    ------
    RunDeleted
        Its files were purged.
    UnknownRun
        There is none.
    WorkspaceUnusable
        The results folder is not writable; nothing was changed.
    """
    by = bench.mover()
    with bench.store.write() as connection:
        run = _known(connection, run_id)
        restored = tombstones.unbury(connection, run.target, by=by)
        is_gone = not restored and run.deleted_at is not None
        if not is_gone:  # under the lock: nobody deletes it again meanwhile
            _unmark(bench.paths.tombstone_of(run_id))
    if is_gone:
        raise refusals.deleted(run)
    return restored


def _unmark(mark: Path) -> None:
    try:
        mark.unlink(missing_ok=True)
    except OSError as error:
        raise unusable(mark, error) from error


def _known(connection: Connection, run_id: str) -> RunRecord:
    run = records.run(connection, run_id)
    if run is None:
        raise UnknownRun(run_id=run_id)
    return run
