"""All runs of a workspace, kept up to date at the price of what changed.

A run's own page is :func:`extraction_kit.status.view`, which looks at everything; a list of
a thousand cannot pay for that four times per second. Here a run is read again when the
ledger says that it changed, a beat when its file did, and what is costly (the server, the
workers, the disk, reconciliation) in a small share of the time, whatever it costs.
"""

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from extraction_kit import disk, embedded
from extraction_kit.checkpoints import newest_meta
from extraction_kit.ledger import records
from extraction_kit.ledger.changes import ListedRun, listed_runs, newest_beats
from extraction_kit.ledger.records import TrainingRecord
from extraction_kit.lifecycle import ACTIVE, CLAIMED, UNCLAIMED, RunState
from extraction_kit.liveness import Beat, BeatFiles, Observations
from extraction_kit.reconcile import idle_s, silent_s
from extraction_kit.views import short, tokens_done
from extraction_kit.workbench import Workbench

_SHARE = 0.01
"""Of the time goes, at most, into each look that is taken now and then."""
_LEAST_S = 2.0  # between two of them, however cheap
_FIRST_S = 0.3


@dataclass(frozen=True, kw_only=True)
class RunLine:
    """One run as a list shows it. All times are Unix time in seconds."""

    run_id: str
    training_id: str
    generation: int
    state: str
    attempt: int
    job_id: str
    model: str
    hook_name: str
    architecture: str
    d_sae: int | None
    n_tokens: int
    n_tokens_done: int
    phase: str | None  # from the beat, as the worker calls it
    tokens_per_s: float | None
    beat_at: float | None  # when the worker was heard last
    created_at: float
    created_by: str
    started_at: float | None
    ended_at: float | None
    updated_at: float
    worker: str | None  # host:pid
    l0: float | None
    fvu: float | None
    n_dead: int | None
    results_bytes: int | None
    checkpoint_tokens: int | None
    cancel_requested: bool
    error: str | None
    findings: tuple[str, ...] = ()  # why a person should look at it


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """What a list says of a training; read once, it never changes."""

    model: str
    hook_name: str
    architecture: str
    d_sae: int | None

    @classmethod
    def of(cls, training: TrainingRecord) -> Self:
        spec = training.spec
        return cls(
            model=short(spec["model"]["source"]),
            hook_name=spec["hookpoint"]["hook_name"],
            architecture=spec["sae"]["architecture"],
            d_sae=spec["sae"]["d_sae"],
        )


@dataclass(frozen=True, kw_only=True)
class WorkerLine:
    """One worker: where it is, and whether it works."""

    where: str  # host:pid
    state: str  # idle, busy, suspended, gone


@dataclass(frozen=True, kw_only=True)
class Health:
    """Whether what serves a workspace works."""

    server: str = "unknown"  # answers, away, stopped (the embedded one: a launch starts it)
    workers: tuple[WorkerLine, ...] = ()
    free_bytes: int = 0
    warning: str = ""  # of the disk

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "workers": [asdict(one) for one in self.workers]}


class Overview:
    """The runs of a workspace that are not deleted, and the health of what serves them.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self, bench: Workbench, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bench = bench
        self._clock = clock
        self._lock = threading.RLock()
        self._cursor: int | None = None
        self._listed: dict[str, ListedRun] = {}
        self._subjects: dict[str, _Subject] = {}
        self._beats: dict[str, tuple[object, Beat | None]] = {}  # (stamp, beat) by run
        self._saved: dict[str, int | None] = {}  # tokens of the newest checkpoint
        self._alerts: dict[str, tuple[str, ...]] = {}
        self._claimed: set[str] = set()
        self._lines: dict[str, RunLine] = {}
        self._revision = 0
        self._revised: dict[str, int] = {}  # by run, the newest change last
        self._health = Health()
        self._due: dict[str, float] = {}

    @property
    def home(self) -> Path:
        """The folder of the workspace."""
        return self._bench.paths.home

    def read(self) -> int:
        """Look at what changed; return the revision that `lines` and `health` have now.

        Raises what the ledger raises; what was read before stays.
        """
        with self._lock:
            changed = self._read_ledger() | self._read_beats() | self._look_now_and_then()
            if changed:
                self._revision += 1
            for run_id in changed:
                self._make(run_id)
                self._revised.pop(run_id, None)  # to the end: the newest change comes last
                self._revised[run_id] = self._revision
            return self._revision

    @property
    def lines(self) -> Mapping[str, RunLine]:
        """All runs by id, as they were read last."""
        with self._lock:
            return dict(self._lines)

    @property
    def health(self) -> Health:
        """Server, workers and disk, as they were looked at last."""
        return self._health

    def changed_since(self, revision: int) -> dict[str, RunLine | None]:
        """Return the runs of which something changed after `revision`; None: it is gone."""
        with self._lock:
            found = {}
            for run_id, at in reversed(self._revised.items()):
                if at <= revision:
                    break
                found[run_id] = self._lines.get(run_id)
            return found

    # --- what changed ---------------------------------------------------------------------

    def _read_ledger(self) -> set[str]:
        gone: set[str] = set()
        with self._bench.store.read() as connection:
            now, found = listed_runs(connection, self._cursor)
            if self._cursor is not None and now < self._cursor:  # another ledger: repaired
                now, found = listed_runs(connection)
                gone = set(self._listed) - {run.run_id for run in found}
            unknown = {run.training_id for run in found} - set(self._subjects)
            if unknown:
                some = unknown if self._subjects else None
                for one in records.all_trainings(connection, some):
                    self._subjects[one.training_id] = _Subject.of(one)
        self._cursor = now
        gone |= {run.run_id for run in found if run.deleted}
        self._forget(gone)
        for run in found:
            if run.deleted:
                continue
            self._listed[run.run_id] = run
            self._saved[run.run_id] = self._checkpoint(run)
            working = run.state in CLAIMED
            (self._claimed.add if working else self._claimed.discard)(run.run_id)
        return gone | {run.run_id for run in found}

    def _forget(self, run_ids: set[str]) -> None:
        self._claimed -= run_ids
        for known in (self._listed, self._lines, self._beats, self._saved, self._alerts):
            for run_id in run_ids:
                known.pop(run_id, None)

    def _checkpoint(self, run: ListedRun) -> int | None:
        if run.state is RunState.COMPLETED:
            return None
        meta = newest_meta(self._bench.paths.checkpoints_of(run.run_id))
        return None if meta is None else int(meta["n_tokens_done"])

    def _read_beats(self) -> set[str]:
        ended = set(self._beats) - self._claimed
        for run_id in ended:
            del self._beats[run_id]
        claimed = [self._listed[run_id] for run_id in self._claimed]
        if not claimed:
            return ended
        read = self._from_files if self._bench.store.is_sqlite else self._from_rows
        new = dict(read(claimed))
        self._beats.update(new)
        return ended | set(new)

    def _from_files(
        self, claimed: Sequence[ListedRun]
    ) -> Iterator[tuple[str, tuple[object, Beat | None]]]:
        files = BeatFiles(self._bench.paths.beats)
        for run in claimed:
            run_id = run.run_id
            stamp = (run.attempt, files.stamp(run_id, run.attempt))
            if run_id not in self._beats or self._beats[run_id][0] != stamp:
                yield run_id, (stamp, files.read(run_id, run.attempt))

    def _from_rows(
        self, claimed: Sequence[ListedRun]
    ) -> Iterator[tuple[str, tuple[object, Beat | None]]]:
        with self._bench.store.read() as connection:
            found = newest_beats(connection)
        for run in claimed:
            run_id = run.run_id
            beat = found.get((run_id, run.attempt))
            stamp = (run.attempt, None if beat is None else beat.number)
            if run_id not in self._beats or self._beats[run_id][0] != stamp:
                yield run_id, (stamp, beat)

    # --- one line -------------------------------------------------------------------------

    def _make(self, run_id: str) -> None:
        run = self._listed.get(run_id)
        if run is None:
            return
        _, beat = self._beats.get(run_id, (None, None))
        self._lines[run_id] = _line(
            run,
            self._subjects[run.training_id],
            beat=beat,
            saved=self._saved.get(run_id),
            findings=self._alerts.get(run_id, ()),
        )

    # --- now and then ---------------------------------------------------------------------

    def _look_now_and_then(self) -> set[str]:
        """Look at what is costly; return the runs of which something else is to be said."""
        if not self._due:  # not at once: first the runs are shown
            first = self._clock() + _FIRST_S
            self._due = {"health": first, "reconcile": first + _FIRST_S}
        if not (self._is_due("health") or self._is_due("reconcile")):
            return set()
        active = [run for run in self._listed.values() if run.state in ACTIVE]
        if self._is_due("reconcile"):
            if active:
                self._timed("reconcile", self._reconcile)
            return set()
        before = self._alerts
        self._timed("health", lambda: self._look(active))
        named = set(before) | set(self._alerts)
        return {one for one in named if before.get(one) != self._alerts.get(one)}

    def _is_due(self, name: str) -> bool:
        return self._clock() >= self._due[name]

    def _timed(self, name: str, call: Callable[[], object]) -> None:
        started = self._clock()
        try:
            call()
        finally:
            took = self._clock() - started
            self._due[name] = self._clock() + max(_LEAST_S, took / _SHARE)

    def _reconcile(self) -> None:
        if embedded.monitor_slot(self._bench.paths).pid() is None:  # else it does it
            self._bench.reconcile()

    def _look(self, active: list[ListedRun]) -> None:
        bench = self._bench
        self._health = Health(
            server=_server(bench),
            workers=tuple(_workers(bench)),
            free_bytes=bench.free_bytes(),
            warning=disk.warning(bench),
        )
        observed = bench.observations().load()
        found = ((run.run_id, tuple(self._alerts_of(run, observed))) for run in active)
        self._alerts = {run_id: alerts for run_id, alerts in found if alerts}

    def _alerts_of(self, run: ListedRun, observed: Observations) -> Iterator[str]:
        settings = self._bench.settings
        if run.state in UNCLAIMED:
            if self._health.server != "answers":
                yield "the server does not answer"
            elif not any(one.state != "gone" for one in self._health.workers):
                yield "no worker is alive"
            return
        _, beat = self._beats.get(run.run_id, (None, None))
        silent = silent_s(observed, run, beat)
        if silent > 2 * settings.beat_s:
            yield f"its worker is not heard since {_span(silent)}"
        idle = idle_s(observed, run, beat)
        if idle >= settings.stuck_after_s:
            yield f"stuck: no progress since {_span(idle)}"


def _span(seconds: float) -> str:
    """Return a span that does not change with every look."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"  # noqa: PLR2004


def _unix(at: datetime | None) -> float | None:
    return None if at is None else round(at.timestamp(), 3)


def _line(
    run: ListedRun,
    subject: _Subject,
    *,
    beat: Beat | None,
    saved: int | None,
    findings: tuple[str, ...],
) -> RunLine:
    # of a run that has ended, the figures of its summary have the names that a beat gives them
    shown = beat or Beat.from_dict({**(run.summary or {}), "number": 0})
    told = None if beat is None else beat.n_tokens_done
    created = run.created_at.timestamp()
    started, ended = _unix(run.claimed_at), _unix(run.ended_at)
    heard = beat.at if beat is not None and beat.at else None
    times = (created, _unix(run.queued_at), started, ended, heard)
    return RunLine(
        run_id=run.run_id,
        training_id=run.training_id,
        generation=run.generation,
        state=str(run.state),
        attempt=run.attempt,
        job_id=run.job_id,
        model=subject.model,
        hook_name=subject.hook_name,
        architecture=subject.architecture,
        d_sae=subject.d_sae,
        n_tokens=run.n_tokens,
        n_tokens_done=tokens_done(run.state, run.n_tokens, told=told, saved=saved),
        phase=None if beat is None else beat.phase,
        tokens_per_s=shown.tokens_per_s,
        beat_at=heard,
        created_at=round(created, 3),
        created_by=run.created_by,
        started_at=started,
        ended_at=ended,
        updated_at=max(one for one in times if one is not None),
        worker=None if run.process is None else "{host}:{pid}".format(**run.process),
        l0=shown.l0,
        fvu=shown.fvu,
        n_dead=shown.n_dead,
        results_bytes=run.results_bytes,
        checkpoint_tokens=saved,
        cancel_requested=run.cancel_requested and run.state in CLAIMED,
        error=(run.error or "").strip().partition("\n")[0] or None,
        findings=findings,
    )


def _server(bench: Workbench) -> str:
    if bench.queue.n_workers() is not None:
        return "answers"
    return "away" if bench.uses_own_server else "stopped"


def _workers(bench: Workbench) -> Iterator[WorkerLine]:
    """Tell of the workers: locally by their locks, which a crash releases, else by the server."""
    if bench.uses_own_server:
        for one in bench.queue.workers() or []:
            where = f"{one.host}:{one.pid}" if one.host else one.name
            yield WorkerLine(where=where, state=one.state)
        return
    for slot in embedded.worker_slots(bench.paths):
        pid, busy = slot.pid(), embedded.is_held(slot.busy)
        if pid is not None:
            state = "busy" if busy else "idle"
            yield WorkerLine(where=f"{platform.node()}:{pid}", state=state)
        elif busy:  # its job goes on without it
            yield WorkerLine(where=slot.lock.stem, state="gone")
