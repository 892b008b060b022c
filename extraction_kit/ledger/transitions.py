"""Every change of a run: one conditional UPDATE, evaluated in the store, plus one event.

``WHERE run_id AND attempt AND state IN (...) [AND nonce]``: the attempt number is the
fencing token, the state list comes from :data:`extraction_kit.lifecycle.TRANSITIONS`. No row
matched means that somebody else was faster or that the caller is fenced: nothing changes.
Nothing here reads a row, thinks, and writes it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, update

from extraction_kit.ledger import events
from extraction_kit.ledger.schema import attempts, runs
from extraction_kit.lifecycle import ACTORS, Actor, Move, after, sources_of

_ENDS = frozenset(
    {Move.COMPLETE, Move.ADOPT, Move.FAIL, Move.CANCEL, Move.INTERRUPT, Move.REAP}
)

_INSERT_RUN = insert(runs)
_INSERT_ATTEMPT = insert(attempts)


@dataclass(frozen=True, kw_only=True)
class Mover:
    """Who moves, and when: what every change records."""

    actor: Actor
    name: str  # user@host, host:pid, ...
    at: datetime

    @property
    def label(self) -> str:
        """Text for the event."""
        return f"{self.actor} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Which attempt may be moved; with a nonce, only by its claimant."""

    run_id: str
    attempt: int
    nonce: str | None = None


def move(
    connection: Connection,
    target: Target,
    what: Move,
    *,
    by: Mover,
    text: str,
    values: Mapping[str, Any] | None = None,
    kit_version: str | None = None,
) -> bool:
    """Apply a move if it is legal now.

    Parameters
    ----------
    connection : Connection
        A write transaction.
    target : Target
        The attempt (and nonce) that must be the current one.
    what : Move
        The move; its source states and its end are those of the lifecycle table.
    by : Mover
        Who asks; must be allowed to by the lifecycle table.
    text : str
        What the event says.
    values : mapping, optional
        Further columns of ``runs`` to set.
    kit_version : str, optional
        The release that the attempt must be meant for.

    Returns
    -------
    bool
        True if the run was moved.
    """
    if by.actor not in ACTORS[what]:
        msg = f"a {by.actor} may not {what} a run"
        raise ValueError(msg)
    sources = sources_of(what)
    state = after(next(iter(sources)), what)
    condition = [
        runs.c.run_id == target.run_id,
        runs.c.attempt == target.attempt,
        runs.c.state.in_(sorted(sources)),
        runs.c.deleted_at.is_(None),  # a deleted run rests until it is restored
    ]
    if target.nonce is not None:
        condition.append(runs.c.nonce == target.nonce)
    if kit_version is not None:
        condition.append(runs.c.kit_version == kit_version)
    result = connection.execute(
        update(runs).where(*condition).values(state=str(state), **(values or {}))
    )
    if result.rowcount != 1:
        return False
    if what in _ENDS:
        _stamp(connection, target, ended_at=by.at)
    events.record(
        connection,
        target.run_id,
        attempt=target.attempt,
        at=by.at,
        kind=str(what),
        actor=by.label,
        text=text,
    )
    return True


def queued(connection: Connection, target: Target, *, by: Mover) -> bool:
    """Note that the queue accepted the job; False is fine, a worker may be faster."""
    if not move(connection, target, Move.ENQUEUE, by=by, text="the queue has the job"):
        return False
    _stamp(connection, target, queued_at=by.at)
    return True


def claim(
    connection: Connection,
    target: Target,
    *,
    by: Mover,
    nonce: str,
    process: Mapping[str, Any],
    kit_version: str,
) -> bool:
    """Take an attempt; exactly one of all deliveries ever returns True.

    A worker of another release than the one that launched or resumed it gets nothing.
    """
    taken = move(
        connection,
        target,
        Move.CLAIM,
        by=by,
        text=f"claimed by {by.name}",
        values={"nonce": nonce},
        kit_version=kit_version,
    )
    if taken:
        _stamp(connection, target, claimed_at=by.at, process=dict(process))
    return taken


def next_attempt(
    connection: Connection,
    target: Target,
    what: Move,
    *,
    by: Mover,
    job_id: str,
    kit_version: str,
    text: str,
) -> bool:
    """Replace the current attempt by the next one (`Move.SUPERSEDE` or `Move.RESUME`).

    The old job id can never claim again: its attempt number is no longer the run's. The
    next one is meant for workers of `kit_version`.
    """
    number = target.attempt + 1
    values = {
        "attempt": number,
        "job_id": job_id,
        "nonce": None,
        "kit_version": kit_version,
        "cancel_requested": False,
        "error": None,
        "error_traceback": None,
    }
    if not move(connection, target, what, by=by, text=text, values=values):
        return False
    _insert_attempt(connection, target.run_id, number, job_id=job_id, at=by.at)
    return True


def insert_run(connection: Connection, row: Mapping[str, Any], *, by: Mover) -> None:
    """Insert a new run with attempt 1; racing inserts are decided by the unique indexes."""
    connection.execute(_INSERT_RUN, dict(row))
    _insert_attempt(connection, row["run_id"], 1, job_id=row["job_id"], at=by.at)
    events.record(
        connection,
        row["run_id"],
        attempt=1,
        at=by.at,
        kind="launched",
        actor=by.label,
        text=f"generation {row['generation']}, {row['n_tokens']:,} tokens",
    )


def _insert_attempt(
    connection: Connection, run_id: str, number: int, *, job_id: str, at: datetime
) -> None:
    row = {"run_id": run_id, "attempt": number, "job_id": job_id, "created_at": at}
    connection.execute(_INSERT_ATTEMPT, row)


def request_cancel(connection: Connection, target: Target, *, by: Mover) -> bool:
    """Ask the process that extracts to stop at its next batch."""
    result = connection.execute(
        update(runs)
        .where(
            runs.c.run_id == target.run_id,
            runs.c.attempt == target.attempt,
            runs.c.state == "extracting",
            runs.c.cancel_requested.is_(False),
        )
        .values(cancel_requested=True)
    )
    if result.rowcount != 1:
        return False
    events.record(
        connection,
        target.run_id,
        attempt=target.attempt,
        at=by.at,
        kind="cancel requested",
        actor=by.label,
        text="stops at the next batch",
    )
    return True


def _stamp(connection: Connection, target: Target, **values: Any) -> None:  # noqa: ANN401 - columns
    connection.execute(
        update(attempts)
        .where(attempts.c.run_id == target.run_id, attempts.c.attempt == target.attempt)
        .values(**values)
    )
