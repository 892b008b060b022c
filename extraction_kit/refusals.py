"""Why something is not launched, resumed, cancelled or deleted: in words, and as events."""

from extraction_kit.errors import (
    AlreadyCompleted,
    NothingToCancel,
    NothingToResume,
    Refused,
    RestsUntilResumed,
    RunDeleted,
    RunRefused,
    StillActive,
    TooLateToCancel,
    TrainingBusy,
)
from extraction_kit.ledger import events
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Connection
from extraction_kit.ledger.transitions import Mover
from extraction_kit.lifecycle import (
    Answer,
    RunState,
    answer_to_cancel,
    answer_to_delete,
    answer_to_resume,
)


def of_launch(run: RunRecord) -> RunRefused:
    """Return why a run that has ended is not launched (again), and what to type."""
    if run.deleted_at is not None:
        return deleted(run)
    facts = {"run_id": run.run_id, "state": str(run.state)}
    if run.state is RunState.COMPLETED and run.completed_at is not None:
        because = (
            f"completed since {run.completed_at:%Y-%m-%d %H:%M:%S} UTC (launched by "
            f"{run.created_by}), results in {run.results_dir}. A completed run is never run "
            "again: read it with run.features(). To compute it anew on purpose, launch it "
            f"with generation={run.generation + 1}"
        )
        return AlreadyCompleted(**facts, because=because)
    what = (run.error or str(run.state)).strip().splitlines()[0]
    because = (
        f"run {run.run_id} of training {run.training_id!r} is {run.state} ({what}). Nothing "
        "starts again by itself: run.resume() continues it from its last checkpoint"
    )
    return RestsUntilResumed(**facts, because=because)


def deleted(run: RunRecord) -> RunDeleted:
    """Return the refusal of everything but ``restore`` for a run that a person deleted."""
    if run.purged_at is not None:
        way_back = f"its files were purged {run.purged_at:%Y-%m-%d}, nothing brings it back"
    else:
        way_back = f"ws.restore({run.run_id!r}) brings it back as it was"
    because = (
        f"run {run.run_id} of training {run.training_id!r} (generation {run.generation}, "
        f"{run.state}) is deleted since {run.deleted_at:%Y-%m-%d %H:%M:%S} UTC: {way_back}. "
        "Deleted content is never computed again by itself: launch it with "
        f"generation={run.generation + 1} to compute it anew"
    )
    return RunDeleted(run_id=run.run_id, state=str(run.state), because=because)


def busy_with(run: RunRecord) -> TrainingBusy:
    """Return the refusal of anything else while `run` is active."""
    because = (
        f"training {run.training_id!r} is busy: run {run.run_id} (generation "
        f"{run.generation}, {run.n_tokens:,} tokens) is {run.state} since "
        f"{(run.claimed_at or run.created_at):%Y-%m-%d %H:%M:%S} UTC. Wait for it with "
        f"ws.run({run.run_id!r}).wait(), or stop it with ws.run({run.run_id!r}).cancel()"
    )
    return TrainingBusy(run_id=run.run_id, state=str(run.state), because=because)


def still_active(run: RunRecord) -> StillActive:
    """Return the refusal to resume a run that is being worked on."""
    because = (
        f"run {run.run_id} is {run.state} (job {run.job_id}): nothing to resume. Watch it with "
        "run.wait(), or stop it with run.cancel()"
    )
    return StillActive(run_id=run.run_id, state=str(run.state), because=because)


def cannot_verify(run: RunRecord) -> StillActive:
    """Return the refusal to restart what might still be computing somewhere else."""
    where = "{host} (pid {pid})".format(**(run.process or {"host": "?", "pid": "?"}))
    because = (
        f"run {run.run_id} is stuck, but its process on {where} cannot be seen from this "
        "machine. Stop it there, or type run.resume(force=True): it can write nothing more, "
        "but may hold its GPU until it ends"
    )
    return StillActive(run_id=run.run_id, state=str(run.state), because=because)


def of_resume(run: RunRecord) -> RunRefused | None:
    """Return why a run cannot be resumed; None if it can."""
    answer = answer_to_resume(run.state, deleted=run.deleted_at is not None)
    if answer is Answer.DELETED:
        return deleted(run)
    if answer is Answer.ALREADY_COMPLETED:
        return of_launch(run)
    if answer is Answer.STILL_ACTIVE:
        return still_active(run)
    if answer is Answer.NOTHING_TO_RESUME:
        return NothingToResume(
            run_id=run.run_id, state=str(run.state), because="nothing ran"
        )
    return None


def of_cancel(run: RunRecord) -> RunRefused | None:
    """Return why a run cannot be cancelled; None if it can."""
    answer = answer_to_cancel(run.state, deleted=run.deleted_at is not None)
    if answer is Answer.DELETED:
        return deleted(run)
    facts = {"run_id": run.run_id, "state": str(run.state)}
    if answer is Answer.ALREADY_COMPLETED:
        return of_launch(run)
    if answer is Answer.TOO_LATE:
        because = (
            f"run {run.run_id} has computed all its numbers and is publishing them: it "
            "completes in a moment"
        )
        return TooLateToCancel(**facts, because=because)
    if answer is Answer.NOTHING_TO_CANCEL:
        because = f"run {run.run_id} is {run.state}: nothing runs that could be cancelled"
        return NothingToCancel(**facts, because=because)
    return None


def of_delete(run: RunRecord) -> RunRefused | None:
    """Return why a run cannot be deleted; None if it can."""
    if answer_to_delete(run.state) is not Answer.STILL_ACTIVE:
        return None
    because = (
        f"run {run.run_id} is {run.state} (job {run.job_id}): only a run that has ended can be "
        "deleted. Stop it with run.cancel(), or wait for it with run.wait(), then delete it"
    )
    return StillActive(run_id=run.run_id, state=str(run.state), because=because)


def note(connection: Connection, run: RunRecord, refusal: Refused, *, by: Mover) -> None:
    """Record a refusal; the same one again is counted."""
    events.record_again(
        connection,
        run.run_id,
        attempt=run.attempt,
        at=by.at,
        kind="refused",
        actor=by.label,
        # Not its full words: they name a moment's state, and repetitions must be one event.
        text=f"{type(refusal).__name__}: {type(refusal).__doc__}",
    )
