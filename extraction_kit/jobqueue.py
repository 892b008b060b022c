"""The courier: RQ carries ``(run_id, attempt)`` to a worker, and decides nothing.

The only file that imports ``rq`` and ``redis``. What RQ 3.0.0 does wrong under faults (jobs
run twice, lost, or shown in a wrong state) ends in a refused claim; here it is only kept
from doing harm:

* job ids are used once (``unique=True``), nothing is ever retried or requeued;
* evidence is read with raw commands: RQ's own registry readers run a cleanup that changes
  the state of jobs, and a plain ``Job.fetch`` unpickles what it finds;
* JSON only, one callable only, no callbacks: whoever can write to the server must not be
  able to name ``os.system``;
* a worker survives an outage of the server instead of orphaning its job.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import redis
import rq
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq.exceptions import DuplicateJobError
from rq.job import Job
from rq.serializers import JSONSerializer

from extraction_kit.config import masked
from extraction_kit.errors import QueueUnreachable

log = logging.getLogger(__name__)

QUEUE = "extraction-kit"
TASK = "extraction_kit.worker.run_job"
"""The one callable a job may name."""

_DAY_S = 86_400
_JOB_TIMEOUT_S = (
    30 * _DAY_S
)  # the lease and `stuck_after_s` are ours; RQ's would kill at 180 s
_MIN_VERSION = (6, 2)  # before it, RQ has no intermediate queue: a dying worker loses jobs


class Evidence(StrEnum):
    """What the server knows of a job id."""

    LISTED = "listed"  # waits in the queue
    INTERMEDIATE = "intermediate"  # popped by a worker, not yet started
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELED = "canceled"
    UNLISTED = "unlisted"  # a hash without a place in any list: nobody will run it
    MISSING = "missing"
    UNKNOWN = "unknown"  # the server does not answer: grants nothing


_ENDED = {
    "finished": Evidence.FINISHED,
    "failed": Evidence.FAILED,
    "stopped": Evidence.FAILED,
    "canceled": Evidence.CANCELED,
    "started": Evidence.STARTED,
}


@dataclass(frozen=True, kw_only=True)
class ServerReport:
    """What a connected server says of itself."""

    version: str
    problems: tuple[str, ...]  # each with what to do about it
    warnings: tuple[str, ...]
    n_queued: int
    n_workers: int  # as registered: a hint, never evidence


@dataclass(frozen=True, kw_only=True)
class WorkerReport:
    """What a worker last said of itself to the server."""

    name: str
    host: str
    pid: int | None
    state: str
    """``idle``, ``busy``, ``suspended``; ``gone`` if it stopped saying that it lives."""


class ExtractionJob(Job):  # type: ignore[misc] # rq has no complete types
    """A job that can name one callable and no callbacks."""

    @property
    def func(self) -> Callable[..., Any]:
        """Return the one task; refuse every other name that Redis may hold."""
        if self.func_name != TASK or self.instance:
            msg = f"job {self.id} names {self.func_name!r}; only {TASK!r} is run here"
            raise PermissionError(msg)
        function: Callable[..., Any] = super().func
        return function

    @property
    def success_callback(self) -> None:
        """No callbacks: they would be imported by name."""

    @property
    def failure_callback(self) -> None:
        """No callbacks."""

    @property
    def stopped_callback(self) -> None:
        """No callbacks."""


class JobQueue:
    """The queue of one server.

    Parameters
    ----------
    url : str
        ``redis://``, ``rediss://`` or ``unix://`` URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        # redis-py 8 retries ten times by default: a lost reply would enqueue twice, and a
        # dead server would cost a notebook 4 s (measured); one try, short timeouts.
        self._redis = redis.Redis.from_url(
            url,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=1.0,
            socket_timeout=2.0,
            health_check_interval=0,
        )
        self._queue = rq.Queue(
            QUEUE,
            connection=self._redis,
            serializer=JSONSerializer,
            job_class=ExtractionJob,
        )

    def enqueue(self, job_id: str, run_id: str, attempt: int) -> bool:
        """Hand a job to the server.

        Returns
        -------
        bool
            True if this call created it, False if the id is there already, which counts as
            sent (an earlier reply was lost, or another process was faster).

        Raises
        ------
        QueueUnreachable
            The server does not answer. The job may or may not be there.
        """
        with self._reachable():
            try:
                self._queue.enqueue_call(
                    TASK,
                    args=(run_id, attempt),
                    job_id=job_id,
                    unique=True,
                    timeout=_JOB_TIMEOUT_S,
                    result_ttl=_DAY_S,
                    failure_ttl=7 * _DAY_S,
                    description=f"extraction {run_id}, attempt {attempt}",
                )
            except DuplicateJobError:
                return False
        return True

    def evidence(self, job_id: str) -> Evidence:
        """Tell what the server knows of `job_id`, changing nothing."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(Job.key_for(job_id), "status")
        pipeline.exists(Job.key_for(job_id))
        pipeline.lpos(self._queue.key, job_id)
        pipeline.lpos(self._queue.intermediate_queue_key, job_id)
        try:
            status, exists, place, intermediate = pipeline.execute()
        except redis.RedisError:
            return Evidence.UNKNOWN
        if not exists:
            return Evidence.MISSING
        if status is not None and status.decode() in _ENDED:
            return _ENDED[status.decode()]
        if place is not None:
            return Evidence.LISTED
        return Evidence.UNLISTED if intermediate is None else Evidence.INTERMEDIATE

    def report(self) -> ServerReport:
        """Ask the server for its version, its settings and what waits.

        Raises
        ------
        QueueUnreachable
            It does not answer.
        """
        with self._reachable():
            info = self._redis.info()
            n_queued = self._redis.llen(self._queue.key)
        return ServerReport(
            version=str(info["redis_version"]),
            problems=tuple(_problems(info)),
            warnings=tuple(_warnings(info)),
            n_queued=int(n_queued),
            n_workers=self.n_workers() or 0,
        )

    def n_workers(self) -> int | None:
        """Return how many workers have registered, None if the server does not answer.

        A hint for a person, never evidence: a restarted server has forgotten them.
        """
        try:
            return int(self._redis.scard(f"rq:workers:{QUEUE}"))
        except redis.RedisError:
            return None

    def workers(self) -> list[WorkerReport] | None:
        """Return the workers that have registered, None if the server does not answer.

        A hint for a person, never evidence: see :meth:`n_workers`.
        """
        try:
            members: Any = self._redis.smembers(f"rq:workers:{QUEUE}")
            keys = sorted(members)
            pipeline = self._redis.pipeline(transaction=False)
            for key in keys:
                pipeline.hmget(key, ["hostname", "pid", "state"])
            found = pipeline.execute() if keys else []
        except redis.RedisError:
            return None
        return [
            _worker_report(key, values) for key, values in zip(keys, found, strict=True)
        ]

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise QueueUnreachable(
                f"the server {masked(self.url)} does not answer ({error}). Nothing is lost: the "
                "run stays in the ledger and is sent as soon as the server is back. "
                "Type `extraction-kit up` for the embedded server, or check "
                "EXTRACTION_KIT_REDIS_URL"
            ) from error


def _worker_report(key: bytes, values: list[bytes | None]) -> WorkerReport:
    host, pid, state = (None if one is None else one.decode() for one in values)
    known = state if state in {"idle", "busy", "suspended"} else None
    return WorkerReport(
        name=key.decode().rpartition(":")[2],
        host=host or "",
        pid=int(pid) if pid is not None and pid.isdecimal() else None,
        # its entry expires unless the worker renews it; one that starts is idle in a moment
        state="gone" if host is None else (known or "idle"),
    )


def _problems(info: dict[str, Any]) -> Iterator[str]:
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < _MIN_VERSION:
        yield (
            f"server version {info['redis_version']} is below 6.2: a dying worker would lose "
            "jobs. Use Redis >= 6.2 or Valkey"
        )
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield (
            f"maxmemory-policy is {policy}: the server may drop jobs. "
            "Type: CONFIG SET maxmemory-policy noeviction"
        )


def _warnings(info: dict[str, Any]) -> Iterator[str]:
    if not int(info.get("aof_enabled", 0)):
        yield (
            "appendonly is off: a restarted server forgets what is queued (the reconciler "
            "sends it again). Type: CONFIG SET appendonly yes"
        )


# --- worker ---------------------------------------------------------------------------------


class _Worker(rq.Worker):  # type: ignore[misc] # rq has no complete types
    """RQ's forking worker, made to survive its server and to pass SIGTERM on.

    Stock behaviour without this (rq 3.0.0, seen in runs): the parent quits when the server
    is away and leaves its job without a supervisor; SIGTERM waits for the end of an 80
    minute job; the job process dies of SIGTERM without a word.
    """

    job_class = ExtractionJob
    max_connection_wait_time = 5.0  # a server that is back is noticed soon

    def __init__(
        self,
        *,
        connection: redis.Redis,
        tick: Callable[[], None],
        tick_s: float,
        may_dequeue: Callable[[], bool],
        in_job: Callable[[], None],
    ) -> None:
        # The blocking pop ends after worker_ttl - 15 s: that is the idle worker's tick.
        super().__init__(
            [
                rq.Queue(
                    QUEUE,
                    connection=connection,
                    serializer=JSONSerializer,
                    job_class=ExtractionJob,
                )
            ],
            connection=connection,
            serializer=JSONSerializer,
            job_class=ExtractionJob,
            worker_ttl=15 + max(1, round(tick_s)),
            job_monitoring_interval=max(1, round(min(tick_s, 30))),
            log_job_description=False,
        )
        self._tick = tick
        self._tick_s = tick_s
        self._may_dequeue = may_dequeue
        self._in_job = in_job
        self._last_tick = -tick_s
        self._horse_pid: int

    def _tick_if_due(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._last_tick >= self._tick_s:
            self._last_tick = time.monotonic()
            self._tick()

    # --- the server may be away at any time ---

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:  # noqa: ANN401 - rq's
        """Say to RQ that this worker lives, and to the kit that time has passed."""
        with self._outage_survived():
            super().heartbeat(timeout, pipeline)
        if pipeline is None and not self.is_horse:
            self._tick_if_due()

    def maintain_heartbeats(self, job: Job, execution: Any) -> None:  # noqa: ANN401 - rq's
        """Keep RQ's records of a running job fresh, if the server is there."""
        with self._outage_survived():
            super().maintain_heartbeats(job, execution)
        self._tick_if_due()

    def set_state(self, state: str, pipeline: Any = None) -> None:  # noqa: ANN401 - rq's
        """Set the state here in any case, in the server if it is there."""
        self._state = state
        with self._outage_survived():
            super().set_state(state, pipeline)

    def monitor_work_horse(self, job: Job, queue: rq.Queue, execution: Any) -> None:  # noqa: ANN401 - rq's
        """Wait for the job's process to end, then look at once at what it left."""
        with self._outage_survived():
            super().monitor_work_horse(job, queue, execution)
        # An outage inside ends RQ's loop early: the process may still run.
        while self._horse_pid and _is_running(self._horse_pid):
            self._tick_if_due()
            time.sleep(0.2)
        self._horse_pid = 0
        self._tick_if_due(now=True)

    def execute_job(self, job: Job, queue: rq.Queue) -> None:
        """Run a job in its own process; an outage before the fork leaves it to be re-sent."""
        with self._outage_survived():
            super().execute_job(job, queue)

    def check_for_suspension(self, burst: bool) -> None:
        """Honour ``rq suspend``, if the server is there."""
        with self._outage_survived():
            super().check_for_suspension(burst)

    def run_maintenance_tasks(self) -> None:
        """Nothing: RQ's maintenance requeues finished jobs (seen with rq 3.0.0)."""

    def clean_registries(self) -> None:
        """Nothing, for the same reason."""

    def teardown(self) -> None:
        """Sign off, if the server is there."""
        with self._outage_survived():
            super().teardown()

    @contextlib.contextmanager
    def _outage_survived(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            self.log.warning("Worker %s: the server does not answer: %s", self.name, error)

    # --- one job at a time, and signals ---

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> Any:  # noqa: ANN401 - rq's
        """Wait while the process of a killed sibling still computes, then take a job."""
        while not self._may_dequeue():
            if self._stop_requested:
                return None
            self._tick_if_due()
            time.sleep(0.5)
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    def handle_warm_shutdown_request(self) -> None:
        """Pass SIGTERM on: the job writes a checkpoint and ends as interrupted."""
        super().handle_warm_shutdown_request()
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def main_work_horse(self, job: Job, queue: rq.Queue) -> None:
        """Run the job in its own process."""
        self._in_job()
        super().main_work_horse(job, queue)


def _is_running(pid: int) -> bool:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False
    return done == 0


def _await_server(
    connection: redis.Redis, *, tick: Callable[[], None], tick_s: float
) -> None:
    """Wait for a server that is away; a worker that starts first must not die of it."""
    ticked = time.monotonic()
    while True:
        try:
            connection.ping()
        except redis.RedisError as error:
            log.warning("the server does not answer: %s", error)
        else:
            return
        time.sleep(0.5)
        if time.monotonic() - ticked >= tick_s:
            ticked = time.monotonic()
            tick()


def work(
    url: str,
    *,
    tick: Callable[[], None],
    tick_s: float,
    may_dequeue: Callable[[], bool],
    in_job: Callable[[], None],
    burst: bool = False,
) -> None:
    """Serve the queue until told to stop (SIGTERM, SIGINT).

    Parameters
    ----------
    url : str
        The server.
    tick : callable
        Called every `tick_s` seconds and after each job; must not raise for an outage.
    tick_s : float
        Seconds.
    may_dequeue : callable
        Asked before each job.
    in_job : callable
        Called first in each job's process.
    burst : bool
        Stop when the queue is empty.
    """
    # Waiting for a job blocks for a whole tick, so this connection has its own timeouts;
    # RQ raises socket_timeout above its blocking time by itself.
    connection = redis.Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=2.0, socket_timeout=5.0
    )
    _await_server(connection, tick=tick, tick_s=tick_s)
    worker = _Worker(
        connection=connection,
        tick=tick,
        tick_s=tick_s,
        may_dequeue=may_dequeue,
        in_job=in_job,
    )
    worker.work(burst=burst, logging_level="INFO")
