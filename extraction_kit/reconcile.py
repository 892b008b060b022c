"""Bring the ledger in line with the evidence: the one table of what is done about what.

Idempotent, and safe to run anywhere at any time: every change is a compare-and-set on the
attempt that the evidence was about. Unknown evidence grants nothing. Work that was ever
claimed is never started again from here; only attempts that nobody claimed are sent again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from extraction_kit.atomic import remove_folder
from extraction_kit.catalog.publish import publish, read_manifest, staged_and_sound
from extraction_kit.config import Settings
from extraction_kit.errors import QueueUnreachable
from extraction_kit.jobqueue import Evidence, JobQueue
from extraction_kit.ledger import records
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.store import Store
from extraction_kit.ledger.transitions import Mover, move, next_attempt, queued
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
from extraction_kit.liveness import Observations, ProcessIdentity, read_beat
from extraction_kit.paths import Paths


class Action(StrEnum):
    """What the table orders."""

    LEAVE = "leave"
    ENQUEUE = "enqueue"
    SUPERSEDE = "supersede"
    REAP = "reap"


# Evidence that an unclaimed attempt will not run under its id any more.
_LOST = frozenset(
    {
        Evidence.MISSING,
        Evidence.FAILED,
        Evidence.FINISHED,
        Evidence.CANCELED,
        Evidence.UNLISTED,
    }
)


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


def about_claimed(*, gone: bool | None, silent_s: float, settings: Settings) -> Action:
    """Decide about an attempt that a process claimed; what RQ says plays no part.

    Parameters
    ----------
    gone : bool or None
        Whether its process is provably gone (None: cannot be told from here).
    silent_s : float
        For how long its beat number is unchanged, on this observer's clock.
    settings : Settings
        The lease.
    """
    return Action.REAP if gone or silent_s >= settings.lease_s else Action.LEAVE


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
    paths: Paths
    settings: Settings
    name: str  # of the observer, for events
    now: Callable[[], datetime]
    observations: Observations = field(compare=False)

    def reconcile(self) -> list[Done]:
        """Look at every run that is not completed; act where the table says so."""
        with self.store.read() as connection:
            open_runs = records.runs_in(connection, [*ACTIVE, *RESTING])
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
        """Enqueue the current attempt and note it; False if the server is away."""
        try:
            self.queue.enqueue(run.job_id, run.run_id, run.attempt)
        except QueueUnreachable:
            return False
        with self.store.write() as connection:
            queued(connection, run.target, by=self._mover())
        return True

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
                text=why,
            )
            successor = records.run(connection, run.run_id)
        if moved and successor is not None:
            self.send(successor)
        return moved

    # --- claimed --------------------------------------------------------------------------

    def _settle_claimed(self, run: RunRecord) -> Iterator[Done]:
        beat = read_beat(self.paths.beat_of(run.run_id, run.attempt))
        number = None if beat is None else beat.number
        silent_s = self.observations.unchanged_s(_beat_key(run), number)
        identity = None if run.process is None else ProcessIdentity.from_dict(run.process)
        gone = None if identity is None else identity.gone()
        if (
            about_claimed(gone=gone, silent_s=silent_s, settings=self.settings)
            is not Action.REAP
        ):
            return
        where = "its process" if identity is None else f"process {identity.pid}"
        why = (
            f"{where} is gone"
            if gone
            else f"{where} gave no sign of life for {silent_s:.0f} s"
        )
        if self._reap(run, why):
            yield Done(run_id=run.run_id, what="interrupted", why=why)
            rested = self._read(run.run_id)
            adopted = None if rested is None else self.adopt(rested)
            if adopted is not None:
                yield adopted

    def _reap(self, run: RunRecord, why: str) -> bool:
        with self.store.write() as connection:
            return move(
                connection,
                run.target,
                Move.REAP,
                by=self._mover(),
                text=why,
                values={"error": f"interrupted: {why}"},
            )

    # --- published already ----------------------------------------------------------------

    def adopt(self, run: RunRecord) -> Done | None:
        """Record a result that is in place already, or staged whole by a reaped attempt."""
        final = self.paths.results_of(run.run_id)
        if not final.exists():
            self._publish_staged(run, final)
        manifest = read_manifest(final) if final.exists() else None
        if manifest is None:
            return None
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

    # --- small things ---------------------------------------------------------------------

    def _read(self, run_id: str) -> RunRecord | None:
        with self.store.read() as connection:
            return records.run(connection, run_id)

    def _mover(self) -> Mover:
        return Mover(actor=Actor.RECONCILER, name=self.name, at=self.now())


def completion(manifest: dict[str, Any], folder: Path, *, at: datetime) -> dict[str, Any]:
    """Return the ledger columns that a published result fills."""
    return {
        "completed_at": at,
        "results_dir": str(folder),
        "result_digest": manifest["result_digest"],
        "published_attempt": manifest["attempt"],
        "summary": manifest["summary"],
        "error": None,
        "error_traceback": None,
        "cancel_requested": False,
    }


def _queue_key(run: RunRecord) -> str:
    return f"queue {run.job_id}"


def _beat_key(run: RunRecord) -> str:
    return f"beat {run.run_id}-a{run.attempt}"


def _keys(run: RunRecord) -> tuple[str, str]:
    return _queue_key(run), _beat_key(run)
