"""Many rows at once in a real ledger, as it has them after months."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert

from extraction_kit import Workspace, service
from extraction_kit.ledger import schema
from extraction_kit.lifecycle import digest_of
from extraction_kit.workbench import Workbench

BEGAN = datetime.now(UTC) - timedelta(days=90)
Row = Mapping[str, Any]


def insert_rows(
    bench: Workbench,
    *,
    trainings: Iterable[Row],
    runs: Iterable[Row],
    attempts: Iterable[Row],
    events: Iterable[Row],
) -> None:
    """Insert rows in one step; the order of the events is that of the ledger's changes."""
    told = [{**event, "change": number} for number, event in enumerate(events, 1000)]
    with bench.store.write() as connection:
        for table, rows in (
            (schema.trainings, trainings), (schema.runs, runs),
            (schema.attempts, attempts), (schema.events, told),
        ):  # fmt: skip
            connection.execute(insert(table), list(rows))


def trainings_like(workspace: Workspace, training_id: str, n: int) -> dict[str, Row]:
    """Return rows of `n` trainings that are like a registered one, by their ids."""
    spec = workspace.training(training_id).to_dict()
    names = (f"training-{number:03d}" for number in range(n))
    return {
        name: {"training_id": name, "digest": digest_of(name),
               "spec": spec | {"training_id": name}, "created_at": BEGAN,
               "created_by": "me@here"}
        for name in names
    }  # fmt: skip


def columns_of(workspace: Workspace, run_id: str) -> dict[str, Any]:
    """Return the row of a run, for others that are like it."""
    model = service.read_run(workspace._bench, run_id)
    return {name: getattr(model, name) for name in schema.runs.c.keys()}  # noqa: SIM118 - SQLAlchemy's
