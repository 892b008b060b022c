"""The rules a person relies on: register, launch, resume, cancel.

Each decision is made inside one write transaction of the ledger, from the tables of
:mod:`extraction_kit.lifecycle`; the unique indexes of the store decide between processes
that race. What was decided is committed before the queue hears of it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from extraction_kit import disk, refusals
from extraction_kit.config import ExtractionConfig
from extraction_kit.corpora import Corpus
from extraction_kit.errors import (
    BadCorpus,
    GenerationUnavailable,
    LedgerConflict,
    RunDeleted,
    RunRefused,
    TrainingBusy,
    TrainingConflict,
    UnknownRun,
)
from extraction_kit.estimate import disk_bytes
from extraction_kit.ledger import records
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Connection
from extraction_kit.ledger.transitions import (
    Mover,
    Target,
    insert_run,
    move,
    next_attempt,
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
    job_id_of,
    run_id_of,
)
from extraction_kit.liveness import lasting
from extraction_kit.trainings import Training
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench, corpus_record

log = logging.getLogger(__name__)

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
        The generation asked for does not follow a completed or deleted one.
    RunDeleted
        A person deleted the run of this content; the next generation computes it anew.
    ServerNotStarted, WorkerNotStarted, WorkspaceUnusable
        Nothing could be run here; nothing was made.
    """
    with bench.store.read() as connection:
        found = _find(connection, content, generation)
    if found is None:  # only new work needs space, a server and a worker; before any row
        warning = _require_room(bench, content)
        if warning:
            log.warning("%s", warning)
        bench.start_processes()
    by = bench.mover(Actor.LAUNCHER)
    row = _new_row(bench, content, generation or 1, by=by)
    try:
        launched = _decide(bench, content, generation=generation, row=row, by=by)
    except LedgerConflict:  # somebody inserted between our look and our insert: look again
        launched = _decide(bench, content, generation=generation, row=row, by=by)
    if launched.answer is Answer.NEW_RUN:
        bench.send(Target(run_id=row["run_id"], attempt=row["attempt"]), row["job_id"])
    return launched


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What a launch would come to at this moment; nothing was done for it."""

    run_id: str
    """Of the run that would be made; else of the one that there is, or that is in the way."""
    job_id: str
    answer: Answer
    refusal: RunRefused | None = None
    """Why nothing would be launched; None for a new run and for one that is active."""
    warning: str = ""
    """Of the disk, for a new run."""


def foresee(
    bench: Workbench, content: Content, *, generation: int | None = None
) -> Foreseen:
    """Say what :func:`launch` would come to, by its own rule, and do nothing.

    A refusal is a value here, also one that a launch raises.

    Raises
    ------
    GenerationUnavailable
        The generation asked for does not follow a completed or deleted one.
    WorkspaceUnusable, BadCorpus
        There is no room for a new run, or its prepared corpus was purged.
    """
    with bench.store.read() as connection:
        decided = _decision(connection, content, generation)
    is_new = decided.answer is Answer.NEW_RUN
    warning = _require_room(bench, content) if is_new else ""
    if decided.run is not None:
        run_id, job_id = decided.run.run_id, decided.run.job_id
    else:
        _require_corpus(content.corpus)
        row = _new_row(bench, content, generation or 1, by=bench.mover(Actor.LAUNCHER))
        run_id, job_id = row["run_id"], row["job_id"]
    return Foreseen(
        run_id=run_id,
        job_id=job_id,
        answer=decided.answer,
        refusal=decided.refusal,
        warning=warning,
    )


def _require_room(bench: Workbench, content: Content) -> str:
    """Refuse new work for which there is no space; return what is to be said of the disk."""
    expected = disk_bytes(content.training, content.corpus, content.config)
    bench.require_space(expected)
    return disk.warning(bench, expected)


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What the rule says of a launch: the run it is about, None for one that is to be made."""

    run: RunRecord | None
    answer: Answer
    refusal: RunRefused | None = None


def _decision(
    connection: Connection, content: Content, generation: int | None
) -> _Decision:
    """Decide what a launch comes to: the rule of `launch` and of `foresee`."""
    run = _find(connection, content, generation)
    if run is None:
        busy = records.active_run(connection, content.training.training_id)
        refusal = None if busy is None else refusals.busy_with(busy)
        return _Decision(run=busy, answer=answer_to_launch(None), refusal=refusal)
    answer = answer_to_launch(run.state, deleted=run.deleted_at is not None)
    is_refused = answer in {Answer.RETURN, Answer.REST, Answer.DELETED}
    return _Decision(
        run=run, answer=answer, refusal=refusals.of_launch(run) if is_refused else None
    )


def _decide(
    bench: Workbench,
    content: Content,
    *,
    generation: int | None,
    row: Mapping[str, Any],
    by: Mover,
) -> Launched:
    with bench.store.write() as connection:
        decided = _decision(connection, content, generation)
        run, refusal = decided.run, decided.refusal
        if run is None:
            _require_corpus(content.corpus)
            insert_run(connection, row, by=by)
            return Launched(run_id=row["run_id"], answer=decided.answer)
        if refusal is not None:
            refusals.note(connection, run, refusal, by=by)
    if isinstance(refusal, (TrainingBusy, RunDeleted)):
        raise refusal  # a handle would show another config's numbers, or none
    return Launched(run_id=run.run_id, answer=decided.answer, refusal=refusal)


def _require_corpus(corpus: Corpus) -> None:
    """Refuse a corpus that was purged since it was prepared: nobody purges meanwhile."""
    if not corpus.path.is_dir():
        raise BadCorpus(
            f"the prepared corpus {corpus.path} is gone: type the launch again with the texts, "
            "which prepares it anew"
        )


def _find(
    connection: Connection, content: Content, generation: int | None
) -> RunRecord | None:
    """Return the run that a launch is about; None if it is a new one."""
    known = records.generations(connection, content.training.training_id, content.key)
    if generation is None:
        shown = [run for run in known if run.deleted_at is None]
        completed = [run for run in shown if run.state is RunState.COMPLETED]
        best = completed or shown or known
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
    is_final = latest is not None and (
        latest.state is RunState.COMPLETED or latest.deleted_at is not None
    )
    if latest is not None and is_final and generation == latest.generation + 1:
        return
    training_id = content.training.training_id
    if latest is None:
        state, is_so = (
            "none",
            "nothing of this content was launched yet: leave generation out",
        )
    elif is_final:
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


def _new_row(
    bench: Workbench, content: Content, generation: int, *, by: Mover
) -> dict[str, Any]:
    training_id = content.training.training_id
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
    AlreadyCompleted, StillActive, NothingToResume, TrainingBusy, RunDeleted
        There is nothing to continue, or not now; nothing was changed.
    """
    run = read_run(bench, run_id)
    if run.state in ACTIVE:
        bench.reconcile()  # its process may be gone since somebody looked last
        run = read_run(bench, run_id)
    if run.state in CLAIMED and bench.is_stuck(run):
        _stop_stuck(bench, run, force=force)
        run = read_run(bench, run_id)
    if refusals.of_resume(run) is None:
        bench.require_space()
        bench.start_processes()
    by = bench.mover()
    try:
        with bench.store.write() as connection:
            refusal = _resume(connection, run_id, by)
    except LedgerConflict:
        with bench.store.read() as connection:
            busy = records.active_run(connection, run.training_id)
        refusal = refusals.still_active(run) if busy is None else refusals.busy_with(busy)
    if refusal is not None:
        raise refusal
    resumed = read_run(bench, run_id)
    bench.send(resumed.target, resumed.job_id)


def _stop_stuck(bench: Workbench, run: RunRecord, *, force: bool) -> None:
    reconciler = bench.reconciler()
    idle = lasting(bench.settings.stuck_after_s)
    if reconciler.stop_process(run):
        why = f"made no progress for {idle}; its process was stopped"
    elif force:
        why = f"made no progress for {idle}; given up without seeing its process"
    else:
        raise _note_and_return(bench, run, refusals.cannot_verify(run))
    for _ in reconciler.end(run, why, by=Actor.USER):
        pass


def _note_and_return(bench: Workbench, run: RunRecord, refusal: RunRefused) -> RunRefused:
    by = bench.mover()
    with bench.store.write() as connection:
        refusals.note(connection, run, refusal, by=by)
    return refusal


def _resume(connection: Connection, run_id: str, by: Mover) -> RunRefused | None:
    run = records.run(connection, run_id)
    if run is None:
        raise UnknownRun(run_id=run_id)
    refusal = refusals.of_resume(run)
    if refusal is None:
        busy = records.active_run(connection, run.training_id)
        refusal = None if busy is None else refusals.busy_with(busy)
    if refusal is not None:
        refusals.note(connection, run, refusal, by=by)
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


def cancel(bench: Workbench, run_id: str) -> None:
    """Cancel a run: at once if no process has it, within one batch if one computes.

    Raises
    ------
    AlreadyCompleted, TooLateToCancel, NothingToCancel, RunDeleted
        There is nothing to stop; nothing was changed.
    """
    by = bench.mover()
    with bench.store.write() as connection:
        run = records.run(connection, run_id)
        if run is None:
            raise UnknownRun(run_id=run_id)
        refusal = refusals.of_cancel(run)
        if refusal is not None:
            refusals.note(connection, run, refusal, by=by)
        elif answer_to_cancel(run.state) is Answer.CANCEL_NOW:
            move(connection, run.target, Move.CANCEL, by=by, text="cancelled while waiting")
        else:
            request_cancel(connection, run.target, by=by)
    if refusal is not None:
        raise refusal


def runs_of(bench: Workbench, training_id: str) -> list[RunRecord]:
    """Return the runs of a training, the newest first; none that is deleted."""
    with bench.store.read() as connection:
        return records.all_runs(connection, training_id)


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
