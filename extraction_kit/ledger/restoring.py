"""Make the ledger say what a published result says, where a row is missing or contradicts it.

Rule 1: the result on disk wins over the row; what it does not tell is kept.

Rule 2: a run that is not completed becomes so by `Move.ADOPT`, like everywhere else.

Rule 3: a training that is registered soundly never changes under its id.

Rule 4: nothing is deleted, and an attempt number never goes back.

Rule 5: a run that a person deleted stays deleted, and is left as it is.

Rows are read as plain values here, so that one damaged cell does not stop the whole repair.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Connection,
    Table,
    Text,
    cast,
    insert,
    select,
    update,
)

from extraction_kit.errors import TrainingConflict
from extraction_kit.ledger.events import record
from extraction_kit.ledger.schema import Utc, attempts, runs, trainings
from extraction_kit.ledger.transitions import Mover, Target, move
from extraction_kit.lifecycle import Actor, Move, RunState, sources_of

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """What a published result says of its run."""

    run_id: str
    facts: Row  # columns of `runs` that the result knows
    defaults: Row  # columns that count only where the ledger has nothing
    training: Row  # a row of `trainings`

    @property
    def attempt(self) -> int:
        """The attempt that published."""
        return int(self.facts["published_attempt"])


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the ledger has of one run: plain values, None where it has nothing."""

    run: Row | None = None
    attempts: Mapping[int, str] = field(default_factory=dict)  # number to job id
    training: Row | None = None


def look(connection: Connection, run_id: str | None = None) -> dict[str, Seen]:
    """Return what the ledger has of one run, or of all, by run; trainings are left out."""
    jobs: dict[str, dict[int, str]] = {}
    for row in _rows(connection, attempts, run_id):
        jobs.setdefault(row["run_id"], {})[row["attempt"]] = row["job_id"]
    found = {row["run_id"]: row for row in _rows(connection, runs, run_id)}
    return {
        one: Seen(run=found.get(one), attempts=jobs.get(one, {}))
        for one in found.keys() | jobs.keys()
    }


def registered(connection: Connection) -> dict[str, Row]:
    """Return the rows of all trainings, by id."""
    return {row["training_id"]: row for row in _rows(connection, trainings)}


def _rows(connection: Connection, table: Table, run_id: str | None = None) -> list[Row]:
    columns = [
        cast(one, Text).label(one.name) if isinstance(one.type, (JSON, Utc)) else one
        for one in table.c
    ]
    question = select(*columns)
    if run_id is not None:
        question = question.where(table.c.run_id == run_id)
    return [
        {one.name: _value(one.type, row[one.name]) for one in table.c}
        for row in connection.execute(question).mappings()
    ]


def _value(kind: object, raw: Any) -> Any:  # noqa: ANN401 - cells
    """Return a cell as the ledger's other readers see it; as found if it cannot be read."""
    if isinstance(raw, str):
        with suppress(ValueError):
            if isinstance(kind, JSON):
                return json.loads(raw)
            if isinstance(kind, Utc):
                return datetime.fromisoformat(raw).replace(tzinfo=UTC)
    return raw


# --- what does not fit ----------------------------------------------------------------------


def contradiction(published: PublishedRun, seen: Seen) -> str:
    """Return in words how the ledger contradicts a published result; empty if it does not."""
    if is_deleted(seen):
        return ""
    if seen.run is None:
        words = "the ledger has no row of it"
        return words if seen.training else f"{words}, nor of its training"
    parts = [
        _otherwise(name, seen.run[name], value)
        for name, value in _changes(published, seen.run).items()
    ]
    if seen.run["state"] != RunState.COMPLETED:
        parts.insert(0, f"the ledger says {seen.run['state']}, its result is published")
    if _number(published, seen) not in seen.attempts:
        parts.append(f"the row of attempt {_number(published, seen)} is missing")
    if seen.training is None:
        parts.append("the row of its training is missing")
    elif is_damaged(seen.training):
        parts.append("the row of its training contradicts itself")
    return "; ".join(parts)


def is_deleted(seen: Seen) -> bool:
    """Tell whether a person deleted the run."""
    return seen.run is not None and seen.run["deleted_at"] is not None


def _otherwise(name: str, recorded: object, published: object) -> str:
    if isinstance(published, Mapping):
        return f"{name} is not the published one"
    digest = name.endswith("digest")
    there, here = (str(one)[:12] if digest else one for one in (recorded, published))
    return f"{name} is {there}, published is {here}"


def _changes(published: PublishedRun, run: Row) -> dict[str, Any]:
    """Return the columns that a known row has otherwise than published."""
    changes = {name: value for name, value in published.facts.items() if run[name] != value}
    if run["state"] == RunState.COMPLETED and not isinstance(run["completed_at"], datetime):
        changes["completed_at"] = published.defaults["completed_at"]
    if run["attempt"] < published.attempt:
        changes["attempt"] = published.attempt
        changes["job_id"] = published.defaults["job_id"]
    return changes


def _number(published: PublishedRun, seen: Seen) -> int:
    """Return the attempt number that the run must have; it never goes back."""
    if seen.run is None:  # attempts may be left, each of them fenced some process
        return max(published.attempt, *seen.attempts, 0)
    return max(published.attempt, int(seen.run["attempt"]))


def is_damaged(training: Row) -> bool:
    """Tell whether the row of a training contradicts itself, so that it proves nothing."""
    spec = training["spec"]
    return (
        not isinstance(spec, dict)
        or spec.get("digest") != training["digest"]
        or spec.get("training_id") != training["training_id"]
    )


# --- the write ------------------------------------------------------------------------------


def restore(
    connection: Connection, published: PublishedRun, *, seen: Seen, by: Mover
) -> bool:
    """Make the rows of a run agree with its published result.

    Parameters
    ----------
    connection : Connection
        A write transaction.
    published : PublishedRun
        What the result says.
    seen : Seen
        What the decision to restore was based on.
    by : Mover
        Who repairs; named in the event.

    Returns
    -------
    bool
        False if the ledger is not as `seen` any more, or agrees: nothing was changed.

    Raises
    ------
    TrainingConflict
        The training is registered soundly with other content.
    LedgerConflict
        From the transaction: another row holds the identity or the job id of the run.
    """
    why = contradiction(published, seen)
    if not why or look_at(connection, published) != seen:
        return False
    _restore_training(connection, published.training, seen.training)
    if seen.run is None:
        _insert(connection, published, seen)
    else:
        _adopt(connection, published, seen.run, by=by)
        _correct(connection, published, seen.run)
    _require_attempt(connection, published, seen)
    where = published.facts["results_dir"]
    record(
        connection,
        published.run_id,
        attempt=_number(published, seen),
        at=by.at,
        kind="repaired",
        actor=by.label,
        text=f"{why}: restored from {where}{_as_deleted(published, seen)}",
    )
    return True


def _as_deleted(published: PublishedRun, seen: Seen) -> str:
    deleted = seen.run is None and published.defaults["deleted_at"] is not None
    return ", deleted as a person had it" if deleted else ""


def look_at(connection: Connection, published: PublishedRun) -> Seen:
    """Return what the ledger has of one published run now."""
    seen = look(connection, published.run_id).get(published.run_id, Seen())
    return replace(
        seen, training=registered(connection).get(published.facts["training_id"])
    )


def _restore_training(connection: Connection, row: Row, known: Row | None) -> None:
    if known is None:
        connection.execute(insert(trainings).values(**row))
    elif is_damaged(known):
        connection.execute(
            update(trainings)
            .where(trainings.c.training_id == row["training_id"])
            .values(digest=row["digest"], spec=row["spec"])
        )
    elif known["digest"] != row["digest"]:
        raise TrainingConflict(
            training_id=row["training_id"],
            registered=known["digest"][:12],
            offered=row["digest"][:12],
        )


def _job_id(published: PublishedRun, seen: Seen) -> str:
    number = _number(published, seen)
    if number in seen.attempts:
        return seen.attempts[number]
    if seen.run is not None and seen.run["attempt"] == number:
        return str(seen.run["job_id"])
    return str(published.defaults["job_id"])


def _insert(connection: Connection, published: PublishedRun, seen: Seen) -> None:
    values = {
        **published.defaults,
        **published.facts,
        "state": str(RunState.COMPLETED),
        "attempt": _number(published, seen),
        "job_id": _job_id(published, seen),
        "cancel_requested": False,
        "results_bytes": published.defaults["results_bytes"],
    }
    connection.execute(insert(runs).values(run_id=published.run_id, **values))


def _adopt(connection: Connection, published: PublishedRun, run: Row, *, by: Mover) -> None:
    if run["state"] in sources_of(Move.ADOPT):
        move(
            connection,
            Target(run_id=published.run_id, attempt=run["attempt"]),
            Move.ADOPT,
            by=replace(by, actor=Actor.RECONCILER),
            text=f"attempt {published.attempt} had published the result",
            values=_completion(published),
        )


def _correct(connection: Connection, published: PublishedRun, run: Row) -> None:
    values = _changes(published, run)
    if run["state"] not in set(RunState):  # no move leads out of what is no state
        values |= {"state": str(RunState.COMPLETED), **_completion(published)}
    if values:
        connection.execute(
            update(runs).where(runs.c.run_id == published.run_id).values(**values)
        )


def _completion(published: PublishedRun) -> Row:
    return {
        "completed_at": published.defaults["completed_at"],
        "error": None,
        "error_traceback": None,
        "cancel_requested": False,
        "results_bytes": published.defaults["results_bytes"],
    }


def _require_attempt(connection: Connection, published: PublishedRun, seen: Seen) -> None:
    number = _number(published, seen)
    if number not in seen.attempts:
        connection.execute(
            insert(attempts).values(
                run_id=published.run_id,
                attempt=number,
                job_id=_job_id(published, seen),
                created_at=published.facts["created_at"],
                ended_at=published.defaults["completed_at"],
            )
        )
