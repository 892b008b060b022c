"""The same faults against plain RQ, used as its documentation suggests, and against the kit.

Plain RQ: one job with ``job_id``, ``unique=True`` and ``Retry``, a stock worker, a supervisor
that starts another one. The kit: its own worker and server. Both run for real; what takes RQ
minutes (its maintenance, the expiry of a result) is brought about by moving recorded times.

`make bench-guarantees` prints the table and writes ``build/bench/guarantees.json``.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import rq
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from extraction_kit import jobqueue
from extraction_kit.errors import AlreadyCompleted
from extraction_kit.jobqueue import Evidence
from extraction_kit.lifecycle import RunState
from tests.acceptance.matrix.faults import FAULTS
from tests.acceptance.matrix.oracle import aftershocks, judge
from tests.acceptance.matrix.phases import bring_to
from tests.acceptance.matrix.script import N_BATCHES
from tests.acceptance.matrix.stagehand import Stagehand
from tests.acceptance.matrix.zygote import Zygote
from tests.plain_rq import MINUTES_S, PlainRq
from tests.waiting import until

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

OUT = Path("build/bench/guarantees.json")
EACH_RUN_ONCE = 1.0
A_KILL_COSTS = 1 + 2 / N_BATCHES  # two batches since the last checkpoint
HALF = 0.5


# --- plain RQ -------------------------------------------------------------------------------


def rq_launch(plain):
    plain.enqueue(retry=rq.Retry(max=2))


def rq_completed(plain):
    plain.let_it_end()
    rq_launch(plain)
    plain.start_worker()
    plain.until_status(JobStatus.FINISHED)


def rq_in_the_middle(plain):
    rq_launch(plain)
    worker = plain.start_worker()
    return worker, plain.until_started()


def rq_until_ended(plain, n):
    until(lambda: len(plain.journal("end")) >= n, f"the end of {n} executions")


def rq_relaunched(plain):
    rq_completed(plain)
    plain.connection.pexpire(Job.key_for("job"), 1)  # the 500 s of its result have passed
    until(lambda: plain.status == "unknown", "its expiry")
    rq_launch(plain)
    rq_until_ended(plain, 2)


def rq_delivered_again(plain):
    rq_completed(plain)
    plain.push_again()
    rq_until_ended(plain, 2)


def rq_maintained(plain):
    rq_completed(plain)
    plain.connection.lpush(plain.intermediate.key, "job")
    plain.maintain_twice()
    rq_until_ended(plain, 2)


def rq_job_killed(plain):
    _, job = rq_in_the_middle(plain)
    os.kill(job, signal.SIGKILL)
    plain.until_started(2)
    plain.let_it_end()
    plain.until_status(JobStatus.FINISHED)


def rq_dashboard(plain):
    worker, _ = rq_in_the_middle(plain)
    worker.kill()
    worker.wait()
    plain.age_executions()
    assert plain.started.count == 0  # what a dashboard reads
    plain.start_worker()
    plain.until_started(2)  # while the first one still runs
    assert not plain.journal("end")
    plain.let_it_end()
    rq_until_ended(plain, 2)


def rq_server_restarted(plain):
    worker, orphan = rq_in_the_middle(plain)
    plain.kill_server()
    worker.wait(timeout=30)  # it ends with its server
    plain.let_it_end()
    plain.until_gone(orphan)  # it tries to report its end, in vain
    plain.start_server()
    plain.start_worker()
    plain.age_executions()
    plain.maintain()
    rq_until_ended(plain, 2)


def rq_server_forgets(plain):
    rq_launch(plain)
    plain.kill_server(forget=True)
    plain.start_server()
    plain.start_worker()
    until(lambda: rq.Worker.count(connection=plain.connection), "the worker")
    plain.maintain_twice()


def rq_cancelled(plain):
    rq_in_the_middle(plain)
    Job.fetch("job", connection=plain.connection).cancel()
    plain.let_it_end()
    rq_until_ended(plain, 1)


def rq_state(plain, *, wanted):
    """Return what RQ says in the end, and whether it is so."""
    until(lambda: plain.status not in {"queued", "started"}, "RQ's last word")
    status, n_ended = plain.status, len(plain.journal("end"))
    if not n_ended:
        return "lost" if status == "unknown" else status
    if wanted is RunState.CANCELLED:
        return f"{status}, it ran to its end all the same"
    return status if status == "finished" else f"{status}, though it ran to its end"


# --- the kit --------------------------------------------------------------------------------


def kit_undisturbed(stage):
    bring_to(stage, "mid-run")
    stage.script.release()
    stage.finish()


def kit_relaunched(stage):
    kit_undisturbed(stage)
    for _ in range(3):
        assert isinstance(stage.launch().refusal, AlreadyCompleted)


def kit_delivered_again(stage):
    kit_undisturbed(stage)
    aftershocks(stage)


def kit_maintained(stage):
    kit_undisturbed(stage)
    job_id = stage.record().job_id
    until(lambda: stage.bench.queue.evidence(job_id) is Evidence.FINISHED, "RQ's own note")
    stage.kill(stage.worker())
    queue = rq.Queue(jobqueue.QUEUE, connection=stage.redis(), serializer=JSONSerializer)
    stale = queue.intermediate_queue
    stage.redis().lpush(stale.key, job_id)
    stage.redis().set(stale.get_first_seen_key(job_id), time.time() - MINUTES_S)
    worker = rq.Worker([queue], connection=stage.redis(), serializer=JSONSerializer)
    worker.run_maintenance_tasks()
    assert stale.get_job_ids() == [], "RQ's maintenance did act"
    stage.start_worker()
    until(stage.queue_is_empty, "the worker to take what was put back")


def kit_job_killed(stage):
    bring_to(stage, "mid-run")
    stage.kill(stage.job())
    stage.script.release()
    stage.finish()


def kit_dashboard(stage):
    bring_to(stage, "mid-run")
    stage.kill(stage.worker())
    queue = rq.Queue(jobqueue.QUEUE, connection=stage.redis(), serializer=JSONSerializer)
    registry = StartedJobRegistry(queue=queue)
    for member, score in stage.redis().zrange(registry.key, 0, -1, withscores=True):
        stage.redis().zadd(registry.key, {member: score - MINUTES_S})
    assert registry.count == 0  # what a dashboard reads: RQ now gives the job up
    stage.start_worker()
    stage.script.release()
    stage.finish()


def under(fault, phase):
    def kit_under_a_fault(stage):
        bring_to(stage, phase)
        with FAULTS[fault](stage, phase):
            stage.script.release()
        stage.finish()

    return kit_under_a_fault


def kit_cancelled(stage):
    bring_to(stage, "mid-run")
    stage.run().cancel()
    first = stage.beats()
    until(lambda: stage.beats() > first + 1, "the job to see it")
    stage.script.release()
    stage.settle()


# --- side by side ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One fault, how it is brought about on either side, and what the kit must make of it."""

    name: str
    rq: Callable[[PlainRq], None]
    kit: Callable[[Stagehand], None]
    executions: float = EACH_RUN_ONCE
    state: RunState = RunState.COMPLETED


CASES = (
    Case("no fault", rq_completed, kit_undisturbed),
    Case("launched again an hour after completion", rq_relaunched, kit_relaunched),
    Case("its message delivered again after completion", rq_delivered_again,
         kit_delivered_again),
    Case("RQ's maintenance after completion", rq_maintained, kit_maintained),
    Case("job killed in the middle (kit: resumed by a person)", rq_job_killed,
         kit_job_killed, A_KILL_COSTS),
    Case("worker killed, a dashboard reads the registry", rq_dashboard, kit_dashboard),
    Case("server killed and restarted in the middle", rq_server_restarted,
         under("server restarts", "mid-run")),
    Case("server loses its data while the job is queued", rq_server_forgets,
         under("server forgets", "queued")),
    Case("cancelled in the middle", rq_cancelled, kit_cancelled, HALF, RunState.CANCELLED),
)  # fmt: skip


@pytest.fixture(scope="module")
def zygote():
    one = Zygote()
    yield one
    one.close()


def of_plain_rq(case, folder):
    plain = PlainRq(folder)
    try:
        case.rq(plain)
        return {"executions": plain.executions, "state": rq_state(plain, wanted=case.state)}
    finally:
        plain.close()


def of_the_kit(case, folder, tiny, zygote):
    stage = Stagehand(folder, tiny, zygote=zygote)
    try:
        case.kit(stage)
        if stage.state() is RunState.COMPLETED:
            judge(stage, stage.record().result_digest)
        n_batches = len(stage.script.lines("batch"))
        found = {"executions": round(n_batches / N_BATCHES, 2), "state": str(stage.state())}
        return found, stage.record().result_digest
    finally:
        stage.close()


def test_the_same_faults_side_by_side(tmp_path, tiny, zygote):
    rows, digests = [], set()
    for number, case in enumerate(CASES):
        folder = tmp_path / f"rq{number}"
        folder.mkdir()
        of_rq = of_plain_rq(case, folder)
        of_kit, digest = of_the_kit(case, tmp_path / f"kit{number}", tiny, zygote)
        rows.append({"case": case.name, "rq": of_rq, "kit": of_kit})
        digests.add(digest)
        assert of_kit["executions"] == round(case.executions, 2), case.name
        assert of_kit["state"] == case.state, case.name
    assert len(digests - {None}) == 1, "one result, whatever happened"
    _show(rows)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _show(rows):
    """Print the table as Markdown: it is copied into the README."""
    print("\n| case | plain RQ: executions, state | the kit: executions, state |")  # noqa: T201 - the table
    print("|---|---|---|")  # noqa: T201 - the table
    for row in rows:
        cells = [
            f"{row[side]['executions']:g}, {row[side]['state']}" for side in ("rq", "kit")
        ]
        print(f"| {row['case']} | {cells[0]} | {cells[1]} |")  # noqa: T201 - the table
