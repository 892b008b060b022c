"""The queue against a real server: sent once, read without a trace, nothing foreign is run."""

import json
import os
import platform
import subprocess
import sys

import psutil
import pytest
import redis
import rq
from rq.job import Job
from rq.serializers import JSONSerializer

from extraction_kit import Settings, embedded
from extraction_kit.errors import QueueUnreachable
from extraction_kit.jobqueue import QUEUE, TASK, Evidence, ExtractionJob, JobQueue
from extraction_kit.paths import Paths


@pytest.fixture
def paths(tmp_path):
    paths = Paths.of(tmp_path / "ws", Settings())
    embedded.start_server(paths)
    yield paths
    embedded.stop_server(paths)


@pytest.fixture
def queue(paths):
    queue = JobQueue(embedded.server_url(paths))
    yield queue
    queue._redis.close()


def test_an_id_is_taken_once_and_the_second_time_counts_as_sent(queue):
    assert queue.enqueue("xk-t-k-g1-a1", "run", 1) is True
    assert queue.enqueue("xk-t-k-g1-a1", "run", 1) is False
    assert queue._redis.llen(queue._queue.key) == 1
    assert queue.evidence("xk-t-k-g1-a1") is Evidence.LISTED
    assert queue.evidence("xk-t-k-g1-a2") is Evidence.MISSING


def test_asking_for_evidence_changes_nothing(queue):
    queue.enqueue("xk-t-k-g1-a1", "run", 1)
    queue._redis.hset(Job.key_for("xk-t-k-g1-a1"), "status", "started")
    queue._redis.zadd(
        f"rq:wip:{QUEUE}", {"xk-t-k-g1-a1:x": 1}
    )  # long expired, as RQ sees it

    def dump():
        keys = sorted(queue._redis.keys())
        return {key: queue._redis.dump(key) for key in keys}

    before = dump()
    for _ in range(3):
        assert queue.evidence("xk-t-k-g1-a1") is Evidence.STARTED
        queue.report()
        queue.n_workers()
        queue.workers()
    assert dump() == before


def test_workers_say_whether_they_work_and_are_gone_when_they_say_nothing(queue):
    assert queue.workers() == []
    worker = rq.Worker([queue._queue], connection=queue._redis, serializer=JSONSerializer)
    worker.register_birth()
    (one,) = queue.workers()
    assert (one.host, one.pid, one.state) == (platform.node(), os.getpid(), "idle")
    worker.set_state("busy")
    (one,) = queue.workers()
    assert one.state == "busy"
    queue._redis.delete(worker.key)  # what an expiry does
    (one,) = queue.workers()
    assert (one.name, one.state) == (worker.name, "gone")
    worker.register_death()
    assert queue.workers() == []


@pytest.mark.parametrize(
    "name", ["os.system", "extraction_kit.worker.serve", "builtins.eval"]
)
def test_a_job_that_names_another_function_is_not_run(queue, name):
    stock = rq.Queue(QUEUE, connection=queue._redis, serializer=JSONSerializer)
    stock.enqueue_call(name, args=("true",), job_id="stray")
    job = ExtractionJob.fetch("stray", connection=queue._redis, serializer=JSONSerializer)
    with pytest.raises(PermissionError, match="only"):
        job.perform()


def test_callbacks_that_a_job_names_are_never_called(queue):
    queue.enqueue("xk-t-k-g1-a1", "run", 1)
    key = Job.key_for("xk-t-k-g1-a1")
    for name in ("success", "failure", "stopped"):
        queue._redis.hset(key, f"{name}_callback_name", "os.abort")
    job = ExtractionJob.fetch(
        "xk-t-k-g1-a1", connection=queue._redis, serializer=JSONSerializer
    )
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None,) * 3


def test_what_is_stored_is_json_and_names_run_and_attempt_only(queue):
    queue.enqueue("xk-t-k-g1-a1", "run", 1)
    job = ExtractionJob.fetch(
        "xk-t-k-g1-a1", connection=queue._redis, serializer=JSONSerializer
    )
    assert job.func_name == TASK
    assert list(job.args) == ["run", 1]
    assert job.retries_left is None
    assert json.dumps(job.args)


def test_the_embedded_server_listens_on_a_private_socket_only(paths, queue):
    socket = embedded.socket_path(paths)
    assert socket.stat().st_mode & 0o777 == 0o700
    assert socket.parent.stat().st_mode & 0o077 == 0
    config = queue._redis.config_get("*")
    assert config["port"] == "0"
    assert config["appendonly"] == "yes"
    assert config["maxmemory-policy"] == "noeviction"


def test_a_server_that_is_away_is_unknown_evidence_and_its_password_is_never_told():
    queue = JobQueue("redis://me:secret@127.0.0.1:1/0")
    assert queue.evidence("any") is Evidence.UNKNOWN
    with pytest.raises(QueueUnreachable) as caught:
        queue.enqueue("any", "run", 1)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_password_is_in_no_argv_log_or_repr_of_a_worker(tmp_path, paths):
    """A server with a password, a real worker with that URL: who looks sees none of it."""
    administrator = redis.Redis.from_url(embedded.server_url(paths))
    administrator.acl_setuser("me", enabled=True, passwords=["+secret-word"], keys="*",
                              channels="*", categories=["+@all"])  # fmt: skip
    administrator.close()
    url = f"unix://me:secret-word@{embedded.socket_path(paths)}"
    settings = Settings(redis_url=url)
    assert "secret-word" not in repr(settings)
    home = tmp_path / "other"
    log = tmp_path / "worker.log"
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "extraction_kit", "--workspace", home, "worker", "--burst"],
            env={**os.environ, **settings.to_environment()}, stdout=file, stderr=file,
        )  # fmt: skip
        assert "secret-word" not in " ".join(psutil.Process(worker.pid).cmdline())
        assert worker.wait(60) == 0, log.read_text()
    assert "Listening on" in log.read_text(), "it did connect"
    assert "secret-word" not in log.read_text()
    for path in home.rglob("*"):
        assert not path.is_file() or b"secret-word" not in path.read_bytes(), path
