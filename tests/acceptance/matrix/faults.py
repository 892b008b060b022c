"""What can go wrong: each fault strikes, shows that it really happened, and is mended.

A fault is a context: it strikes on entry, while the run is held; the cell then lets
everybody go on; what comes after ``yield`` is the rest of the fault (a server that comes
back, a process that thaws).
"""

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import rq
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.serializers import JSONSerializer

from extraction_kit import embedded, jobqueue
from extraction_kit.errors import AlreadyCompleted, Refused, StillActive, TooLateToCancel
from extraction_kit.jobqueue import Evidence
from extraction_kit.lifecycle import CLAIMED, RESTING, RunState
from tests.acceptance.freezing import freeze as freeze_process
from tests.acceptance.freezing import is_frozen
from tests.acceptance.matrix.phases import UNCLAIMED
from tests.acceptance.matrix.stagehand import is_running
from tests.waiting import until

AWAY_S = 6.0
"""Longer than each timeout of the kit and of RQ that applies here: connect 1 and 2 s, answer
2 and 5 s, RQ's monitoring and the reconciler's tick every second."""
HOURS = 5


@contextmanager
def nothing(_stage, _phase):
    yield


# --- processes ------------------------------------------------------------------------------


def _kill_job(stage, phase):
    job = stage.job()
    assert (job is None) == (phase in UNCLAIMED), (
        "a job's process exists once it is claimed"
    )
    if job is not None:
        stage.kill(job)


@contextmanager
def kill_job(stage, phase):
    _kill_job(stage, phase)
    yield


@contextmanager
def kill_worker(stage, phase):
    job = stage.job()
    stage.kill(stage.worker())
    assert stage.worker() is None
    assert stage.job() == job, "the job lives on without its worker"
    yield


@contextmanager
def kill_both(stage, phase):
    stage.kill(stage.worker())
    _kill_job(stage, phase)
    yield


@contextmanager
def terminate_both(stage, phase):
    worker, job = stage.worker(), stage.job()
    for pid in filter(None, (job, worker)):
        os.kill(pid, signal.SIGTERM)
    if job is None:
        until(lambda: not is_running(worker), "the idle worker's end")
    yield
    until(lambda: not is_running(worker), "the worker's end")
    assert job is None or not is_running(job)


@contextmanager
def freeze(stage, phase):
    frozen = freeze_beyond_the_lease(stage)
    yield
    thaw(frozen)


@contextmanager
def freeze_until_replaced(stage, phase):
    frozen = freeze_beyond_the_lease(stage)
    stage.script.release()
    stage.start_worker(slot=2)  # what another machine would do
    stage.settle()
    yield
    thaw(frozen)
    until(lambda: stage.job() is None, "the thawed job to see that it is fenced")
    until(stage.queue_is_empty, "the thawed worker to go on")


def thaw(frozen):
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)


def freeze_beyond_the_lease(stage):
    frozen = [pid for pid in (stage.worker(), stage.job()) if pid is not None]
    for pid in frozen:
        freeze_process(pid, stage.bench)
    since = time.monotonic()
    while time.monotonic() - since < 1.3 * stage.settings.lease_s:
        stage.ws.reconcile()
        time.sleep(0.1)
    assert stage.state() not in CLAIMED, "the silence was noticed"
    if stage.state() in RESTING:
        stage.rested = stage.state()
        stage.resume()  # while the old attempt still exists
    assert all(is_frozen(pid) for pid in frozen)
    return frozen


# --- the server -----------------------------------------------------------------------------


def _server_dies(stage):
    before = stage.server()
    stage.kill(before)
    assert not embedded.server_answers(stage.bench.paths)
    return before


@contextmanager
def server_restarts(stage, phase):
    known = stage.bench.queue.evidence(stage.record().job_id)
    before = _server_dies(stage)
    stage.bench.start_server()
    assert stage.server() != before
    assert stage.bench.queue.evidence(stage.record().job_id) is known
    yield


@contextmanager
def server_forgets(stage, phase):
    before = _server_dies(stage)
    shutil.rmtree(stage.bench.paths.server)
    stage.bench.start_server()
    assert stage.server() != before
    assert stage.bench.queue.evidence(stage.record().job_id) is Evidence.MISSING
    yield


@contextmanager
def flush(stage, phase):
    assert stage.redis().dbsize() > 0
    pipeline = stage.redis().pipeline()
    _, n_keys = pipeline.flushall().dbsize().execute()
    assert n_keys == 0
    yield


@contextmanager
def server_away(stage, phase):
    _server_dies(stage)
    yield
    since = time.monotonic()
    while time.monotonic() - since < AWAY_S:
        assert not embedded.server_answers(stage.bench.paths)
        stage.ws.reconcile()
        time.sleep(0.1)
    assert stage.state() in {RunState.COMPLETED, RunState.REQUESTED, RunState.QUEUED}
    stage.bench.start_server()


# --- the queue ------------------------------------------------------------------------------


def _push(stage, job_id, times=1):
    key = stage.bench.queue._queue.key
    before = stage.redis().llen(key)
    for _ in range(times):
        stage.redis().lpush(key, job_id)
    assert stage.redis().llen(key) == before + times


def _deliver(stage, phase, refused):
    """Let a stock worker take what is queued beside the held job; each must be refused."""
    if phase in UNCLAIMED:
        return  # the held worker takes it, one by one
    pid = stage.start("stock worker", url=stage.bench.queue.url)
    until(lambda: stage.script.lines("stock worker ended"), "the stock worker to take all")
    until(lambda: not is_running(pid), "its end")
    assert stage.count("duplicate delivery") == refused


@contextmanager
def deliver_again(stage, phase):
    record = stage.record()
    _push(stage, record.job_id, times=3)
    queue = rq.Queue(jobqueue.QUEUE, connection=stage.redis(), serializer=JSONSerializer)
    queue.enqueue_call(
        jobqueue.TASK, args=(record.run_id, record.attempt), job_id="another-id"
    )
    _deliver(stage, phase, refused=4)
    yield
    stage.settle()
    until(stage.queue_is_empty, "all deliveries to be taken")
    # Before the launch was sent, three ids name no job, and the fourth is the first to claim.
    until(
        lambda: stage.count("duplicate delivery") >= (0 if phase == "requested" else 4),
        "four refusals",
    )


@contextmanager
def push_again(stage, phase):
    _push(stage, stage.record().job_id)
    _deliver(stage, phase, refused=1)
    yield
    stage.settle()
    until(stage.queue_is_empty, "all deliveries to be taken")
    until(
        lambda: stage.count("duplicate delivery") >= (0 if phase == "requested" else 1),
        "a refusal",
    )


@contextmanager
def requeue(stage, phase):
    job_id = stage.record().job_id
    stage.start("stock requeue", url=stage.bench.queue.url, job_id=job_id)
    (told,) = until(lambda: stage.script.lines("requeue"), "the stock client")
    if phase in UNCLAIMED:
        why = {"requested": "no such job", "queued": "not failed"}[phase]
        assert (told["abandoned"], told["requeued"], told["why"]) == (False, False, why)
    else:
        assert told["abandoned"]
        assert told["requeued"]
        _deliver(stage, phase, refused=1)
    yield


@contextmanager
def stop_command(stage, phase):
    job, job_id = stage.job(), stage.record().job_id
    if phase in UNCLAIMED:
        nothing_to_stop = {"requested": NoSuchJobError, "queued": InvalidJobOperation}[
            phase
        ]
        with pytest.raises(nothing_to_stop):
            send_stop_job_command(stage.redis(), job_id, serializer=JSONSerializer)
    else:
        send_stop_job_command(stage.redis(), job_id, serializer=JSONSerializer)
        until(lambda: not is_running(job), "RQ to kill the job's process")
    yield


# --- people ---------------------------------------------------------------------------------


@contextmanager
def cancel(stage, phase):
    too_late = {
        "staged": TooLateToCancel,
        "renamed": TooLateToCancel,
        "completed": AlreadyCompleted,
    }
    if phase in too_late:
        with pytest.raises(too_late[phase]):
            stage.run().cancel()
    else:
        stage.run().cancel()
        if phase not in UNCLAIMED:
            assert stage.record().cancel_requested
            _await_beats(stage, 3)
    yield


def _await_beats(stage, n):
    """Wait until the job has looked at the ledger since."""
    first = stage.beats()
    until(lambda: stage.beats() >= first + n, "the job to beat")


@contextmanager
def crowd(stage, phase):
    told = _all_at_once(stage)
    published = phase in {"renamed", "completed"}  # whoever looks first adopts the result
    refusal = AlreadyCompleted if published else StillActive
    assert [type(one) for one in told["resume"]] == [refusal] * 3
    assert set(map(type, told["launch"])) <= {type(None)} | (
        {refusal} if published else set()
    )
    yield


@contextmanager
def crash_then_crowd(stage, phase):
    _kill_job(stage, phase)
    left = stage.settle(states=frozenset(RunState) - CLAIMED)
    told = _all_at_once(stage)
    winners = [one for one in told["resume"] if one is None]
    assert len(winners) == (left in RESTING), told
    if left in RESTING:
        stage.rested = left
    yield


def _all_at_once(stage):
    """Launch three times and resume three times, each with a workspace of its own."""
    told, barrier = {"launch": [], "resume": []}, threading.Barrier(6)

    def be(what):
        workspace = stage.workspace()
        barrier.wait(timeout=30)
        try:
            if what == "resume":
                workspace.run(stage.run_id).resume()
                told[what].append(None)
            else:
                told[what].append(stage.launch_with(workspace).refusal)
        except Refused as refusal:
            told[what].append(refusal)

    people = [
        threading.Thread(target=be, args=(what,)) for what in ("launch", "resume") * 3
    ]
    for one in people:
        one.start()
    for one in people:
        one.join(timeout=60)
    assert [len(told["launch"]), len(told["resume"])] == [3, 3], told
    return told


# --- the machine ----------------------------------------------------------------------------


@contextmanager
def hold_catalog(stage, phase):
    stage.script.hold("catalog")
    catalog = stage.bench.paths.catalog
    catalog.parent.mkdir(parents=True, exist_ok=True)
    stage.start("catalog holder", catalog=catalog)
    until(lambda: stage.script.pid_at("catalog"), "the catalog to be open elsewhere")
    yield


@contextmanager
def fill_disk(stage, phase):
    ballast = stage.settings.shared / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError) as full:  # noqa: PT011 - its errno is asserted below
        _write_on_and_on(file)
    assert full.value.errno == errno.ENOSPC
    yield
    stage.rested = stage.settle()
    if stage.rested is RunState.FAILED:
        assert "free some space" in stage.record().error.lower()
    ballast.unlink()


def _write_on_and_on(file):
    while True:
        file.write(bytes(4096))


def small_disk(stage_folder, settings, ends):
    """Give the shared folder a file system of its own, so small that it can be filled."""
    shared = stage_folder / "shared"
    shared.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(shared)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    ends.callback(subprocess.run, ["umount", "-l", str(shared)], check=True)
    return replace(settings, shared=shared)


def _jump(hours):
    @contextmanager
    def jump(stage, phase):
        pid = stage.worker() if phase in UNCLAIMED else stage.job()
        assert abs(stage.script.clock_of(pid) - time.time()) < 60
        stage.script.move_clock(3600 * hours)
        until(
            lambda: abs(stage.script.clock_of(pid) - time.time() - 3600 * hours) < 60,
            f"the clock of process {pid} to jump",
        )
        yield

    return jump


@contextmanager
def suspend(stage, phase):
    """The lid is closed for hours: nobody runs, nobody observes, all of it goes on then."""
    frozen = [pid for pid in (stage.worker(), stage.job()) if pid is not None]
    for pid in frozen:
        freeze_process(pid, stage.bench)
    stage.script.sleep(3600 * HOURS)
    thaw(frozen)
    if stage.state() is RunState.EXTRACTING:
        _await_beats(stage, 1)
    yield


def short_lease(_folder, settings, _ends):
    return replace(settings, lease_s=3.0)


FAULTS = {
    "none": nothing,
    "kill -9 job": kill_job,
    "kill -9 worker": kill_worker,
    "kill -9 both": kill_both,
    "SIGTERM both": terminate_both,
    "freeze, thaw": freeze,
    "freeze, thaw late": freeze_until_replaced,
    "server restarts": server_restarts,
    "server forgets": server_forgets,
    "FLUSHALL": flush,
    "server away": server_away,
    "delivered 4x again": deliver_again,
    "RQ requeues": requeue,
    "id pushed again": push_again,
    "RQ stop command": stop_command,
    "cancel": cancel,
    "3 launch, 3 resume": crowd,
    "kill, then these 6": crash_then_crowd,
    "catalog held": hold_catalog,
    "disk full": fill_disk,
    "clock +5 h": _jump(HOURS),
    "clock -5 h": _jump(-HOURS),
    "asleep for 5 h": suspend,
}

# What a fault needs before the workspace is opened.
BEFOREHAND = {
    "freeze, thaw": short_lease,
    "freeze, thaw late": short_lease,
    "disk full": small_disk,
}
