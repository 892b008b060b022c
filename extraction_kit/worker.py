"""What a worker does: claim an attempt, say that it lives, extract, publish.

:func:`run_job` is what RQ calls, in a process of its own. Until the claim is won nothing
heavy is imported: a duplicate delivery leaves within milliseconds. Torch first appears
after it, so that GPU memory belongs to a process that ends with the job.
"""

import logging
import os
import signal
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from extraction_kit import embedded, jobqueue
from extraction_kit.cataloguing import refresh_snapshot
from extraction_kit.errors import ExtractionKitError, Failure
from extraction_kit.ledger import events, records, transitions
from extraction_kit.ledger.records import RunRecord
from extraction_kit.ledger.transitions import Mover, Target
from extraction_kit.lifecycle import UNCLAIMED, Actor, Move, RunState
from extraction_kit.liveness import Beat, ProcessIdentity
from extraction_kit.reconcile import completion
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench

if TYPE_CHECKING:
    from extraction_kit.extraction import Progress
    from extraction_kit.results import ExtractionResult

log = logging.getLogger(__name__)


class Fenced(BaseException):
    """The attempt is not the run's any more: stop, and write nothing."""


class Stopped(BaseException):
    """The attempt was told to stop (cancel, SIGTERM): a checkpoint, then the end."""

    def __init__(self, move: Move, why: str) -> None:
        self.move = move
        self.why = why
        super().__init__(why)


def boottime() -> float:
    """Return seconds since boot that count a suspended machine's sleep too."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


# --- the lease ------------------------------------------------------------------------------


class Lease:
    """The right of this process to work on one attempt, and the signs that it does.

    A thread of its own replaces the beat file, then reads the ledger; the compute loop
    asks :meth:`check` after each batch. The thread never writes to the ledger: a process
    frozen inside a write transaction would lock it for everybody.
    """

    def __init__(self, bench: Workbench, run: RunRecord, target: Target) -> None:
        self._bench = bench
        self._target = target
        self._settings = bench.settings_of(run)
        self._beats = bench.beats
        self._beat = Beat(number=0)
        self._writing = threading.Lock()  # of `_beat`: two threads replace it
        self._order: BaseException | None = None
        self._told_to_stop = False
        self._good_at = boottime()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="xk-beat", daemon=True)

    def __enter__(self) -> Self:
        """Begin to beat; SIGTERM now means: checkpoint and end."""
        self._beat_once()
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop beating."""
        self._end.set()
        self._thread.join()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self._told_to_stop = True

    def report(self, progress: "Progress") -> None:
        """Take note of progress; raise the order to stop, if there is one."""
        now = time.time()
        with self._writing:
            moved = progress.n_tokens_done != self._beat.n_tokens_done
            self._beat = replace(
                self._beat,
                phase=progress.phase,
                n_tokens_done=progress.n_tokens_done,
                progress_at=now if moved else self._beat.progress_at,
                tokens_per_s=progress.tokens_per_s,
                l0=progress.l0,
                fvu=progress.fvu,
                n_dead=progress.n_dead,
                preview=progress.preview,
            )
        self.check()

    def enter(self, phase: str) -> None:
        """Say what begins now; raise the order to stop, if there is one."""
        with self._writing:
            self._beat = replace(self._beat, phase=phase)
        self.check()

    def check(self) -> None:
        """Raise `Fenced` or `Stopped` if this process may not go on.

        After a pause (a frozen process, a suspended machine) it asks the ledger first.
        """
        self.check_ours()
        if isinstance(self._order, Stopped):
            raise self._order
        if self._told_to_stop:
            raise Stopped(Move.INTERRUPT, "the worker was told to stop (SIGTERM)")

    def check_ours(self) -> None:
        """Raise `Fenced` if another attempt has taken over; being told to stop is no reason.

        While the ledger cannot be read and the lease has run out, another attempt may have
        begun: wait until it is known, computing nothing.
        """
        if self._unsure_for_s() > self._settings.self_check_share * self._settings.lease_s:
            self._beat_once()
        while self._unsure_for_s() > self._settings.lease_s:
            if self._told_to_stop:
                raise Stopped(Move.INTERRUPT, "told to stop (SIGTERM) without a ledger")
            time.sleep(min(self._settings.beat_s, 1.0))
            self._beat_once()
        if isinstance(self._order, Fenced):
            raise self._order

    def _unsure_for_s(self) -> float:
        return boottime() - self._good_at

    def _keep(self) -> None:
        while not self._end.wait(self._settings.beat_s):
            self._beat_once()

    def _beat_once(self) -> None:
        with self._writing:
            self._beat = replace(self._beat, number=self._beat.number + 1, at=time.time())
            beat = self._beat
        began = boottime()  # frozen in here, this process learns what was true before
        try:
            self._beats.write(self._target.run_id, self._target.attempt, beat)
            with self._bench.store.read() as connection:
                run = records.run(connection, self._target.run_id)
        except ExtractionKitError as error:
            log.warning(
                "no good beat: %s", error
            )  # a locked ledger, a full disk: again later
            return
        order = self._order_from(run)
        if not isinstance(self._order, Fenced):
            self._order = order or self._order
        self._good_at = began

    def _order_from(self, run: RunRecord | None) -> BaseException | None:
        if run is None or run.attempt != self._target.attempt:
            return Fenced("another attempt has taken over")
        if run.nonce != self._target.nonce or run.state not in {
            RunState.EXTRACTING,
            RunState.PUBLISHING,
        }:
            return Fenced(f"the run is {run.state} without this process")
        if run.cancel_requested and run.state is RunState.EXTRACTING:
            return Stopped(Move.CANCEL, "cancelled on request")
        return None


# --- the job --------------------------------------------------------------------------------


def run_job(run_id: str, attempt: int) -> dict[str, Any]:
    """Run one attempt; what RQ calls.

    Parameters
    ----------
    run_id, attempt : str, int
        All that the queue carries; everything else is in the ledger.

    Returns
    -------
    dict
        ``run_id``, ``attempt``, ``state`` and ``results_dir`` as recorded. The same for a
        delivery that is refused, which does nothing else.
    """
    bench = Workbench.open(Path(os.environ["EXTRACTION_KIT_HOME"]))
    if not isinstance(run_id, str) or type(attempt) is not int:
        run_id, attempt = repr(run_id)[:80], 0  # somebody else's job: refused below
    process = ProcessIdentity.of_this_process()
    by = Mover(actor=Actor.WORKER, name=f"{process.host}:{process.pid}", at=bench.now())
    target = Target(run_id=run_id, attempt=attempt, nonce=uuid.uuid4().hex)
    with bench.store.write() as connection:
        claimed = transitions.claim(
            connection,
            Target(run_id=run_id, attempt=attempt),
            by=by,
            nonce=str(target.nonce),
            process=process.to_dict(),
            kit_version=__version__,
        )
        run = records.run(connection, run_id)
        if not claimed:
            kind, text = _refused_delivery(run, run_id, attempt)
            events.record_again(
                connection,
                None if run is None else run_id,
                attempt=attempt,
                at=by.at,
                kind=kind,
                actor="queue",
                text=text,
            )
    if claimed and run is not None:
        Attempt(bench, run, target).work()
    return _answer(bench, run_id, attempt)


def _refused_delivery(run: RunRecord | None, run_id: str, attempt: int) -> tuple[str, str]:
    """Return kind and text of the event for a job that won no claim."""
    if run is None:
        return (
            "unknown delivery",
            f"a job named run {run_id}, which does not exist: refused",
        )
    waits = run.state in UNCLAIMED and run.attempt == attempt
    if waits and run.kit_version != __version__:
        return "foreign delivery", (
            f"attempt {attempt} is meant for a worker of extraction_kit {run.kit_version}, "
            f"this one is {__version__}: refused"
        )
    return "duplicate delivery", f"attempt {attempt} was delivered again and refused"


def _answer(bench: Workbench, run_id: str, attempt: int) -> dict[str, Any]:
    with bench.store.read() as connection:
        run = records.run(connection, run_id)
    return {
        "run_id": run_id,
        "attempt": attempt,
        "state": "unknown run" if run is None else str(run.state),
        "results_dir": None if run is None else run.results_dir,
    }


class Attempt:
    """One claimed attempt, from the claim to its end."""

    def __init__(self, bench: Workbench, run: RunRecord, target: Target) -> None:
        self._bench = bench
        self._run = run
        self._target = target

    def work(self) -> None:
        """Extract and publish; record every way in which it can end."""
        try:
            with Lease(self._bench, self._run, self._target) as lease:
                refresh_snapshot(self._bench)
                self._complete(lease)
        except Fenced as fenced:
            log.warning(
                "run %s attempt %s: %s", self._run.run_id, self._run.attempt, fenced
            )
        except Stopped as stopped:
            self._move(stopped.move, stopped.why, error=stopped.why)
        except Exception as error:  # noqa: BLE001 - the worker's edge: every failure is recorded
            self._fail(error)
        self._forget_beat()
        refresh_snapshot(self._bench)

    def _forget_beat(self) -> None:
        try:
            self._bench.beats.forget(self._run.run_id, self._run.attempt)
        except (
            ExtractionKitError,
            OSError,
        ) as error:  # it is of no use to anybody any more
            log.warning("a beat stays: %s", error)

    def _complete(self, lease: Lease) -> None:
        final = self._bench.paths.results_of(self._run.run_id)
        if not final.exists():
            result = self._extract(lease)
            lease.check()
            if not self._move(Move.PUBLISH, "all numbers are computed"):
                raise Fenced("the run is not this attempt's any more")
            self._publish(result, lease, final)
        self._record(final)

    def _extract(self, lease: Lease) -> "ExtractionResult":
        # Torch and the model code: only now, and only in this process.
        lease.enter("loading torch")
        from extraction_kit.extraction import StopAfterCheckpoint, extract  # noqa: PLC0415

        bench, run = self._bench, self._run
        training = bench.training(run.training_id)
        bench.check_unchanged(training)
        corpus = bench.corpus_of(run)
        bench.check_content(run, training, corpus)

        def on_progress(progress: "Progress") -> None:
            try:
                lease.report(progress)
            except Stopped as stopped:
                raise StopAfterCheckpoint(stopped.why) from stopped

        try:
            return extract(
                training,
                corpus,
                config=bench.config_of(run),
                settings=bench.settings_of(run),
                content_key=run.content_key,
                checkpoints=bench.paths.checkpoints_of(run.run_id, run.attempt),
                resume_from=bench.paths.checkpoints_of(run.run_id),
                on_progress=on_progress,
            )
        except StopAfterCheckpoint as stop:
            if isinstance(stop.__cause__, Stopped):
                raise stop.__cause__ from None
            raise

    def _publish(self, result: "ExtractionResult", lease: Lease, final: Path) -> None:
        from extraction_kit.catalog.publish import publish, stage  # noqa: PLC0415 - as above

        staged = self._bench.paths.staging_of(self._run.run_id, self._run.attempt)
        stage(staged, result, self._bench.manifest_of(self._run))
        lease.check_ours()  # told to stop now, it still publishes: that is the quickest end
        publish(staged, final)

    def _record(self, final: Path) -> None:
        from extraction_kit.catalog.publish import read_manifest  # noqa: PLC0415 - as above

        manifest = read_manifest(final)
        if manifest is None:
            raise Failure(f"{final} has no readable manifest: type run.explain()")
        at = self._bench.now()
        ours = manifest["attempt"] == self._run.attempt
        what = Move.COMPLETE if ours else Move.ADOPT
        text = "published" if ours else f"attempt {manifest['attempt']} had published"
        if self._move(what, text, **completion(manifest, final, at=at)):
            self._bench.forget_checkpoints(self._run.run_id)

    def _fail(self, error: Exception) -> None:
        log.error("run %s failed", self._run.run_id, exc_info=error)
        words = str(error) or type(error).__name__
        if not isinstance(error, ExtractionKitError):
            words = f"{type(error).__name__}: {words}"
        trace = "".join(traceback.format_exception(error))
        self._move(Move.FAIL, words.splitlines()[0], error=words, error_traceback=trace)

    def _move(self, what: Move, text: str, **values: Any) -> bool:  # noqa: ANN401 - columns
        by = Mover(
            actor=Actor.WORKER,
            name=ProcessIdentity.of_this_process().host + f":{os.getpid()}",
            at=self._bench.now(),
        )
        with self._bench.store.write() as connection:
            return transitions.move(
                connection, self._target, what, by=by, text=text, values=values
            )


# --- the parent -----------------------------------------------------------------------------


def serve(home: Path, *, slot_number: int = 1, burst: bool = False) -> None:
    """Serve the queue of the workspace at `home` until told to stop.

    Parameters
    ----------
    home : Path
        The workspace.
    slot_number : int
        Which of this machine's workers it is; one job at a time runs in each slot.
    burst : bool
        Stop when the queue is empty.

    Raises
    ------
    Failure
        Another local worker holds the slot.
    """
    bench = Workbench.open(home)
    os.environ["EXTRACTION_KIT_HOME"] = str(home)
    slot = embedded.worker_slot(bench.paths, slot_number)
    lock = embedded.take_lock(slot.lock, patience_s=1.0)
    if lock is None:
        raise Failure(
            f"a worker (pid {slot.pid()}) serves {home} in slot {slot_number} already. Type "
            "`extraction-kit down` to stop it first, or give another one its own slot: "
            f"`extraction-kit worker --slot {slot_number + 1}`"
        )
    bench.sign_card(slot.card)

    def in_job() -> None:
        os.close(lock)  # a job that outlives its parent must not look like a worker
        # The kernel hangs up on a stopped process whose parent dies; the work goes on.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _hold(slot.busy)

    try:
        jobqueue.work(
            bench.queue.url,
            tick=_tick(bench),
            tick_s=bench.settings.reconcile_s,
            may_dequeue=lambda: not embedded.is_held(slot.busy),
            in_job=in_job,
            burst=burst,
        )
    finally:
        slot.card.unlink(missing_ok=True)
        os.close(lock)


def _hold(path: Path) -> None:
    """Hold the lock until this process ends: no sibling takes a job meanwhile."""
    if embedded.take_lock(path, patience_s=1.0) is None:
        log.warning("%s is held by another job's process", path)


def _tick(bench: Workbench) -> Callable[[], None]:
    def tick() -> None:
        try:
            for done in bench.reconcile():
                log.info("run %s %s: %s", done.run_id, done.what, done.why)
        except ExtractionKitError as error:  # a locked ledger, a full disk: next time
            log.warning("could not reconcile: %s", error)

    return tick
