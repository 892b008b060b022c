"""What plain RQ does under faults: the reasons for the protocol, and a bell if RQ changes.

If one of these fails after an update of RQ, RQ has become better (or worse): read its change
log, then decide whether the guard named in the test is still needed. Seen with RQ 3.0.0.
"""

import os
import signal
import socket
import threading

import pytest
import redis
import rq
from rq.exceptions import DuplicateJobError
from rq.job import JobStatus

from tests.plain_rq import PlainRq, work
from tests.waiting import until

pytestmark = pytest.mark.slow  # watches RQ, not the kit


@pytest.fixture
def plain(tmp_path):
    plain = PlainRq(tmp_path)
    yield plain
    plain.close()


def finished(plain, **options):
    """Run the job once, with a worker that then waits for more."""
    plain.let_it_end()
    plain.enqueue(**options)
    plain.start_worker()
    plain.until_status(JobStatus.FINISHED)
    assert plain.executions == 1


def test_rq_still_runs_a_finished_job_again_when_its_id_is_pushed(plain):
    finished(plain, result_ttl=-1)
    plain.push_again()
    plain.until_started(2)


def test_rq_still_requeues_a_finished_job_that_its_intermediate_queue_kept(plain):
    finished(plain, result_ttl=-1, retry=rq.Retry(max=2))
    plain.connection.lpush(plain.intermediate.key, "job")
    plain.maintain_twice()
    plain.until_started(2)


def test_rq_still_calls_a_finished_job_failed_that_its_intermediate_queue_kept(plain):
    finished(plain, result_ttl=-1)
    plain.connection.lpush(plain.intermediate.key, "job")
    plain.maintain_twice()
    assert plain.status == "failed"
    assert plain.executions == 1


@pytest.mark.parametrize(
    ("retry", "state"), [(None, "failed"), (rq.Retry(max=1), "queued")], ids=["no retry", "retry"]
)  # fmt: skip
def test_rq_still_changes_a_running_jobs_state_when_its_registry_is_read(
    plain, retry, state
):
    plain.enqueue(retry=retry)
    worker = plain.start_worker()
    plain.until_started()
    worker.kill()
    worker.wait()
    assert plain.status == "started"
    plain.age_executions()
    assert plain.started.count == 0  # what a dashboard shows
    assert plain.status == state
    assert not plain.journal("end"), "it was to be running still"


def test_rq_still_accepts_a_unique_id_again_once_its_result_has_expired(plain):
    plain.let_it_end()
    plain.enqueue(result_ttl=0)
    plain.start_worker()
    until(lambda: plain.journal("end") and plain.status == "unknown", "the end of the job")
    plain.enqueue(result_ttl=0)
    plain.until_started(2)


def test_rq_still_requeues_a_job_whose_process_was_killed_if_it_may_retry(plain):
    plain.enqueue(retry=rq.Retry(max=1))
    plain.start_worker()
    os.kill(plain.until_started(), signal.SIGKILL)
    plain.until_started(2)


def test_rqs_worker_still_ends_when_its_server_does_and_leaves_its_job_alone(plain):
    plain.enqueue()
    worker = plain.start_worker()
    orphan = plain.until_started()
    plain.kill_server()
    worker.wait(timeout=30)
    assert not plain.journal("end")
    plain.let_it_end()
    plain.until_gone(orphan)
    assert plain.journal("end") == [orphan]
    plain.start_server()
    assert plain.status == "started", "its end was recorded"


# --- lost replies ---------------------------------------------------------------------------


class LostReply:
    """A socket in front of the server's that forwards all but one reply.

    The server has done what it was told by the command that holds `word`; the client sees a
    closed connection.
    """

    def __init__(self, plain: PlainRq, word: bytes) -> None:
        self.path = plain.folder / "proxy.sock"
        self.n_lost = 0
        self._word, self._target = word, str(plain.socket)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as server:
                server.connect(self._target)
                self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        # One request, one reply: redis-py never sends the next one before it has the answer.
        while request := client.recv(2**20):
            server.sendall(request)
            reply = server.recv(2**20)
            if self._word in request and not self.n_lost:
                self.n_lost += 1
                return
            client.sendall(reply)


def test_rq_still_enqueues_twice_when_one_reply_is_lost(plain):
    with (
        LostReply(plain, b"RPUSH") as proxy,
        redis.Redis(unix_socket_path=str(proxy.path)) as connection,
    ):
        rq.Queue(connection=connection).enqueue(work, str(plain.folder), job_id="job")
    assert proxy.n_lost == 1
    assert plain.queue.get_job_ids() == ["job", "job"]


def test_rq_still_refuses_as_duplicate_what_this_very_call_enqueued(plain):
    plain.enqueue(job_id="other")  # the server has RQ's script from now on
    with (
        LostReply(plain, b"EVALSHA") as proxy,
        redis.Redis(unix_socket_path=str(proxy.path)) as connection,
    ):
        queue = rq.Queue(connection=connection)
        with pytest.raises(DuplicateJobError):
            queue.enqueue(work, str(plain.folder), job_id="job", unique=True)
    assert proxy.n_lost == 1
    assert plain.queue.get_job_ids() == ["other", "job"]
