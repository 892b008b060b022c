"""Many processes want the same thing at the same moment: one of them gets it, all get the run."""

import os
import signal
from collections import Counter
from dataclasses import replace

import pytest

from extraction_kit.jobqueue import Evidence
from extraction_kit.lifecycle import RunState
from tests.acceptance.racers import race
from tests.acceptance.staging import CONFIG, SETTINGS, Stage
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.slow  # some minutes
N_PROCESSES, N_TIMES = 50, 10


@pytest.fixture
def stage_on(tmp_path, tiny, ledger_url):
    settings = replace(SETTINGS, ledger_url=ledger_url, reconcile_s=5.0)
    stage = Stage(tmp_path / "ws", tiny, settings)
    yield stage
    stage.close()


@pytest.mark.timeout(600)
def test_fifty_processes_launch_the_same_thing_at_once_ten_times_and_each_runs_once(
    stage_on,
):
    stage, rounds = stage_on, []
    for number in range(N_TIMES):
        name = f"tiny-{number}"
        stage.ws.register_training(name, sae=stage.tiny.sae, model=stage.tiny.model)
        config = CONFIG.replace(n_tokens=400 + 32 * number)
        stage.ws.corpus(stage.tiny.corpus, training_id=name, config=config)
        task = {"training_id": name, "corpus": str(stage.tiny.corpus)}
        rounds.append(task | {"config": config.to_dict()})

    came = race(stage.ws.home, stage.settings, n=N_PROCESSES, rounds=rounds)

    for task, answers in zip(rounds, came, strict=True):
        assert [answer["came"] for answer in answers] == ["handle"] * N_PROCESSES
        assert len({answer["run_id"] for answer in answers}) == 1, "two runs of one content"
        run = stage.ws.run(answers[0]["run_id"])
        run.wait(PATIENCE_S)
        assert run.state is RunState.COMPLETED, run.explain()
        assert run.view.training_id == task["training_id"]
        kinds = Counter(stage.kinds(run))
        # recorded by its worker, or by who looks between its publication and its record
        recorded = kinds["complete"] + kinds["adopt"]
        assert (kinds["launched"], kinds["claim"], recorded) == (1, 1, 1)
        assert kinds["duplicate delivery"] == 0, "the queue had its job twice"
        assert run.view.attempt == 1
    assert len(stage.ws.views()) == N_TIMES


def test_three_processes_resume_one_interrupted_run_at_once_into_one_new_attempt(stage_on):
    stage = stage_on
    run = stage.launch()
    os.kill(stage.in_the_middle(run), signal.SIGKILL)
    until(lambda: run.state is RunState.INTERRUPTED, "interrupted")

    (came,) = race(stage.ws.home, stage.settings, n=3, rounds=[{"resume": run.run_id}])

    assert Counter(one["came"] for one in came) == {"resumed": 1, "StillActive": 2}
    assert stage.record(run).attempt == 2
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    kinds = Counter(stage.kinds(run))
    assert (kinds["resume"], kinds["claim"], kinds["duplicate delivery"]) == (1, 2, 0)
    third = stage.record(run).job_id.removesuffix("a2") + "a3"
    assert stage.bench.queue.evidence(third) is Evidence.MISSING
