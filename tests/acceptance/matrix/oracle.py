"""Whether a cell kept the promise: exact counts, one result, a legal history, nothing after."""

from itertools import takewhile

from extraction_kit import jobqueue
from extraction_kit.catalog.publish import verify
from extraction_kit.errors import AlreadyCompleted
from extraction_kit.jobqueue import Evidence
from extraction_kit.lifecycle import Move, RunState, after
from tests.waiting import until

LETTERS = {
    RunState.COMPLETED: "C",
    RunState.INTERRUPTED: "I",
    RunState.CANCELLED: "X",
    RunState.FAILED: "F",
}
COMPLETING = (str(Move.COMPLETE), str(Move.ADOPT))
HARMLESS = ("refused", "duplicate delivery")


def outcome(stage):
    """Return what the cell came to, in the words of the table."""
    n_batches = len(stage.script.lines("batch"))
    published = stage.record().published_attempt
    return (
        f"{LETTERS[stage.rested]} {stage.count(str(Move.CLAIM))}/{n_batches} a{published}"
    )


def aftershocks(stage):
    """Launch twice more and deliver every job id again; each must be refused."""
    for _ in range(2):
        assert isinstance(stage.launch().refusal, AlreadyCompleted)
    until(stage.queue_is_empty, "the queue to be empty")
    until(lambda: stage.job() is None, "the end of the job's process: RQ has its last word")
    for attempt, job_id in stage.job_ids().items():
        before = stage.count("duplicate delivery", attempt)
        _deliver(stage, job_id, attempt)
        until(
            lambda n=before, a=attempt: stage.count("duplicate delivery", a) == n + 1,
            f"the refusal of job {job_id}",
        )


def _deliver(stage, job_id, attempt):
    if stage.bench.queue.evidence(job_id) is Evidence.MISSING:  # its hash was flushed
        assert stage.bench.queue.enqueue(job_id, stage.run_id, attempt)
    else:
        stage.redis().lpush(f"rq:queue:{jobqueue.QUEUE}", job_id)


def judge(stage, digest):
    """Assert everything that holds in every cell, whatever its fault and phase."""
    record = stage.record()
    assert record.state is RunState.COMPLETED
    assert record.result_digest == digest, "as if nothing had happened"
    results = sorted(path.name for path in stage.bench.paths.results.glob("run_id=*"))
    assert results == [f"run_id={stage.run_id}"]
    assert verify(stage.bench.paths.results_of(stage.run_id)) == []
    _history_is_legal(stage)
    _nothing_follows_completion(stage)
    _fenced_attempts_compute_nothing(stage)
    assert stage.script.lines("batch")[-1]["context"] == 22, "the last batch is the last"


def _history_is_legal(stage):
    state = RunState.REQUESTED
    for event in stage.events():
        if event.kind in set(Move):
            state = after(state, Move(event.kind))
    assert state is RunState.COMPLETED


def _nothing_follows_completion(stage):
    kinds = [event.kind for event in stage.events()]
    assert sum(kind in COMPLETING for kind in kinds) == 1, kinds
    trailing = list(takewhile(lambda kind: kind not in COMPLETING, reversed(kinds)))
    assert set(trailing) <= set(HARMLESS), kinds


def _fenced_attempts_compute_nothing(stage):
    fenced = set()
    for line in stage.script.lines():
        if line["what"] == "fenced":
            fenced |= set(range(1, line["attempt"] + 1))
        assert not (line["what"] == "batch" and line["attempt"] in fenced), line
