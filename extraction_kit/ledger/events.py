"""What happened, in order: one row per change, repeated refusals in one row with a count."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from extraction_kit.ledger.schema import events
from extraction_kit.views import Happening

# Built once: building a statement takes longer than SQLite takes to carry it out.
_NEXT_CHANGE = select(func.coalesce(func.max(events.c.change), 0) + 1).scalar_subquery()
_APPEND = insert(events).values(change=_NEXT_CHANGE)
_SAME = select(func.max(events.c.seq)).where(
    events.c.run_id.is_not_distinct_from(bindparam("run_id")),  # None: no run is named
    events.c.attempt == bindparam("attempt"),
    events.c.kind == bindparam("kind"),
    events.c.text == bindparam("text"),
    events.c.actor == bindparam("actor"),
)
_COUNT = (
    update(events)
    .where(events.c.seq == bindparam("same"))
    .values(count=events.c.count + 1, last_at=bindparam("now"), change=_NEXT_CHANGE)
)
CHANGED = select(events.c.run_id).where(
    events.c.change > bindparam("since"), events.c.run_id.is_not(None)
)
"""The ids of the runs of which something happened after `since`, an earlier `cursor`."""


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
        _APPEND,
        {
            "run_id": run_id,
            "attempt": attempt,
            "at": at,
            "last_at": at,
            "count": 1,
            "kind": kind,
            "actor": actor,
            "text": text,
        },
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
    named: dict[str, Any] = {
        "run_id": run_id,
        "attempt": attempt,
        "kind": kind,
        "text": text,
        "actor": actor,
    }
    same = connection.execute(_SAME, named).scalar()
    if same is None:
        record(connection, at=at, **named)
    else:
        connection.execute(_COUNT, {"same": same, "now": at})


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


def newest_of(
    connection: Connection, kinds: Sequence[str], run_ids: Collection[str] | None = None
) -> dict[str, tuple[str, str]]:
    """Return kind and text of the newest event among `kinds`, by run (of `run_ids` only)."""
    run_id = events.c.run_id
    of_runs = run_id.is_not(None) if run_ids is None else run_id.in_(sorted(run_ids))
    rows = connection.execute(
        select(run_id, events.c.kind, events.c.text)
        .where(events.c.kind.in_(kinds), of_runs)
        .order_by(events.c.change)
    )
    return {run_id: (kind, text) for run_id, kind, text in rows}
