"""The rules a person relies on: register, launch, resume, cancel.

Each decision is made inside one write transaction of the ledger, from the tables of
:mod:`extraction_kit.lifecycle`; the unique indexes of the store decide between processes
that race. What was decided is committed before the queue hears of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extraction_kit.config import ExtractionConfig
from extraction_kit.corpora import Corpus
from extraction_kit.errors import (
    AlreadyCompleted,
    GenerationUnavailable,
    LedgerConflict,
    NothingToCancel,
    NothingToResume,
    Refused,
    RestsUntilResumed,
    RunRefused,
    StillActive,
    TooLateToCancel,
    TrainingBusy,
    TrainingConflict,
    UnknownRun,
)
from extraction_kit.ledger import events, records
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Connection
from extraction_kit.ledger.transitions import (
    insert_run,
    move,
    next_attempt,
    queued,
    request_cancel,
)
from extraction_kit.lifecycle import (
    ACTIVE,
    CLAIMED,
    Actor,
    Answer,
    Move,
    RunState,
    answer_to_cancel,
    answer_to_launch,
    answer_to_resume,
    job_id_of,
    run_id_of,
)
from extraction_kit.trainings import Training
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench, corpus_record

# --- trainings ------------------------------------------------------------------------------


def register(bench: Workbench, training: Training) -> bool:
    """Register a training.

    Returns
    -------
    bool
        True if it is new; False if the same content is registered under this id already.

    Raises
    ------
    TrainingConflict
        The id is registered with other content; both digests are named.
    """
    by = bench.mover()
    row = {
        "training_id": training.training_id,
        "digest": training.digest,
        "spec": training.to_dict(),
        "created_at": by.at,
        "created_by": by.name,
    }
    with bench.store.write() as connection:
        known = records.training(connection, training.training_id)
        if known is None:
            records.insert_training(connection, row, by=by)
    if known is not None and known.digest != training.digest:
        raise TrainingConflict(
            training_id=training.training_id,
            registered=known.digest[:12],
            offered=training.digest[:12],
        )
    return known is None


# --- launch ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Launched:
    """What a launch came to."""

    run_id: str
    answer: Answer
    refusal: RunRefused | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """What one wants computed: the identity of a run, without its generation."""

    training: Training
    corpus: Corpus
    config: ExtractionConfig
    key: str


def content_of(
    bench: Workbench, training: Training, *, corpus: Corpus, config: ExtractionConfig
) -> Content:
    """Put training, corpus and config together under their content key."""
    key = bench.content_key(training, corpus, config)
    return Content(training=training, corpus=corpus, config=config, key=key)


def launch(
    bench: Workbench, content: Content, *, generation: int | None = None
) -> Launched:
    """Launch, attach to, or find the run of `content`: the same call each time.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    content : Content
        What to compute.
    generation : int, optional
        A person's explicit wish to compute completed content anew.

    Returns
    -------
    Launched
        Which run it is and what was decided. A completed or resting run comes with the
        refusal that explains why nothing was launched.

    Raises
    ------
    TrainingBusy
        Another run of the training is active.
    GenerationUnavailable
        The generation asked for does not follow a completed one.
    ServerNotStarted, WorkerNotStarted, WorkspaceUnusable
        Nothing could be run here; nothing was made.
    """
    with bench.store.read() as connection:
        found = _find(connection, content, generation)
    if found is None:  # only new work needs space, a server and a worker; before any row
        bench.require_space()
        bench.start_processes()
    try:
        launched = _decide(bench, content, generation)
    except LedgerConflict:  # somebody inserted between our look and our insert: look again
        launched = _decide(bench, content, generation)
    if launched.answer is Answer.NEW_RUN:
        send(bench, launched.run_id)
    return launched


def _decide(bench: Workbench, content: Content, generation: int | None) -> Launched:
    by = bench.mover(Actor.LAUNCHER)
    refusal: RunRefused | None = None
    with bench.store.write() as connection:
        run = _find(connection, content, generation)
        answer = answer_to_launch(None if run is None else run.state)
        if run is None:
            busy = records.active_run(connection, content.training.training_id)
            if busy is not None:
                run, refusal = busy, busy_with(busy)
            else:
                row = _new_row(bench, content, generation or 1)
                insert_run(connection, row, by=by)
                return Launched(run_id=row["run_id"], answer=answer)
        elif answer in {Answer.RETURN, Answer.REST}:
            refusal = refusal_of(run)
        if refusal is not None:
            _note_refusal(connection, run, refusal, by_label=by.label, at=by.at)
    if isinstance(refusal, TrainingBusy):
        raise refusal
    return Launched(run_id=run.run_id, answer=answer, refusal=refusal)


def _find(
    connection: Connection, content: Content, generation: int | None
) -> RunRecord | None:
    """Return the run that a launch is about; None if it is a new one."""
    known = records.generations(connection, content.training.training_id, content.key)
    if generation is None:
        completed = [run for run in known if run.state is RunState.COMPLETED]
        best = completed or known
        return best[-1] if best else None
    for run in known:
        if run.generation == generation:
            return run
    _require_predecessor(known, generation, content)
    return None


def _require_predecessor(
    known: Sequence[RunRecord], generation: int, content: Content
) -> None:
    latest = known[-1] if known else None
    if generation == 1 and latest is None:
        return
    if (
        latest is not None
        and latest.state is RunState.COMPLETED
        and generation == latest.generation + 1
    ):
        return
    training_id = content.training.training_id
    if latest is None:
        state, is_so = (
            "none",
            "nothing of this content was launched yet: leave generation out",
        )
    elif latest.state is RunState.COMPLETED:
        state = str(latest.state)
        is_so = f"generation {latest.generation + 1} is the next one"
    else:
        state = str(latest.state)
        is_so = (
            f"generation {latest.generation} is {state}: finish it with run.resume() first"
        )
    raise GenerationUnavailable(
        run_id=run_id_of(training_id, content.key, generation),
        state=state,
        because=f"generation={generation} of training {training_id!r} cannot be made: {is_so}",
    )


def _new_row(bench: Workbench, content: Content, generation: int) -> dict[str, Any]:
    training_id = content.training.training_id
    by = bench.mover()
    return {
        "run_id": run_id_of(training_id, content.key, generation),
        "training_id": training_id,
        "content_key": content.key,
        "generation": generation,
        "state": str(RunState.REQUESTED),
        "attempt": 1,
        "job_id": job_id_of(training_id, content.key, generation=generation, attempt=1),
        "cancel_requested": False,
        "corpus_digest": content.corpus.digest,
        "corpus": corpus_record(content.corpus),
        "n_tokens": content.corpus.n_tokens,
        "config": content.config.to_dict(),
        "settings": bench.settings.to_dict(),
        "kit_version": __version__,
        "created_at": by.at,
        "created_by": by.name,
    }


def send(bench: Workbench, run_id: str) -> bool:
    """Hand the current attempt to the queue; False if the server is away.

    A failure here loses nothing: the run is ``requested``, the reconciler sends it later.
    """
    run = read_run(bench, run_id)
    if not bench.enqueue(run):
        return False
    with bench.store.write() as connection:
        queued(connection, run.target, by=bench.mover(Actor.LAUNCHER))
    return True


# --- resume and cancel ------------------------------------------------------------------------


def resume(bench: Workbench, run_id: str, *, force: bool = False) -> None:
    """Continue a failed, cancelled, interrupted or stuck run under a new attempt.

    A stuck run's process is asked to stop, killed after ``Settings.kill_after_s``, and must
    be gone before anything else is done.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    run_id : str
        Which run.
    force : bool
        Go on although the process of a stuck run cannot be seen from this machine: it is
        fenced and can write nothing, but may hold its GPU.

    Raises
    ------
    AlreadyCompleted, StillActive, NothingToResume, TrainingBusy
        There is nothing to continue, or not now; nothing was changed.
    """
    run = read_run(bench, run_id)
    if run.state in ACTIVE:
        bench.reconcile()  # its process may be gone since somebody looked last
        run = read_run(bench, run_id)
    if run.state in CLAIMED and bench.is_stuck(run):
        _stop_stuck(bench, run, force=force)
        run = read_run(bench, run_id)
    if answer_to_resume(run.state) is Answer.NEW_ATTEMPT:
        bench.require_space()
        bench.start_processes()
    by = bench.mover()
    try:
        with bench.store.write() as connection:
            refusal = _resume(connection, run_id, by)
    except LedgerConflict:
        with bench.store.read() as connection:
            busy = records.active_run(connection, run.training_id)
        refusal = run_still_active(run) if busy is None else busy_with(busy)
    if refusal is not None:
        raise refusal
    send(bench, run_id)


def _stop_stuck(bench: Workbench, run: RunRecord, *, force: bool) -> None:
    reconciler = bench.reconciler()
    hours = bench.settings.stuck_after_s / 3600
    if reconciler.stop_process(run):
        why = f"made no progress for {hours:g} h; its process was stopped"
    elif force:
        why = f"made no progress for {hours:g} h; given up without seeing its process"
    else:
        raise _note_and_return(bench, run, cannot_verify(run))
    for _ in reconciler.end(run, why, by=Actor.USER):
        pass


def _note_and_return(bench: Workbench, run: RunRecord, refusal: RunRefused) -> RunRefused:
    by = bench.mover()
    with bench.store.write() as connection:
        _note_refusal(connection, run, refusal, by_label=by.label, at=by.at)
    return refusal


def _resume(connection: Connection, run_id: str, by: Any) -> RunRefused | None:  # noqa: ANN401
    run = records.run(connection, run_id)
    if run is None:
        raise UnknownRun(run_id=run_id)
    refusal = _refusal_to_resume(run)
    if refusal is None:
        busy = records.active_run(connection, run.training_id)
        refusal = None if busy is None else busy_with(busy)
    if refusal is not None:
        _note_refusal(connection, run, refusal, by_label=by.label, at=by.at)
        return refusal
    job_id = job_id_of(
        run.training_id,
        run.content_key,
        generation=run.generation,
        attempt=run.attempt + 1,
    )
    text = f"continues as attempt {run.attempt + 1}"
    next_attempt(
        connection,
        run.target,
        Move.RESUME,
        by=by,
        job_id=job_id,
        kit_version=__version__,
        text=text,
    )
    return None


def _refusal_to_resume(run: RunRecord) -> RunRefused | None:
    answer = answer_to_resume(run.state)
    if answer is Answer.ALREADY_COMPLETED:
        return refusal_of(run)
    if answer is Answer.STILL_ACTIVE:
        return run_still_active(run)
    if answer is Answer.NOTHING_TO_RESUME:
        return NothingToResume(
            run_id=run.run_id, state=str(run.state), because="nothing ran"
        )
    return None


def cancel(bench: Workbench, run_id: str) -> None:
    """Cancel a run: at once if no process has it, within one batch if one computes.

    Raises
    ------
    AlreadyCompleted, TooLateToCancel, NothingToCancel
        There is nothing to stop; nothing was changed.
    """
    by = bench.mover()
    with bench.store.write() as connection:
        run = records.run(connection, run_id)
        if run is None:
            raise UnknownRun(run_id=run_id)
        answer = answer_to_cancel(run.state)
        refusal = _refusal_to_cancel(run, answer)
        if refusal is not None:
            _note_refusal(connection, run, refusal, by_label=by.label, at=by.at)
        elif answer is Answer.CANCEL_NOW:
            move(connection, run.target, Move.CANCEL, by=by, text="cancelled while waiting")
        else:
            request_cancel(connection, run.target, by=by)
    if refusal is not None:
        raise refusal


def _refusal_to_cancel(run: RunRecord, answer: Answer) -> RunRefused | None:
    facts = {"run_id": run.run_id, "state": str(run.state)}
    if answer is Answer.ALREADY_COMPLETED:
        return refusal_of(run)
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


# --- refusals in words ------------------------------------------------------------------------


def refusal_of(run: RunRecord) -> RunRefused:
    """Return why a completed or resting run is not launched (again), and what to type."""
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


def busy_with(run: RunRecord) -> TrainingBusy:
    """Return the refusal of anything else while `run` is active."""
    because = (
        f"training {run.training_id!r} is busy: run {run.run_id} (generation "
        f"{run.generation}, {run.n_tokens:,} tokens) is {run.state} since "
        f"{(run.claimed_at or run.created_at):%Y-%m-%d %H:%M:%S} UTC. Wait for it with "
        f"ws.run({run.run_id!r}).wait(), or stop it with ws.run({run.run_id!r}).cancel()"
    )
    return TrainingBusy(run_id=run.run_id, state=str(run.state), because=because)


def run_still_active(run: RunRecord) -> StillActive:
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


def _note_refusal(
    connection: Connection,
    run: RunRecord,
    refusal: Refused,
    *,
    by_label: str,
    at: Any,  # noqa: ANN401
) -> None:
    events.record_again(
        connection,
        run.run_id,
        attempt=run.attempt,
        at=at,
        kind="refused",
        actor=by_label,
        # Not its full words: they name a moment's state, and repetitions must be one event.
        text=f"{type(refusal).__name__}: {type(refusal).__doc__}",
    )


def read_run(bench: Workbench, run_id: str) -> RunRecord:
    """Return the ledger's record of a run.

    Raises
    ------
    UnknownRun
        There is none; the message lists those that are.
    """
    with bench.store.read() as connection:
        run = records.run(connection, run_id)
        if run is None:
            known = [one.run_id for one in records.all_runs(connection)]
            raise UnknownRun(run_id=run_id, known=known)
    return run
