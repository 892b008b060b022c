"""Deleting, restoring and purging: a mark beside the state, one conditional UPDATE each.

The state of a deleted run stays what it was, and no move leads anywhere while the mark is
set (:func:`extraction_kit.ledger.transitions.move`). The row stays for good: it is what says
that this content was computed once.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from extraction_kit.ledger import events
from extraction_kit.ledger.schema import runs
from extraction_kit.ledger.transitions import Mover, Target
from extraction_kit.lifecycle import ENDED

_SHOWN = runs.c.deleted_at.is_(None)
_DELETED = runs.c.deleted_at.is_not(None)
_KEPT = runs.c.purged_at.is_(None)


def bury(connection: Connection, target: Target, *, by: Mover) -> bool:
    """Mark an ended run as deleted; False if it is not this attempt's, active or marked."""
    condition = (
        runs.c.attempt == target.attempt,
        runs.c.state.in_(sorted(ENDED)),
        _SHOWN,
    )
    return _set(
        connection, target, *condition, by=by, kind="deleted",
        text="its files stay until they are purged", deleted_at=by.at,
    )  # fmt: skip


def unbury(connection: Connection, target: Target, *, by: Mover) -> bool:
    """Take the mark away again; False if there is none, or the files are purged."""
    return _set(
        connection, target, _DELETED, _KEPT, by=by, kind="restored",
        text="it is as it was before it was deleted", deleted_at=None,
    )  # fmt: skip


def give_up(connection: Connection, target: Target, *, before: datetime, by: Mover) -> bool:
    """Say that the files of a run deleted before a moment are to go; nothing restores it then."""
    return _set(
        connection, target, _DELETED, _KEPT, runs.c.deleted_at <= before, by=by,
        kind="purged", text="its files are removed", purged_at=by.at,
    )  # fmt: skip


def _set(
    connection: Connection,
    target: Target,
    *condition: ColumnElement[bool],
    by: Mover,
    kind: str,
    text: str,
    **values: Any,  # noqa: ANN401 - columns
) -> bool:
    changed = connection.execute(
        update(runs).where(runs.c.run_id == target.run_id, *condition).values(**values)
    )
    if changed.rowcount != 1:
        return False
    events.record(
        connection,
        target.run_id,
        attempt=target.attempt,
        at=by.at,
        kind=kind,
        actor=by.label,
        text=text,
    )
    return True


def corpora_in_use(connection: Connection, but: Collection[str] = ()) -> set[str]:
    """Return the digests of the corpora of all runs that are not purged, nor in `but`."""
    found = connection.execute(select(runs.c.run_id, runs.c.corpus_digest).where(_KEPT))
    return {digest for run_id, digest in found if run_id not in but}
