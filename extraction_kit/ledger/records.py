"""Rows of the ledger as plain, frozen records, and the questions asked of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, insert, select, text

from extraction_kit.ledger.events import record
from extraction_kit.ledger.schema import (
    ACTIVE_SQL,
    CURRENT_ATTEMPT,
    attempts,
    runs,
    trainings,
)
from extraction_kit.ledger.transitions import Mover, Target
from extraction_kit.lifecycle import RunState


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run with its current attempt, as the ledger has it."""

    run_id: str
    training_id: str
    content_key: str
    generation: int
    state: RunState
    attempt: int
    job_id: str
    nonce: str | None
    cancel_requested: bool
    corpus_digest: str
    corpus: Mapping[str, Any]
    n_tokens: int
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    kit_version: str
    created_at: datetime
    created_by: str
    completed_at: datetime | None
    results_dir: str | None
    result_digest: str | None
    published_attempt: int | None
    summary: Mapping[str, Any] | None
    error: str | None
    error_traceback: str | None
    results_bytes: int | None
    deleted_at: datetime | None
    purged_at: datetime | None
    queued_at: datetime | None
    claimed_at: datetime | None
    ended_at: datetime | None
    process: Mapping[str, Any] | None

    @property
    def target(self) -> Target:
        """The current attempt."""
        return Target(run_id=self.run_id, attempt=self.attempt)


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """A registered training, as the ledger has it."""

    training_id: str
    digest: str
    spec: Mapping[str, Any]
    created_at: datetime
    created_by: str


@dataclass(frozen=True, kw_only=True)
class RunSize:
    """What the ledger knows of the files of one run."""

    run_id: str
    state: RunState
    corpus_digest: str
    results_bytes: int | None  # None: not completed, or by a release that did not note it
    deleted: bool
    purged: bool


_RUN_COLUMNS: Select[Any] = select(
    runs,
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
_OF_TRAINING = _RUN_COLUMNS.where(runs.c.training_id == bindparam("training_id"))
_BY_ID = _RUN_COLUMNS.where(runs.c.run_id == bindparam("run_id"))
_SHOWN = _RUN_COLUMNS.where(runs.c.deleted_at.is_(None))
_DELETED = _RUN_COLUMNS.where(runs.c.deleted_at.is_not(None))
_GENERATIONS = _OF_TRAINING.where(runs.c.content_key == bindparam("content_key")).order_by(
    runs.c.generation
)
_ACTIVE = _OF_TRAINING.where(text(ACTIVE_SQL))  # as the index has it, so that it is used


def _run(row: Row[Any]) -> RunRecord:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return RunRecord(**(values | {"state": RunState(values["state"])}))


def run(connection: Connection, run_id: str) -> RunRecord | None:
    """Return one run, or None."""
    row = connection.execute(_BY_ID, {"run_id": run_id}).first()
    return None if row is None else _run(row)


def all_runs(connection: Connection, training_id: str | None = None) -> list[RunRecord]:
    """Return all runs (of one training), the newest first; none that is deleted."""
    question = _SHOWN.order_by(runs.c.created_at.desc(), runs.c.generation.desc())
    if training_id is not None:
        question = question.where(runs.c.training_id == training_id)
    return [_run(row) for row in connection.execute(question)]


def runs_in(connection: Connection, states: Sequence[RunState]) -> list[RunRecord]:
    """Return the runs in any of `states`, oldest first; none that is deleted."""
    question = _SHOWN.where(runs.c.state.in_([str(state) for state in states]))
    return [_run(row) for row in connection.execute(question.order_by(runs.c.created_at))]


def ids_in(connection: Connection, states: Sequence[RunState]) -> list[str]:
    """Return the ids of the runs in any of `states`; none that is deleted."""
    question = select(runs.c.run_id).where(
        runs.c.state.in_([str(state) for state in states]), runs.c.deleted_at.is_(None)
    )
    return list(connection.execute(question).scalars())


def deleted_runs(connection: Connection) -> list[RunRecord]:
    """Return the deleted runs, those deleted first before the others."""
    question = _DELETED.order_by(runs.c.deleted_at, runs.c.run_id)
    return [_run(row) for row in connection.execute(question)]


def sizes(connection: Connection) -> list[RunSize]:
    """Return the sizes of all runs, deleted ones too."""
    found = connection.execute(
        select(
            runs.c.run_id,
            runs.c.state,
            runs.c.corpus_digest,
            runs.c.results_bytes,
            runs.c.deleted_at.is_not(None).label("deleted"),
            runs.c.purged_at.is_not(None).label("purged"),
        )
    )
    return [
        RunSize(
            run_id=row.run_id,
            state=RunState(row.state),
            corpus_digest=row.corpus_digest,
            results_bytes=row.results_bytes,
            deleted=bool(row.deleted),
            purged=bool(row.purged),
        )
        for row in found
    ]


def generations(
    connection: Connection, training_id: str, content_key: str
) -> list[RunRecord]:
    """Return all generations of one content, the oldest first, deleted ones too."""
    named = {"training_id": training_id, "content_key": content_key}
    return [_run(row) for row in connection.execute(_GENERATIONS, named)]


def active_run(connection: Connection, training_id: str) -> RunRecord | None:
    """Return the active run of a training; the store allows one at most."""
    row = connection.execute(_ACTIVE, {"training_id": training_id}).first()
    return None if row is None else _run(row)


def predecessor(connection: Connection, run: RunRecord) -> Mapping[str, Any] | None:
    """Return the process that claimed the newest earlier attempt, or None."""
    return connection.execute(
        select(attempts.c.process)
        .where(
            attempts.c.run_id == run.run_id,
            attempts.c.attempt < run.attempt,
            attempts.c.claimed_at.is_not(None),
        )
        .order_by(attempts.c.attempt.desc())
        .limit(1)
    ).scalar()


def training(connection: Connection, training_id: str) -> TrainingRecord | None:
    """Return one training, or None."""
    row = connection.execute(
        select(trainings).where(trainings.c.training_id == training_id)
    ).first()
    return None if row is None else TrainingRecord(**row._mapping)  # noqa: SLF001 - see above


def all_trainings(
    connection: Connection, only: Collection[str] | None = None
) -> list[TrainingRecord]:
    """Return all trainings (those whose id is in `only`), by id."""
    question = select(trainings).order_by(trainings.c.training_id)
    if only is not None:
        question = question.where(trainings.c.training_id.in_(sorted(only)))
    rows = connection.execute(question)
    return [TrainingRecord(**row._mapping) for row in rows]  # noqa: SLF001 - see above


def insert_training(connection: Connection, row: Mapping[str, Any], *, by: Mover) -> None:
    """Insert a training and its event."""
    connection.execute(insert(trainings).values(**row))
    record(
        connection,
        None,
        attempt=0,
        at=by.at,
        kind="registered",
        actor=by.label,
        text=f"training {row['training_id']}, digest {row['digest'][:12]}",
    )
