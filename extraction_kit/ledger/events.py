"""What happened, in order: one row per change, repeated refusals in one row with a count."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from extraction_kit.ledger.schema import events
from extraction_kit.views import Happening


def record(
    connection: Connection,
    run_id: str | None,
    *,
    attempt: int,
    at: datetime,
    kind: str,
    actor: str,
    text: str,
) -> None:
    """Append one event, in the transaction of the change it tells of."""
    connection.execute(
        insert(events).values(
            run_id=run_id,
            attempt=attempt,
            at=at,
            last_at=at,
            count=1,
            kind=kind,
            actor=actor,
            text=text,
            change=_next_change(connection),
        )
    )


def record_again(
    connection: Connection,
    run_id: str | None,
    *,
    attempt: int,
    at: datetime,
    kind: str,
    actor: str,
    text: str,
) -> None:
    """Count a repetition of the same event, or append its first occurrence."""
    same = select(func.max(events.c.seq)).where(
        events.c.run_id.is_not_distinct_from(run_id),  # None: no run is named
        events.c.attempt == attempt,
        events.c.kind == kind,
        events.c.text == text,
        events.c.actor == actor,
    )
    seq = connection.execute(same).scalar()
    if seq is None:
        record(
            connection, run_id, attempt=attempt, at=at, kind=kind, actor=actor, text=text
        )
        return
    connection.execute(
        update(events)
        .where(events.c.seq == seq)
        .values(count=events.c.count + 1, last_at=at, change=_next_change(connection))
    )


def _next_change(connection: Connection) -> int:
    newest = connection.execute(select(func.max(events.c.change))).scalar()
    return (newest or 0) + 1


def cursor(connection: Connection) -> int:
    """Return a number that has grown iff anything in the ledger changed."""
    return int(connection.execute(select(func.max(events.c.change))).scalar() or 0)


def of_run(connection: Connection, run_id: str) -> list[Happening]:
    """Return the events of a run, oldest first."""
    rows = connection.execute(
        select(events).where(events.c.run_id == run_id).order_by(events.c.seq)
    )
    return [
        Happening(
            seq=row.seq,
            run_id=run_id,
            attempt=row.attempt,
            at=row.at,
            kind=row.kind,
            actor=row.actor,
            text=row.text,
            count=row._mapping[events.c.count],  # noqa: SLF001 - `row.count` is a method
            last_at=row.last_at,
        )
        for row in rows
    ]


def count_of(
    connection: Connection, kind: str, run_ids: Sequence[str] | None = None
) -> dict[str, int]:
    """Return how often `kind` happened, by run (of `run_ids` only: that needs no scan)."""
    run_id = events.c.run_id
    of_runs = run_id.is_not(None) if run_ids is None else run_id.in_(run_ids)
    rows = connection.execute(
        select(run_id, func.sum(events.c.count))
        .where(events.c.kind == kind, of_runs)
        .group_by(run_id)
    )
    return {found: int(count) for found, count in rows}
