"""Actors around a real ledger: a queue that does anything, processes that stop anywhere.

The ledger, its transitions, the service, the reconciler, staging and publishing are the real
ones. Modelled is what surrounds them: the server (it may lie, forget, deliver anything at any
time), the worker processes (each a generator that stops at every point where a real one could
die or freeze), the process table of the machine, and the clock.
"""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extraction_kit import liveness
from extraction_kit.atomic import write_json
from extraction_kit.catalog.publish import MANIFEST, publish, read_manifest
from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import QueueUnreachable
from extraction_kit.jobqueue import Evidence
from extraction_kit.ledger.store import Connection, Store
from extraction_kit.ledger.transitions import Mover, Target, claim, move
from extraction_kit.lifecycle import CLAIMED, Actor, Move, RunState
from extraction_kit.liveness import Beat, Observations, ProcessIdentity
from extraction_kit.reconcile import completion
from extraction_kit.service import Content
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench

SETTINGS = Settings(
    redis_url="unix:///modelled", min_free_bytes=0, intermediate_grace_s=60.0
)
TRAININGS = ("first", "second")
CONTENT_KEYS = ("a" * 64, "b" * 64)
_FIRST_PID = 10_000_000  # above every real one: nothing here can hit a real process
_N_BATCHES = 2
POINTS = (
    "claimed", "computed a batch", "publishing", "staged without manifest", "staged",
    "about to rename", "renamed", "about to say why it ends",
)  # fmt: skip


class Crash(BaseException):
    """The process that called ends here, without another word."""


class ModelQueue:
    """A server that loses, repeats and misreports; the public methods of ``JobQueue``."""

    def __init__(self, moment: "Moment") -> None:
        self.moment = moment
        self.jobs: dict[str, tuple[str, int]] = {}  # everything that was ever accepted
        self.says: dict[str, Evidence] = {}
        self.fault = ""

    def enqueue(self, job_id: str, run_id: str, attempt: int) -> bool:
        fault, self.fault = self.fault, ""
        if fault == "crash before":
            raise Crash
        if fault == "down":
            raise QueueUnreachable("modelled outage")
        accepted = job_id not in self.says
        if accepted:
            self.says[job_id] = Evidence.LISTED
            self.jobs[job_id] = (run_id, attempt)
        if fault == "reply lost":
            raise QueueUnreachable("modelled outage")
        if fault == "crash after":
            raise Crash
        return accepted

    def evidence(self, job_id: str) -> Evidence:
        return self.says.get(job_id, Evidence.MISSING)

    def n_workers(self) -> int | None:
        return 0


class Moment:
    """Now; and what another process does between a caller's look and its act."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pending: Callable[[], None] | None = None
        self.dies_after_commit = False

    def committed(self) -> None:
        """End the process that has just changed the ledger, if that is planned."""
        if self.dies_after_commit:
            self.dies_after_commit = False
            raise Crash

    def read_clock(self) -> float:
        """Return the observers' clock: they read it after looking and before acting."""
        self.happen()
        return self.now_s

    def happen(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            dies, self.dies_after_commit = (
                self.dies_after_commit,
                False,
            )  # not the other one
            pending()
            self.dies_after_commit = dies


class ModelStore(Store):
    """The ledger, whose callers may die right after a commit."""

    moment: Moment

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
        self.moment.committed()


class ModelBench(Workbench):
    """A workspace whose observers read a movable clock."""

    def observations(self) -> Observations:
        lease_s, clock = self.settings.lease_s, self.queue.moment.read_clock
        return Observations(self.paths.beats, longest_gap_s=lease_s, clock=clock)

    def start_processes(self) -> None:
        self.queue.moment.happen()  # a launcher has looked, and has not decided yet


class Kernel:
    """The process table of the machine, and the signals that observers send."""

    def __init__(self) -> None:
        self.processes: dict[int, WorkerProcess] = {}

    @contextmanager
    def in_charge(self) -> Iterator[None]:
        """Answer for the real one."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(liveness, "start_of", self._start_of)
            patch.setattr(
                ProcessIdentity, "signal", lambda identity, _: self._kill(identity)
            )
            yield

    def _start_of(self, pid: int) -> str | None:
        return "then" if pid in self.processes else None

    def _kill(self, identity: ProcessIdentity) -> bool:
        if identity.gone() is not False:
            return False
        self.processes[identity.pid].crash()
        return True


class World:
    """One workspace in `home`, with everything around it modelled."""

    def __init__(self, home: Path, staged: Path) -> None:
        self.moment = Moment()
        self.queue = ModelQueue(self.moment)
        self.kernel = Kernel()
        bench = ModelBench.open(home, SETTINGS)
        store = ModelStore.at(bench.paths.ledger)
        store.moment = self.moment
        self.bench = replace(bench, queue=self.queue, store=store)
        self.staged = staged
        self.sql = sqlite3.connect(home / "ledger.sqlite", isolation_level=None)
        self.sql.row_factory = sqlite3.Row
        self.workers: list[WorkerProcess] = []
        self.executions: Counter[tuple[str, int]] = Counter()

    def content(self, training: int, key: int) -> Content:
        return Content(
            training=SimpleNamespace(
                training_id=TRAININGS[training], sae=SimpleNamespace(d_sae=16)
            ),
            corpus=_CORPUS,
            config=ExtractionConfig(),
            key=CONTENT_KEYS[key],
        )

    def row(self, run_id: str) -> sqlite3.Row:
        """Return a run as any other program would see it."""
        return self.sql.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()

    def deliver(self, job_id: str, *, elsewhere: bool = False) -> "WorkerProcess":
        run_id, attempt = self.queue.jobs[job_id]
        worker = WorkerProcess(self, run_id, attempt, elsewhere=elsewhere)
        self.workers.append(worker)
        worker.step()
        return worker


_CORPUS = SimpleNamespace(
    path=Path("/"), digest="c" * 64, source="synthetic", n_contexts=40, n_tokens=960,
    n_tokens_total=960, context_size=24, tokenizer_digest="d" * 64,
    vocab=Path("d.parquet"), vocab_size=50, masks={}, accounting=None,
)  # fmt: skip


class _Fenced(Exception):
    """Another attempt has taken over."""


class _Stopped(Exception):
    def __init__(self, what: Move) -> None:
        self.what = what


class WorkerProcess:
    """A process that works on one delivery; not stepping it is freezing it."""

    def __init__(self, world: World, run_id: str, attempt: int, *, elsewhere: bool) -> None:
        number = len(world.workers)
        self.target = Target(run_id=run_id, attempt=attempt)
        self.told_to_stop = False
        self.breaks = False
        self._world = world
        self._pid = _FIRST_PID + number
        self._nonce = f"{number:032d}"
        self._beat = Beat(number=0)
        self._good_at = world.moment.now_s
        self._order: Exception | None = None
        here = ProcessIdentity.of_this_process()
        self._identity = replace(
            here,
            host="elsewhere" if elsewhere else here.host,
            pid=self._pid,
            started="then",
        )
        world.kernel.processes[self._pid] = self
        self._points = self._work()

    @property
    def alive(self) -> bool:
        return self._pid in self._world.kernel.processes

    def step(self) -> str:
        """Go on to the next point at which a process could stop; return its name."""
        point = next(self._points, "over")
        if point == "over":
            self.crash()
        return point

    def run(self, *, until: str = "over") -> None:
        """Go on to a point, or to the end."""
        while self.alive and self.step() != until:
            pass

    def crash(self) -> None:
        self._points.close()
        self._world.kernel.processes.pop(self._pid, None)

    # --- the lease ---

    def beat(self) -> None:
        """Beat once and take what the ledger orders."""
        self._beat = replace(self._beat, number=self._beat.number + 1)
        self._world.bench.beats.write(self.target.run_id, self.target.attempt, self._beat)
        self._good_at = self._world.moment.now_s
        row = self._world.row(self.target.run_id)
        if not self._owns(row):
            self._order = _Fenced()
        elif row["cancel_requested"] and row["state"] == RunState.EXTRACTING:
            self._order = self._order or _Stopped(Move.CANCEL)

    def _owns(self, row: sqlite3.Row) -> bool:
        return row["state"] in CLAIMED and (
            (row["attempt"], row["nonce"]) == (self.target.attempt, self._nonce)
        )

    def _check_ours(self) -> None:
        settings = self._world.bench.settings
        if (
            self._world.moment.now_s - self._good_at
            > settings.self_check_share * settings.lease_s
        ):
            self.beat()
        if isinstance(self._order, _Fenced):
            raise self._order

    def _check(self) -> None:
        self._check_ours()
        if self.breaks:
            raise _Stopped(Move.FAIL)
        if self._order is not None:
            raise self._order
        if self.told_to_stop:
            raise _Stopped(Move.INTERRUPT)

    # --- the job ---

    def _work(self) -> Iterator[str]:
        if not self._claim():
            return
        yield "claimed"
        try:
            yield from self._complete()
        except _Fenced:
            pass
        except _Stopped as stopped:
            yield "about to say why it ends"
            self._move(stopped.what)
        self._world.bench.beats.forget(self.target.run_id, self.target.attempt)

    def _complete(self) -> Iterator[str]:
        paths = self._world.bench.paths
        final = paths.results_of(self.target.run_id)
        if not final.exists():
            for _ in range(_N_BATCHES):
                yield "computed a batch"
                self._check()
            if not self._move(Move.PUBLISH):
                raise _Fenced
            yield "publishing"
            staged = paths.staging_of(self.target.run_id, self.target.attempt)
            yield from self._stage(staged)
            self._check_ours()
            yield "about to rename"
            publish(staged, final)
        yield "renamed"
        manifest = read_manifest(final)
        assert manifest is not None
        ours = manifest["attempt"] == self.target.attempt
        values = completion(manifest, final, at=self._world.bench.now())
        self._move(Move.COMPLETE if ours else Move.ADOPT, **values)

    def _stage(self, staged: Path) -> Iterator[str]:
        """Stage as the real one does, manifest last, with a stop between any two steps."""
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(self._world.staged, staged, ignore=shutil.ignore_patterns(MANIFEST))
        yield "staged without manifest"
        manifest = read_manifest(self._world.staged)
        whose = {
            "run_id": self.target.run_id,
            "content_key": self._world.row(self.target.run_id)["content_key"],
            "attempt": self.target.attempt,
        }
        write_json(staged / MANIFEST, manifest | whose | {"process": self._pid})
        yield "staged"

    # --- what it changes, and that it was entitled to ---

    def _mover(self) -> Mover:
        name = f"here:{self._pid}"
        return Mover(actor=Actor.WORKER, name=name, at=self._world.bench.now())

    def _claim(self) -> bool:
        before = self._world.row(self.target.run_id)
        with self._world.bench.store.write() as connection:
            process = self._identity.to_dict()
            claimed = claim(
                connection,
                self.target,
                by=self._mover(),
                nonce=self._nonce,
                process=process,
                kit_version=__version__,
            )
        if claimed:
            self._world.executions[self.target.run_id, self.target.attempt] += 1
            self.target = replace(self.target, nonce=self._nonce)
        else:
            assert self._world.row(self.target.run_id) == before
        return claimed

    def _move(self, what: Move, **values: Any) -> bool:
        before = self._world.row(self.target.run_id)
        with self._world.bench.store.write() as connection:
            moved = move(
                connection, self.target, what, by=self._mover(), text="", values=values
            )
        if moved:
            assert self._owns(before), f"a fenced attempt did {what} on {tuple(before)}"
        else:
            assert self._world.row(self.target.run_id) == before
        return moved
