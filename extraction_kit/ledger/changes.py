"""What changed in the ledger since somebody looked: of each run only what a list shows.

Configs, settings and tracebacks stay where they are: a thousand rows are read in the time
that a few dozen whole records take.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, select

from extraction_kit.ledger.events import CHANGED, cursor
from extraction_kit.ledger.schema import CURRENT_ATTEMPT, attempts, beats, runs
from extraction_kit.lifecycle import RunState
from extraction_kit.liveness import Beat

_ERROR_CHARACTERS = 400  # the first lines; the whole error is in the run's own record


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """The columns of a run, with its current attempt, that a list of runs shows."""

    run_id: str
    training_id: str
    generation: int
    state: RunState
    attempt: int
    job_id: str
    n_tokens: int
    cancel_requested: bool
    created_at: datetime
    created_by: str
    completed_at: datetime | None
    summary: Mapping[str, Any] | None
    results_bytes: int | None
    error: str | None  # its beginning
    deleted: bool
    queued_at: datetime | None
    claimed_at: datetime | None
    ended_at: datetime | None
    process: Mapping[str, Any] | None


_SAME = ("run_id", "training_id", "generation", "state", "attempt", "job_id", "n_tokens",
         "cancel_requested", "created_at", "created_by", "completed_at", "summary",
         "results_bytes")  # fmt: skip
_LISTED = select(
    *(runs.c[name] for name in _SAME),
    func.substr(runs.c.error, 1, _ERROR_CHARACTERS).label("error"),
    runs.c.deleted_at.is_not(None).label("deleted"),
    attempts.c.queued_at,
    attempts.c.claimed_at,
    attempts.c.ended_at,
    attempts.c.process,
).join_from(
    runs,
    attempts,
    CURRENT_ATTEMPT,
)
# Built once: building a statement takes longer than SQLite takes to answer it.
_SHOWN = _LISTED.where(runs.c.deleted_at.is_(None))
_CHANGED = _LISTED.where(runs.c.run_id.in_(CHANGED))


def listed_runs(
    connection: Connection, since: int | None = None
) -> tuple[int, list[ListedRun]]:
    """Return the runs that changed, deleted ones among them, and the cursor for next time.

    Parameters
    ----------
    connection : Connection
        Of the ledger.
    since : int, optional
        An earlier cursor. None returns all runs that are not deleted.
    """
    now = cursor(connection)  # first: what happens meanwhile is told twice, not never
    if since is None:
        found = connection.execute(_SHOWN)
    elif since == now:
        return now, []
    else:
        found = connection.execute(_CHANGED, {"since": since})
    return now, [
        ListedRun(
            **{
                **row._mapping,  # noqa: SLF001 - SQLAlchemy's public name for it
                "state": RunState(row.state),
                "deleted": bool(row.deleted),
            }
        )
        for row in found
    ]


def newest_beats(connection: Connection) -> dict[tuple[str, int], Beat]:
    """Return all beats that are rows, by run and attempt: one question for all of them."""
    found = connection.execute(select(beats))
    return {(row.run_id, row.attempt): Beat.from_dict(row.beat) for row in found}
