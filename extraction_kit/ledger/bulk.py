"""Many rows at once, as plain tuples: what the catalog copies, ten thousand runs in 0.2 s.

What of a JSON column is wanted is taken out by the store itself, and times come as naive UTC:
parsing each cell into Python's objects would take twenty times as long.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    DateTime,
    Row,
    Select,
    Text,
    cast,
    select,
    text,
    type_coerce,
)

from extraction_kit.ledger.events import CHANGED
from extraction_kit.ledger.schema import (
    ACTIVE_SQL,
    CURRENT_ATTEMPT,
    attempts,
    events,
    runs,
    trainings,
)
from extraction_kit.lifecycle import RunState

_AT_ONCE = 500  # parameters of one statement
_SUMMARY = runs.c.summary
RUN_COLUMNS = (
    runs.c.run_id,
    runs.c.training_id,
    runs.c.generation,
    runs.c.state,
    runs.c.attempt,
    runs.c.job_id,
    runs.c.content_key,
    runs.c.n_tokens,
    type_coerce(runs.c.created_at, DateTime).label("created_at"),
    runs.c.created_by,
    type_coerce(attempts.c.claimed_at, DateTime).label("started_at"),
    type_coerce(attempts.c.ended_at, DateTime).label("ended_at"),
    type_coerce(runs.c.completed_at, DateTime).label("completed_at"),
    runs.c.results_dir,
    runs.c.result_digest,
    runs.c.results_bytes,
    runs.c.error,
    *(_SUMMARY[name].as_float().label(name)
      for name in ("l0", "fvu", "mse", "ce_loss_recovered")),
    *(_SUMMARY[name].as_integer().label(name)
      for name in ("n_dead", "n_dense", "statistics_format")),
    runs.c.corpus_digest,
    runs.c.corpus["tokenizer_digest"].as_string().label("tokenizer_digest"),
    runs.c.corpus["vocab"].as_string().label("vocab"),
    cast(runs.c.config, Text).label("config"),
)  # fmt: skip
_RUNS = (
    select(*RUN_COLUMNS)
    .join_from(
        runs,
        attempts,
        CURRENT_ATTEMPT,
    )
    .where(runs.c.deleted_at.is_(None))
    .order_by(runs.c.created_at.desc(), runs.c.generation.desc())
)
FILE_COLUMNS = tuple(
    column
    for column in RUN_COLUMNS
    if column.name
    in {
        "run_id", "result_digest", "statistics_format", "corpus_digest",
        "tokenizer_digest", "vocab",
    }
)  # fmt: skip
_WITH_FILES = (
    select(*FILE_COLUMNS)
    .where(runs.c.state == RunState.COMPLETED, runs.c.deleted_at.is_(None))
    .order_by(runs.c.created_at.desc(), runs.c.generation.desc())
)
_SPEC = trainings.c.spec
TRAINING_COLUMNS = (
    trainings.c.training_id,
    trainings.c.digest,
    _SPEC["sae", "digest"].as_string().label("sae_digest"),
    _SPEC["sae", "architecture"].as_string().label("architecture"),
    _SPEC["sae", "d_in"].as_integer().label("d_in"),
    _SPEC["sae", "d_sae"].as_integer().label("d_sae"),
    _SPEC["hookpoint", "hook_name"].as_string().label("hook_name"),
    _SPEC["model", "source"].as_string().label("model"),
    _SPEC["sae", "path"].as_string().label("sae_path"),
    type_coerce(trainings.c.created_at, DateTime).label("created_at"),
)
_TRAININGS = select(*TRAINING_COLUMNS).order_by(trainings.c.training_id)
EVENT_COLUMNS = (
    events.c.seq,
    events.c.run_id,
    events.c.attempt,
    type_coerce(events.c.at, DateTime).label("at"),
    events.c.kind,
    events.c.actor,
    events.c.text,
    events.c.count,
)
_DELETED = select(runs.c.run_id).where(runs.c.deleted_at.is_not(None))
_EVENTS = (
    select(*EVENT_COLUMNS)
    .where(events.c.run_id.is_(None) | events.c.run_id.not_in(_DELETED))
    .order_by(events.c.seq)
)


def run_rows(
    connection: Connection, only: Collection[str] | None = None
) -> Sequence[Row[Any]]:
    """Return the `RUN_COLUMNS` of all runs (of those in `only`), the newest first.

    None of a deleted run.
    """
    return _rows(connection, _RUNS, only)


def file_rows(
    connection: Connection, only: Collection[str] | None = None
) -> Sequence[Row[Any]]:
    """Return the `FILE_COLUMNS` of the completed runs, as `run_rows` does those of all."""
    return _rows(connection, _WITH_FILES, only)


def _rows(
    connection: Connection, question: Select[Any], only: Collection[str] | None
) -> Sequence[Row[Any]]:
    if only is None:
        return connection.execute(question).all()
    wanted = sorted(only)
    parts = (wanted[i : i + _AT_ONCE] for i in range(0, len(wanted), _AT_ONCE))
    return [
        row
        for part in parts
        for row in connection.execute(question.where(runs.c.run_id.in_(part)))
    ]


def changed_runs(connection: Connection, since: int) -> set[str]:
    """Return the runs of which something changed after `since`; some may be deleted or gone.

    `since` is an earlier `events.cursor`. Active runs are among them: their progress is no
    change of the ledger.
    """
    changed = connection.execute(CHANGED, {"since": since}).scalars()
    active = connection.execute(select(runs.c.run_id).where(text(ACTIVE_SQL))).scalars()
    return {*changed, *active}


def result_digests(connection: Connection, statistics_format: int) -> dict[str, str]:
    """Return run id and result digest of the completed runs, the oldest first.

    Only of those whose files are of `statistics_format`, and that are not deleted.
    """
    question = (
        select(runs.c.run_id, runs.c.result_digest)
        .where(
            runs.c.state == RunState.COMPLETED,
            runs.c.result_digest.is_not(None),
            runs.c.deleted_at.is_(None),
            _SUMMARY["statistics_format"].as_integer() == statistics_format,
        )
        .order_by(runs.c.completed_at, runs.c.run_id)
    )
    return {row.run_id: row.result_digest for row in connection.execute(question)}


def training_rows(connection: Connection) -> Sequence[Row[Any]]:
    """Return the `TRAINING_COLUMNS` of all trainings, by id."""
    return connection.execute(_TRAININGS).all()


def event_rows(connection: Connection) -> Sequence[Row[Any]]:
    """Return the `EVENT_COLUMNS` of all events, oldest first; none of a deleted run."""
    return connection.execute(_EVENTS).all()


def as_columns(rows: Sequence[Row[Any]], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return rows as columns; without a row, empty ones."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}
