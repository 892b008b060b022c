"""RQ as its documentation shows it, on a real server: what the kit is compared with.

``python -m tests.plain_rq SOCKET`` is a stock worker. Only waiting is shortened: the worker
looks at its job every second, and what RQ would do after a minute is brought about by moving
a recorded time back by two.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import redis
import rq
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry

from extraction_kit.config import Settings
from extraction_kit.embedded import server_binary
from extraction_kit.paths import Paths
from tests.waiting import PATIENCE_S, until

MINUTES_S = 120
ROOT = Path(__file__).parents[1]


def work(folder: str) -> str:
    """Do what a job does: say that it begins, take its time, say that it ends."""
    place = Path(folder)
    _note(place, "start")
    deadline = time.monotonic() + PATIENCE_S
    while not (place / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    _note(place, "end")
    return "done"


def _note(folder: Path, what: str) -> None:
    line = json.dumps({"what": what, "pid": os.getpid()}) + "\n"
    with (folder / "journal").open("a", encoding="utf-8") as file:
        file.write(line)


class PlainRq:
    """A server, stock workers and the one job ``job`` in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "s.sock"
        self.workers: list[subprocess.Popen] = []
        self._server: subprocess.Popen | None = None
        self.start_server()
        self.connection = redis.Redis(unix_socket_path=str(self.socket))
        self.queue = rq.Queue(connection=self.connection)
        self.intermediate = self.queue.intermediate_queue

    # --- the server ---

    def start_server(self) -> None:
        paths = Paths.of(self.folder, Settings())
        command = [str(server_binary(paths)), "--port", "0", "--save", ""]
        command += ["--unixsocket", str(self.socket), "--dir", str(self.folder)]
        self._server = subprocess.Popen(
            [*command, "--appendonly", "yes"],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        with redis.Redis(unix_socket_path=str(self.socket)) as probe:
            until(lambda: _answers(probe), "the server")

    def kill_server(self, *, forget: bool = False) -> None:
        """Kill the server; with `forget` its file goes too."""
        self._server.kill()
        self._server.wait()
        if forget:
            for path in (self.folder / "appendonlydir").iterdir():
                path.unlink()

    # --- workers ---

    def start_worker(self) -> subprocess.Popen:
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.plain_rq", str(self.socket)],
                cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def maintain(self) -> None:
        """Do what any idle worker does every ten minutes."""
        rq.Worker([self.queue], connection=self.connection).run_maintenance_tasks()

    def maintain_twice(self) -> None:
        """Do it twice, a minute apart; what is stuck was first seen by the first one."""
        self.maintain()
        for key in self.connection.scan_iter(f"{self.intermediate.key}:first_seen:*"):
            self.connection.set(key, time.time() - MINUTES_S)
        self.maintain()

    def age_executions(self) -> None:
        """Let the time pass after which a running job without a supervisor has expired."""
        key = self.started.key
        for member, score in self.connection.zrange(key, 0, -1, withscores=True):
            self.connection.zadd(key, {member: score - MINUTES_S})

    # --- the job ---

    def enqueue(self, **options) -> Job:
        options = {"job_id": "job", "unique": True} | options
        return self.queue.enqueue(work, str(self.folder), **options)

    def push_again(self) -> None:
        self.connection.lpush(self.queue.key, "job")

    @property
    def started(self) -> StartedJobRegistry:
        return self.queue.started_job_registry

    @property
    def status(self) -> str:
        try:
            return str(Job.fetch("job", connection=self.connection).get_status().value)
        except (rq.exceptions.NoSuchJobError, rq.exceptions.InvalidJobOperation):
            return "unknown"  # gone before it was read, or while it was

    def until_status(self, status: JobStatus) -> None:
        until(lambda: self.status == status.value, f"status {status.value}")

    def journal(self, what: str) -> list[int]:
        """Return the pids that noted `what`."""
        with suppress(FileNotFoundError):
            lines = (self.folder / "journal").read_text(encoding="utf-8").splitlines()
            notes = [json.loads(line) for line in lines]
            return [note["pid"] for note in notes if note["what"] == what]
        return []

    @property
    def executions(self) -> int:
        return len(self.journal("start"))

    def until_started(self, n: int = 1) -> int:
        """Wait for the `n`-th execution; return its pid."""
        until(lambda: self.executions >= n, f"execution {n}")
        return self.journal("start")[n - 1]

    def until_gone(self, pid: int) -> None:
        """Wait until an execution's process is over: it reports its end after noting it."""
        until(lambda: _is_over(pid), f"the end of process {pid}")

    def let_it_end(self) -> None:
        (self.folder / "go").touch()

    def close(self) -> None:
        for pid in self.journal("start"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.connection.close()
        self.kill_server()


def _answers(connection: redis.Redis) -> bool:
    try:
        return bool(connection.ping())
    except redis.RedisError:
        return False


def _is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def main(socket: str) -> None:
    """Work as ``rq worker`` does, until told to stop."""
    connection = redis.Redis(unix_socket_path=socket)
    worker = rq.Worker(["default"], connection=connection, job_monitoring_interval=1)
    worker.work()


if __name__ == "__main__":
    main(sys.argv[1])
