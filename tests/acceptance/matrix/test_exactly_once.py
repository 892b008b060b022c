"""The five promises that started it all, each in its strong form, on both databases."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rq.intermediate_queue import IntermediateQueue

from extraction_kit.errors import AlreadyCompleted, StillActive, TrainingBusy
from extraction_kit.jobqueue import Evidence
from extraction_kit.ledger import records
from extraction_kit.lifecycle import RunState
from tests.acceptance.matrix.faults import freeze, short_lease
from tests.acceptance.matrix.held import CONFIG
from tests.acceptance.matrix.oracle import aftershocks, judge
from tests.acceptance.matrix.phases import bring_to
from tests.acceptance.matrix.script import N_BATCHES
from tests.acceptance.matrix.stagehand import SETTINGS
from tests.waiting import until


@pytest.fixture
def stage(make_stage, ledger_url):
    return make_stage(settings=replace(SETTINGS, ledger_url=ledger_url))


def deliver(stage, attempt, job_id):
    """Bring a job to the worker, and wait for the refusal of its claim."""
    before = stage.count("duplicate delivery", attempt)
    stage.redis().lpush(stage.bench.queue._queue.key, job_id)
    until(
        lambda: stage.count("duplicate delivery", attempt) == before + 1,
        f"the refusal of {job_id}",
    )


def test_extraction_completes_once(stage, undisturbed_digest):
    """The same message during the run and right after it: one execution, one result."""
    bring_to(stage, "mid-run")
    job_id = stage.record().job_id
    stage.redis().lpush(stage.bench.queue._queue.key, job_id)  # waits behind the run itself
    stage.script.release()
    stage.finish()
    until(lambda: stage.count("duplicate delivery") == 1, "the refusal of the first copy")
    deliver(stage, 1, job_id)
    judge(stage, undisturbed_digest)
    assert len(stage.script.lines("batch")) == N_BATCHES
    assert stage.count("claim") == 1
    explained = str(stage.run().explain())
    assert (
        "duplicate delivery: attempt 1 was delivered again and refused (2 times"
        in explained
    )


LAUNCH = """
import sys
from pathlib import Path
from extraction_kit import ExtractionConfig, Settings, Workspace
workspace = Workspace(Path(sys.argv[1]), settings=Settings(ledger_url=sys.argv[3] or None))
config = ExtractionConfig(context_size=32, n_tokens=int(sys.argv[4]), top_k=5)
print("ready", flush=True)
sys.stdin.readline()
try:
    run = workspace.launch("tiny", corpus=Path(sys.argv[2]), config=config, strict=False)
except Exception as error:
    print(type(error).__name__)
else:
    print(run.run_id)
"""


def test_duplicate_extraction_rejected(stage):
    """Six processes race at the store: the same content attaches, other content is busy."""
    stage.prepare()
    stage.script.hold("claimed")
    url = stage.settings.ledger_url or ""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCH, stage.home, stage.tiny.corpus, url, str(n)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in (CONFIG.n_tokens, CONFIG.n_tokens + 32) * 3
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    told = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    with stage.bench.store.read() as connection:
        (run,) = records.all_runs(connection)
    assert sorted(told) == sorted([run.run_id] * 3 + ["TrainingBusy"] * 3)
    stage.run_id = run.run_id
    stage.script.release()
    stage.settle()
    assert stage.count("claim") == 1


def test_completed_extraction_not_restarted(stage, undisturbed_digest):
    """Neither by its own id, nor by one of an earlier attempt, nor by a call elsewhere.

    Worker and server are started anew in between, and RQ's own maintenance has passed twice.
    """
    bring_to(stage, "mid-run")
    stage.kill(stage.job())
    stage.script.release()
    stage.finish()  # attempt 2 completes; the id of attempt 1 is a stale message
    judge(stage, undisturbed_digest)
    n_batches = len(stage.script.lines("batch"))

    ended = {Evidence.FINISHED, Evidence.FAILED}
    until(
        lambda: (
            {stage.bench.queue.evidence(one) for one in stage.job_ids().values()} <= ended
        ),
        "RQ to take note of both",
    )
    stage.kill(stage.worker())
    stage.redis().execute_command("WAITAOF", 1, 0, 10_000)
    stage.kill(stage.server())
    stage.bench.start_server()
    stale = IntermediateQueue(stage.bench.queue._queue.key, connection=stage.redis())
    stage.redis().lpush(stale.key, *stage.job_ids().values())
    for passes in (1, 2):  # RQ's maintenance puts even a finished job back into its queue
        for job_id in stage.job_ids().values():  # as if it were there for two minutes
            stage.redis().set(stale.get_first_seen_key(job_id), time.time() - 120)
        stage.start("stock worker", url=stage.bench.queue.url)
        until(
            lambda n=passes: len(stage.script.lines("stock worker ended")) == n,
            "RQ's own worker to pass",
        )
    assert stale.get_job_ids() == [], "RQ's maintenance did act"
    stage.start_worker()
    aftershocks(stage)
    with pytest.raises(AlreadyCompleted, match="completed since"):
        stage.run().resume()
    judge(stage, undisturbed_digest)
    assert len(stage.script.lines("batch")) == n_batches, "zero additional batches"


def test_task_id_tracked(stage, undisturbed_digest):
    """The launcher dies between the row and the queue: the id is in the row, one execution."""
    bring_to(stage, "requested")
    first = stage.record().job_id
    assert first.startswith("xk-tiny-")
    assert first.endswith("-g1-a1")
    stage.script.release()
    stage.finish()
    assert stage.record().job_id == first
    assert stage.count("claim") == 1
    judge(stage, undisturbed_digest)


def test_stale_extraction_cleanup(make_stage, ledger_url, undisturbed_digest):
    """A killed job frees its training; a frozen one that thaws can write nothing."""
    settings = short_lease(None, replace(SETTINGS, ledger_url=ledger_url), None)
    stage = make_stage(settings=settings)
    bring_to(stage, "mid-run")
    with pytest.raises(TrainingBusy, match=stage.run_id):
        stage.ws.launch("tiny", corpus=stage.tiny.corpus, config=replace(CONFIG, top_k=4))
    with pytest.raises(StillActive):
        stage.run().resume()
    with freeze(stage, "mid-run"):  # beyond the lease, and resumed while it is frozen
        stage.script.release()
    stage.finish()
    judge(stage, undisturbed_digest)
    assert stage.count("claim") == 2
    assert stage.record().published_attempt == 2
    assert stage.state() is RunState.COMPLETED
