"""A workspace whose worker can be held at a phase, and hands to break things in it."""

import os
import shutil
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import redis

from extraction_kit import Settings, Workspace
from extraction_kit.embedded import (
    monitor_slot,
    take_lock,
    worker_alive,
    worker_pid,
    worker_slot,
)
from extraction_kit.ledger import events, records
from extraction_kit.lifecycle import ENDED, RESTING, RunState
from extraction_kit.liveness import ProcessIdentity
from tests.acceptance.freezing import state_in
from tests.acceptance.matrix.held import CONFIG, environment_of
from tests.acceptance.matrix.script import Script
from tests.waiting import until

SETTINGS = Settings(
    beat_s=0.2,
    lease_s=60.0,
    reconcile_s=1.0,
    queued_grace_s=0.5,
    intermediate_grace_s=2.0,
    checkpoint_every_s=1e6,
    tile_tokens=64,
    threads=1,
    device="cpu",
    min_free_bytes=0,
)
PATIENCE_S = 40.0


class Stagehand:
    """One cell's workspace, its real processes, and the run that is computed in it.

    Parameters
    ----------
    folder : Path
        Empty; gets the workspace and the script.
    tiny : TinyTraining
        What is extracted.
    zygote : Zygote
        Forks the held programs.
    settings : Settings
        With ``ledger_url`` for another database, and thresholds for one fault.
    """

    def __init__(self, folder, tiny, *, zygote, settings=SETTINGS) -> None:
        self.folder = folder
        self.tiny = tiny
        self.zygote = zygote
        self.settings = settings
        self.home = folder / "ws"
        self.script = Script(folder / "script")
        self.ends = ExitStack()  # what a fault leaves behind for the end of the cell
        self.ws = self.workspace()
        self.bench = self.ws._bench
        self.ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
        self._started, self._sessions = set(), set()
        self._be_the_monitor()
        self._redis = redis.Redis.from_url(self.bench.queue.url)
        self.ends.callback(self._redis.close)
        self.run_id = None
        self.rested = None  # the state in which the run was left before a person acted

    def _be_the_monitor(self):
        """Take the monitor's slot: what is done to the run is done by `settle` alone."""
        slot = monitor_slot(self.bench.paths)
        lock = take_lock(slot.lock, patience_s=1.0)
        assert lock is not None
        self.ends.callback(os.close, lock)
        self.bench.sign_card(slot.card)

    def workspace(self):
        """Return another handle of the same workspace, as another notebook would have it."""
        return Workspace(self.home, settings=self.settings)

    # --- processes ---

    def start(self, program, **request):
        """Start one of the programs of :mod:`tests.acceptance.matrix.held`; return its pid."""
        environment = environment_of(self.settings, self.home)
        pid = self.zygote.start(
            program,
            log=self.folder / f"{program.replace(' ', '-')}.log",
            environment=environment,
            home=self.home,
            script=self.script.folder,
            **request,
        )
        with suppress(ProcessLookupError):
            self._sessions.add(os.getsid(pid))  # its jobs stay in its session
        self._started.add(pid)
        return pid

    def start_worker(self, slot=1):
        """Start a held worker in one of the workspace's slots, as a supervisor would."""
        pid = self.start("worker", slot=slot)
        lock = worker_slot(self.bench.paths, slot)
        until(lambda: lock.pid() == pid, "the worker to take its slot")

    def worker(self):
        """Return the pid of the worker in the slot, None if none is alive."""
        return worker_pid(self.bench.paths)

    def job(self):
        """Return the pid of the process that claimed the run, None if it is gone."""
        process = self.record().process
        if process is None or ProcessIdentity.from_dict(process).gone():
            return None
        return process["pid"]

    def server(self):
        """Return the pid of the server."""
        return int(self.redis().info("server")["process_id"])

    def redis(self):
        """Return a stock client of the server."""
        return self._redis

    def kill(self, pid):
        """End a process with SIGKILL; return when it is gone."""
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_running(pid), f"the end of process {pid}")

    # --- the run ---

    def prepare(self):
        """Start server and worker: a launch finds both and starts neither."""
        self.bench.start_server()
        self.start_worker()

    def launch(self):
        """Launch the cell's run, or find it."""
        run = self.launch_with(self.ws)
        self.run_id = run.run_id
        return run

    def launch_with(self, workspace):
        """Launch the same in another handle of the workspace."""
        return workspace.launch(
            "tiny", corpus=self.tiny.corpus, config=CONFIG, strict=False
        )

    def run(self):
        """Return a handle of the cell's run."""
        return self.ws.run(self.run_id)

    def record(self):
        """Return the ledger's row, without looking at any other evidence."""
        with self.bench.store.read() as connection:
            return records.run(connection, self.run_id)

    def state(self):
        """Return the state in the ledger."""
        return self.record().state

    def events(self):
        """Return what happened to the run, oldest first."""
        with self.bench.store.read() as connection:
            return events.of_run(connection, self.run_id)

    def count(self, kind, attempt=None):
        """Return how often something happened to the run (to one attempt)."""
        return sum(
            one.count
            for one in self.events()
            if one.kind == kind and attempt in (None, one.attempt)
        )

    def beats(self):
        """Return the number of the last beat."""
        record = self.record()
        return self.bench.beats.read(record.run_id, record.attempt).number

    def job_ids(self):
        """Return the job id of every attempt so far, by attempt number."""
        last = self.record()
        stem = last.job_id.removesuffix(f"-a{last.attempt}")
        return {number: f"{stem}-a{number}" for number in range(1, last.attempt + 1)}

    # --- what supervisor, reconciler and a person do ---

    def settle(self, *, states=ENDED):
        """Let supervisor and reconciler work until the run ends or rests; return its state.

        A run rests when a whole reconciliation has left it so.
        """

        def settled():
            if not worker_alive(self.bench.paths):
                self.start_worker()
            self.ws.reconcile()
            before = self.state()
            if before in RESTING:
                self.ws.reconcile()
            return self.state() if before in states else None

        return until(settled, f"the run to end ({self.state()})", patience_s=PATIENCE_S)

    def resume(self):
        """Do what a person does about a run that rests."""
        assert worker_alive(self.bench.paths)
        self.script.note("fenced", attempt=self.record().attempt)
        self.run().resume()

    def finish(self):
        """Resume until the run is completed; a second resume would be one too many."""
        ended = self.settle()
        self.rested = self.rested or ended
        if ended in RESTING:
            self.resume()
            self.settle()
        assert self.state() is RunState.COMPLETED, self.run().explain()

    # --- the end ---

    def queue_is_empty(self):
        """Tell whether every delivery was taken."""
        queue = self.bench.queue._queue
        waiting = [queue.key, queue.intermediate_queue_key]
        return not any(self.redis().llen(key) for key in waiting)

    def close(self):
        """End every process of the cell, frozen ones too."""
        self.script.release()
        for pid in self._started | {line["pid"] for line in self.script.lines()}:
            with suppress(ProcessLookupError):
                if os.getsid(pid) in self._sessions:
                    _end(pid)
        with suppress(redis.RedisError):
            _end(self.server())
        self.ends.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def is_running(pid):
    """Tell whether a thread of such a process is left: until then its locks are held."""
    with suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                if state_in(thread / "stat") not in "ZX":
                    return True
    return False


def _end(pid):
    for number in (signal.SIGKILL, signal.SIGCONT):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    until(lambda: not is_running(pid), f"the end of process {pid}")
