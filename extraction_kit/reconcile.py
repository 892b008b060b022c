"""Bring the ledger in line with the evidence: the one table of what is done about what.

Idempotent, and safe to run anywhere at any time: every change is a compare-and-set on the
attempt that the evidence was about. Unknown evidence grants nothing. Work that was ever
claimed is never started again from here; only attempts that nobody claimed are sent again.

Two kinds of processes are killed, and only when the kernel of this machine proves that they
are the ones meant: one that a person cancelled and that does not stop, and one that an
earlier attempt left behind and that the attempt of now waits for.
"""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from extraction_kit import outbox
from extraction_kit.atomic import remove_folder
from extraction_kit.catalog.publish import (
    bytes_of,
    publish,
    read_manifest,
    staged_and_sound,
    verify,
)
from extraction_kit.config import Settings
from extraction_kit.jobqueue import Evidence, JobQueue
from extraction_kit.ledger import events, records
from extraction_kit.ledger.changes import ListedRun
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Store
from extraction_kit.ledger.transitions import Mover, move, next_attempt
from extraction_kit.lifecycle import (
    ACTIVE,
    CLAIMED,
    RESTING,
    UNCLAIMED,
    Actor,
    Move,
    RunState,
    job_id_of,
)
from extraction_kit.liveness import Beat, Beats, Observations, ProcessIdentity
from extraction_kit.paths import Paths
from extraction_kit.version import __version__


class Action(StrEnum):
    """What the table orders."""

    LEAVE = "leave"
    ENQUEUE = "enqueue"
    SUPERSEDE = "supersede"
    REAP = "reap"
    KILL = "kill"


_KILL_TAKES_S = 5.0  # a killed process may first have to leave a system call


def about_unclaimed(
    state: RunState, evidence: Evidence, *, unchanged_s: float, settings: Settings
) -> Action:
    """Decide about a requested or queued attempt.

    Parameters
    ----------
    state : RunState
        ``requested`` or ``queued``.
    evidence : Evidence
        What the server says of its job id.
    unchanged_s : float
        For how long it has been saying so, on this observer's clock.
    settings : Settings
        Graces and lease.
    """
    if evidence is Evidence.UNKNOWN or evidence is Evidence.LISTED:
        return Action.LEAVE
    if state is RunState.REQUESTED and evidence is Evidence.MISSING:
        return Action.ENQUEUE  # the outbox: committed, not yet sent
    patience_s = {
        Evidence.INTERMEDIATE: settings.intermediate_grace_s,
        Evidence.STARTED: settings.lease_s,
    }.get(evidence, settings.queued_grace_s)
    return Action.SUPERSEDE if unchanged_s >= patience_s else Action.LEAVE


def about_claimed(
    *, gone: bool | None, silent_s: float, cancelled_s: float, settings: Settings
) -> Action:
    """Decide about an attempt that a process claimed; what RQ says plays no part.

    Parameters
    ----------
    gone : bool or None
        Whether its process is provably gone (None: cannot be told from here).
    silent_s : float
        For how long its beat number is unchanged, on this observer's clock.
    cancelled_s : float
        For how long a person's request to stop has been standing, on this observer's clock.
    settings : Settings
        The lease, and the patience with a process that was told to stop.
    """
    if gone or silent_s >= settings.lease_s:
        return Action.REAP
    overdue = cancelled_s >= settings.kill_after_s
    return Action.KILL if overdue and gone is False else Action.LEAVE


def about_predecessor(*, gone: bool | None, lingers_s: float, settings: Settings) -> Action:
    """Decide about the process of an earlier attempt while the next one waits.

    It is fenced: it can do nothing useful any more, but it holds memory and a worker's slot.
    """
    lingers = gone is False and lingers_s >= settings.kill_after_s
    return Action.KILL if lingers else Action.LEAVE


@dataclass(frozen=True, kw_only=True)
class Done:
    """One thing that a reconciliation did."""

    run_id: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Reconciler:
    """The evidence at hand, and the right to act on it."""

    store: Store
    queue: JobQueue
    beats: Beats
    paths: Paths
    settings: Settings
    name: str  # of the observer, for events
    now: Callable[[], datetime]
    observations: Observations = field(compare=False)

    def reconcile(self) -> list[Done]:
        """Look at every run that is not completed; act where the table says so."""
        with self.store.read() as connection:
            open_runs = records.runs_in(connection, [*ACTIVE, *RESTING])
        self._forget_checkpoints({run.run_id for run in open_runs})
        if not open_runs:
            return []
        self.observations.load()
        done = [item for run in open_runs for item in self._settle(run)]
        self.observations.save(keep={key for run in open_runs for key in _keys(run)})
        return done

    def _settle(self, run: RunRecord) -> Iterator[Done]:
        adopted = self.adopt(run)
        if adopted is not None:
            yield adopted
        elif run.state in UNCLAIMED:
            yield from self._end_predecessor(run)
            yield from self._settle_unclaimed(run)
        elif run.state in CLAIMED:
            yield from self._settle_claimed(run)

    # --- never claimed --------------------------------------------------------------------

    def _settle_unclaimed(self, run: RunRecord) -> Iterator[Done]:
        evidence = self.queue.evidence(run.job_id)
        unchanged_s = self.observations.unchanged_s(
            _queue_key(run), f"{run.state} {evidence}"
        )
        action = about_unclaimed(
            run.state, evidence, unchanged_s=unchanged_s, settings=self.settings
        )
        if action is Action.ENQUEUE and self.send(run):
            yield Done(run_id=run.run_id, what="sent", why="it was not in the queue yet")
        if action is Action.SUPERSEDE:
            why = f"job {run.job_id} is {evidence} for {unchanged_s:.0f} s and was never claimed"
            if self._supersede(run, why):
                yield Done(run_id=run.run_id, what="sent again", why=why)

    def send(self, run: RunRecord) -> bool:
        """Hand the current attempt to the queue; False if the server is away."""
        return outbox.send(
            self.store, self.queue, run.target, job_id=run.job_id, by=self._mover()
        )

    def _supersede(self, run: RunRecord, why: str) -> bool:
        job_id = job_id_of(
            run.training_id,
            run.content_key,
            generation=run.generation,
            attempt=run.attempt + 1,
        )
        with self.store.write() as connection:
            moved = next_attempt(
                connection,
                run.target,
                Move.SUPERSEDE,
                by=self._mover(),
                job_id=job_id,
                kit_version=__version__,
                text=why,
            )
            successor = records.run(connection, run.run_id)
        if moved and successor is not None:
            self.send(successor)
        return moved

    def _end_predecessor(self, run: RunRecord) -> Iterator[Done]:
        with self.store.read() as connection:
            recorded = records.predecessor(connection, run)
        if recorded is None:
            return
        process = ProcessIdentity.from_dict(recorded)
        gone = process.gone()
        lingers_s = self.observations.unchanged_s(_predecessor_key(run), process.pid)
        action = about_predecessor(gone=gone, lingers_s=lingers_s, settings=self.settings)
        if action is Action.KILL and _killed(process):
            why = f"process {process.pid} of an earlier attempt was still there: killed"
            self._note(run, "killed", why)
            yield Done(run_id=run.run_id, what="has its way free", why=why)

    # --- claimed --------------------------------------------------------------------------

    def _settle_claimed(self, run: RunRecord) -> Iterator[Done]:
        silent_s, cancelled_s = self._observe(run)
        identity = None if run.process is None else ProcessIdentity.from_dict(run.process)
        gone = None if identity is None else identity.gone()
        action = about_claimed(
            gone=gone, silent_s=silent_s, cancelled_s=cancelled_s, settings=self.settings
        )
        where = "its process" if identity is None else f"process {identity.pid}"
        if action is Action.REAP:
            silence = f"{where} gave no sign of life for {silent_s:.0f} s"
            yield from self.end(run, f"{where} is gone" if gone else silence)
        elif action is Action.KILL and identity is not None:
            why = f"{where} did not stop within {cancelled_s:.0f} s and was killed"
            if self._still_cancelled(run) and _killed(identity):
                self._note(run, "killed", why)  # who records its end may be somebody else
                yield from self.end(run, why)

    def _observe(self, run: RunRecord) -> tuple[float, float]:
        """Note beat, progress and order to stop; return since when silent and cancelled."""
        beat = self.beats.read(run.run_id, run.attempt)
        number = None if beat is None else beat.number
        self.observations.unchanged_s(progress_key(run), _progress_of(beat))
        silent_s = self.observations.unchanged_s(beat_key(run), number)
        ordered = run.cancel_requested and run.state is RunState.EXTRACTING
        standing_s = self.observations.unchanged_s(_cancel_key(run), ordered)
        return silent_s, standing_s if ordered else 0.0

    def _still_cancelled(self, run: RunRecord) -> bool:
        now = self._read(run.run_id)
        return (
            now is not None
            and now.attempt == run.attempt
            and now.state is RunState.EXTRACTING
            and now.cancel_requested
        )

    def stop_process(self, run: RunRecord) -> bool:
        """Ask the process of a claimed run to stop, then kill it.

        Returns
        -------
        bool
            True if it is provably gone; False if it runs where this machine cannot see it.
        """
        if run.process is None:
            return False
        process = ProcessIdentity.from_dict(run.process)
        process.signal(signal.SIGTERM)
        deadline = time.monotonic() + self.settings.kill_after_s
        while process.gone() is False and time.monotonic() < deadline:
            time.sleep(0.05)
        return process.gone() is True or _killed(process)

    def end(
        self, run: RunRecord, why: str, *, by: Actor = Actor.RECONCILER
    ) -> Iterator[Done]:
        """Record that a claimed attempt has ended without a word; adopt what it left whole.

        One that a person had cancelled ends as cancelled, any other as interrupted.
        """
        cancelled = run.cancel_requested and run.state is RunState.EXTRACTING
        what = Move.CANCEL if cancelled and by is Actor.RECONCILER else Move.REAP
        state = RunState.CANCELLED if what is Move.CANCEL else RunState.INTERRUPTED
        with self.store.write() as connection:
            moved = move(
                connection,
                run.target,
                what,
                by=self._mover(by),
                text=why,
                values={"error": f"{state}: {why}"},
            )
        if moved:
            self.beats.forget(run.run_id, run.attempt)
            yield Done(run_id=run.run_id, what=str(state), why=why)
            rested = self._read(run.run_id)
            adopted = None if rested is None else self.adopt(rested)
            if adopted is not None:
                yield adopted

    # --- published already ----------------------------------------------------------------

    def adopt(self, run: RunRecord) -> Done | None:
        """Record a result that is in place already, or staged whole by a reaped attempt."""
        final = self.paths.results_of(run.run_id)
        if not final.exists():
            self._publish_staged(run, final)
        manifest = read_manifest(final) if final.exists() else None
        if manifest is None or not _is_of(manifest, run) or verify(final):
            return None  # damaged, or another run's: `extraction-kit repair` tells which
        why = f"attempt {manifest['attempt']} had published the result"
        with self.store.write() as connection:
            moved = move(
                connection,
                run.target,
                Move.ADOPT,
                by=self._mover(),
                text=why,
                values=completion(manifest, final, at=self.now()),
            )
        if not moved:
            return None
        remove_folder(self.paths.checkpoints_of(run.run_id))
        return Done(run_id=run.run_id, what="completed", why=why)

    def _publish_staged(self, run: RunRecord, final: Path) -> None:
        """Publish work that an ended attempt staged whole; never for a cancelled run."""
        if run.state is not RunState.INTERRUPTED:
            return
        for attempt in range(run.attempt, 0, -1):
            staged = self.paths.staging_of(run.run_id, attempt)
            if staged_and_sound(staged):
                publish(staged, final)
                return

    # --- what is left over ----------------------------------------------------------------

    def _forget_checkpoints(self, needed: set[str]) -> None:
        """Remove what a completed run left whose process ended before it could."""
        for folder in self.paths.checkpoints.glob("*"):
            if folder.name in needed:
                continue
            run = self._read(folder.name)
            if run is not None and run.state is RunState.COMPLETED:
                remove_folder(folder)

    # --- small things ---------------------------------------------------------------------

    def _read(self, run_id: str) -> RunRecord | None:
        with self.store.read() as connection:
            return records.run(connection, run_id)

    def _note(self, run: RunRecord, kind: str, text: str) -> None:
        by = self._mover()
        with self.store.write() as connection:
            events.record(
                connection,
                run.run_id,
                attempt=run.attempt,
                at=by.at,
                kind=kind,
                actor=by.label,
                text=text,
            )

    def _mover(self, actor: Actor = Actor.RECONCILER) -> Mover:
        return Mover(actor=actor, name=self.name, at=self.now())


def _killed(process: ProcessIdentity) -> bool:
    """Kill a process; True when it is gone."""
    if not process.signal(signal.SIGKILL):
        return process.gone() is True
    deadline = time.monotonic() + _KILL_TAKES_S
    while process.gone() is False and time.monotonic() < deadline:
        time.sleep(0.01)
    return process.gone() is True


def _is_of(manifest: dict[str, Any], run: RunRecord) -> bool:
    ours = {"run_id": run.run_id, "content_key": run.content_key}
    named = {name: manifest.get(name) for name in ours}
    return named == ours and isinstance(manifest.get("attempt"), int)


def completion(manifest: dict[str, Any], folder: Path, *, at: datetime) -> dict[str, Any]:
    """Return the ledger columns that a published result fills."""
    return {
        "completed_at": at,
        "results_dir": str(folder),
        "result_digest": manifest["result_digest"],
        "published_attempt": manifest["attempt"],
        "summary": manifest["summary"],
        "results_bytes": bytes_of(manifest),
        "error": None,
        "error_traceback": None,
        "cancel_requested": False,
    }


def _queue_key(run: RunRecord) -> str:
    return f"queue {run.job_id}"


def beat_key(run: RunRecord | ListedRun) -> str:
    """Return the name under which the beat number of an attempt is observed."""
    return f"beat {run.run_id}-a{run.attempt}"


def progress_key(run: RunRecord | ListedRun) -> str:
    """Return the name under which the progress of an attempt is observed."""
    return f"progress {run.run_id}-a{run.attempt}"


def _progress_of(beat: Beat | None) -> str:
    """Return what must change for a process to count as advancing."""
    return "none" if beat is None else f"{beat.phase} {beat.n_tokens_done}"


def silent_s(
    observed: Observations, run: RunRecord | ListedRun, beat: Beat | None
) -> float:
    """Return for how long observers saw the beat number of a run unchanged."""
    return observed.known_s(beat_key(run), None if beat is None else beat.number)


def idle_s(observed: Observations, run: RunRecord | ListedRun, beat: Beat | None) -> float:
    """Return for how long observers saw the progress of a run unchanged."""
    return observed.known_s(progress_key(run), _progress_of(beat))


def _cancel_key(run: RunRecord) -> str:
    return f"cancel {run.run_id}-a{run.attempt}"


def _predecessor_key(run: RunRecord) -> str:
    return f"predecessor {run.run_id}-a{run.attempt}"


def _keys(run: RunRecord) -> tuple[str, ...]:
    makers = (_queue_key, beat_key, progress_key, _cancel_key, _predecessor_key)
    return tuple(make(run) for make in makers)
