"""What goes wrong, with real processes and kill -9: a crash costs minutes, not the run."""

import os
import signal

import pytest

from extraction_kit.errors import (
    AlreadyCompleted,
    NothingToCancel,
    RestsUntilResumed,
    RunFailed,
    StillActive,
)
from extraction_kit.lifecycle import RunState
from tests.acceptance.freezing import freeze
from tests.acceptance.staging import kill
from tests.waiting import PATIENCE_S, until


def assert_resumes_to_the_same_digest(stage, run, undisturbed):
    saved = run.view.checkpoint_tokens
    assert saved, "nothing to continue from"
    run.resume()
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert run.view.result_digest == undisturbed[1].view.result_digest
    assert run.view.attempt == 2
    assert run.result()["provenance"]["resumed_from_tokens"] >= saved
    assert not stage.bench.paths.checkpoints_of(run.run_id).exists()


def test_a_killed_job_is_interrupted_within_seconds_rests_and_resumes(stage, undisturbed):
    run = stage.launch()
    pid = stage.in_the_middle(run)
    os.kill(pid, signal.SIGKILL)
    until(lambda: run.state is RunState.INTERRUPTED, "interrupted", patience_s=10)

    # Nothing starts again by itself: not by waiting, reconciling, or launching again.
    for _ in range(3):
        stage.ws.reconcile()
    again = stage.launch()
    assert isinstance(again.refusal, RestsUntilResumed)
    assert "run.resume()" in str(again.refusal)
    assert stage.executions(run) == 1
    with pytest.raises(RestsUntilResumed):
        stage.launch(strict=True)
    with pytest.raises(RunFailed, match="interrupted"):
        run.result()
    with pytest.raises(NothingToCancel):
        run.cancel()

    assert_resumes_to_the_same_digest(stage, run, undisturbed)
    assert stage.executions(run) == 2
    with pytest.raises(AlreadyCompleted):
        run.resume()


def test_an_orphan_whose_workers_parent_was_killed_completes(stage, undisturbed):
    run = stage.launch()
    stage.in_the_middle(run)
    os.kill(stage.worker_pid(), signal.SIGKILL)
    until(
        lambda: (
            any("without a supervisor" in finding for finding in run.view.findings)
            or run.done()
        ),
        "the card to say so",
    )
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert run.view.result_digest == undisturbed[1].view.result_digest
    assert stage.executions(run) == 1


def test_a_frozen_job_whose_workers_parent_was_killed_thaws_and_completes(stage):
    run = stage.launch()
    pid = stage.in_the_middle(run)
    freeze(pid, stage.bench)
    # The kernel sends SIGHUP and SIGCONT to a stopped process group that becomes orphaned.
    os.kill(stage.worker_pid(), signal.SIGKILL)
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert stage.executions(run) == 1


def test_a_new_worker_waits_for_the_orphan_of_a_killed_one(stage):
    run = stage.launch()
    pid = stage.in_the_middle(run)
    os.kill(stage.worker_pid(), signal.SIGKILL)
    until(lambda: stage.worker_pid() is None, "the end of the worker")
    freeze(pid, stage.bench)
    stage.ws.up()
    assert stage.worker_pid() is not None
    other = stage.ws.register_training(
        "other", sae=stage.tiny.saes["jumprelu"], model=stage.tiny.model
    )
    second = stage.ws.launch(other.training_id, corpus=stage.tiny.corpus)
    assert second.state is RunState.QUEUED
    os.kill(pid, signal.SIGCONT)
    for one in (run, second):
        one.wait(PATIENCE_S)
        assert one.state is RunState.COMPLETED, one.explain()
    claimed = {one.run_id: stage.record(one) for one in (run, second)}
    assert claimed[second.run_id].claimed_at >= claimed[run.run_id].completed_at


def test_a_worker_told_to_stop_saves_a_checkpoint_first(stage, undisturbed):
    run = stage.launch()
    stage.in_the_middle(run)
    stage.ws.down()
    assert run.state is RunState.INTERRUPTED
    assert "SIGTERM" in run.view.error
    assert_resumes_to_the_same_digest(stage, run, undisturbed)


def test_a_cancelled_run_stops_within_a_batch_and_can_be_resumed(stage, undisturbed):
    run = stage.launch()
    pid = stage.in_the_middle(run)
    run.cancel()
    until(lambda: run.state is RunState.CANCELLED, "cancelled", patience_s=10)
    until(lambda: not kill(pid, 0), "the end of its process", patience_s=10)
    assert_resumes_to_the_same_digest(stage, run, undisturbed)


def test_a_run_that_waits_is_cancelled_at_once_and_its_job_never_claims(stage):
    blocker = stage.launch()
    pid = stage.in_the_middle(blocker)
    freeze(pid, stage.bench)
    stage.ws.register_training(
        "other", sae=stage.tiny.saes["jumprelu"], model=stage.tiny.model
    )
    waiting = stage.ws.launch("other", corpus=stage.tiny.corpus)
    waiting.cancel()
    assert waiting.state is RunState.CANCELLED
    with pytest.raises(StillActive):
        blocker.resume()
    os.kill(pid, signal.SIGCONT)
    blocker.wait(PATIENCE_S)
    until(lambda: "duplicate delivery" in stage.kinds(waiting), "its refused delivery")
    assert stage.executions(waiting) == 0


def test_a_server_that_dies_in_the_middle_costs_nothing(stage, undisturbed):
    run = stage.launch()
    stage.in_the_middle(run)
    from extraction_kit.embedded import stop_server  # noqa: PLC0415

    assert stop_server(stage.bench.paths)
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert run.view.result_digest == undisturbed[1].view.result_digest
    assert stage.executions(run) == 1
    worker = stage.worker_pid()
    assert worker is not None, "the worker survives its server"
    stage.ws.register_training(
        "other", sae=stage.tiny.saes["jumprelu"], model=stage.tiny.model
    )
    second = stage.ws.launch("other", corpus=stage.tiny.corpus).wait(PATIENCE_S)
    assert second.state is RunState.COMPLETED, second.explain()
    assert stage.worker_pid() == worker, "and takes the next job when the server is back"


def test_a_job_that_the_server_forgot_is_sent_again_and_runs_once(stage):
    blocker_pid = stage.in_the_middle(stage.launch())
    freeze(blocker_pid, stage.bench)
    stage.ws.register_training(
        "other", sae=stage.tiny.saes["jumprelu"], model=stage.tiny.model
    )
    run = stage.ws.launch("other", corpus=stage.tiny.corpus)
    first_job = stage.record(run).job_id
    # Whoever looked while it was being sent has done so: else that look sends it once more.
    until(lambda: stage.seen_queued(run), "an observer to see it in the queue")
    stage.bench.queue._redis.flushall()
    until(lambda: stage.record(run).attempt == 2, "a new attempt under a new id")
    assert stage.record(run).job_id != first_job
    os.kill(blocker_pid, signal.SIGCONT)
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert stage.executions(run) == 1


def test_checkpoints_that_a_completed_run_left_are_removed_and_no_others(undisturbed):
    stage, completed = undisturbed  # as after a kill between completion and tidying up
    paths = stage.bench.paths
    left, foreign = paths.checkpoints_of(completed.run_id, 1), paths.checkpoints / "notes"
    for folder in (left, foreign):
        folder.mkdir(parents=True)
    stage.ws.reconcile()
    assert not left.parent.exists()
    assert foreign.exists()
    foreign.rmdir()
