"""The main job, with real processes: launched once, whatever is launched again."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import duckdb
import pytest
from IPython.core.interactiveshell import InteractiveShell

from extraction_kit import run as run_module
from extraction_kit import workspace
from extraction_kit.errors import AlreadyCompleted, TrainingBusy
from extraction_kit.lifecycle import RunState
from extraction_kit.results import GROUPS
from tests.acceptance.staging import CONFIG
from tests.waiting import PATIENCE_S, until


def test_a_completed_run_is_returned_and_never_run_again(undisturbed):
    stage, run = undisturbed
    again = stage.launch()
    assert again.run_id == run.run_id
    assert again.state is RunState.COMPLETED
    assert isinstance(again.refusal, AlreadyCompleted)
    assert "completed since" in str(again.refusal)
    assert str(stage.bench.paths.results_of(run.run_id)) in str(again.refusal)
    assert stage.executions(run) == 1


def test_its_job_delivered_again_is_refused_and_changes_nothing(undisturbed):
    stage, run = undisturbed
    before = stage.record(run)
    code = (
        "import sys, redis; server = redis.Redis.from_url(sys.argv[1]);"
        "server.lpush('rq:queue:extraction-kit', sys.argv[2])"
    )
    subprocess.run(
        [sys.executable, "-c", code, stage.bench.queue.url, before.job_id], check=True
    )
    until(lambda: "duplicate delivery" in stage.kinds(run), "the refusal of the duplicate")
    after = stage.record(run)
    assert after.state is RunState.COMPLETED
    assert after.result_digest == before.result_digest
    assert stage.executions(run) == 1


def test_the_next_generation_is_computed_once_and_gives_the_same_digest(stage, undisturbed):
    first = stage.launch()
    first.wait(PATIENCE_S)
    second = stage.launch(generation=2)
    assert second.run_id != first.run_id
    assert stage.launch(generation=2).run_id == second.run_id
    second.wait(PATIENCE_S)
    third = stage.launch(generation=2)
    assert isinstance(third.refusal, AlreadyCompleted)
    assert (stage.executions(first), stage.executions(second)) == (1, 1)
    digests = {one.view.result_digest for one in (first, second, undisturbed[1])}
    assert len(digests) == 1


def test_a_magic_cell_launches_and_is_idempotent_as_the_call_is(stage, monkeypatch, capsys):
    monkeypatch.setenv("EXTRACTION_KIT_HOME", str(stage.ws.home))
    monkeypatch.setattr(workspace, "_default", {str(stage.ws.home): stage.ws})
    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "extraction_kit")
    cell = "context_size = 32\nn_tokens = 5_000\ntop_k = 5\n"

    def interrupt(_):
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as waiting:
        # the sleep of this module only: a launch sleeps too
        clock = SimpleNamespace(sleep=interrupt, monotonic=time.monotonic)
        waiting.setattr(run_module, "time", clock)
        line = f"tiny --corpus '{stage.tiny.corpus}' --wait"
        run = shell.run_cell_magic("extract", line, cell)
    assert not run.done()  # the waiting was interrupted, the run was not
    assert f"run {run.run_id} keeps" in capsys.readouterr().out
    again = shell.run_cell_magic("extract", "tiny --wait", cell)  # the same corpus
    assert again.run_id == run.run_id
    assert again.state is RunState.COMPLETED, again.explain()
    third = shell.run_cell_magic("extract", line, cell)
    assert isinstance(third.refusal, AlreadyCompleted)
    asked = CONFIG.replace(n_tokens=5_000)
    assert stage.launch(config=asked).run_id == run.run_id
    assert stage.executions(run) == 1


def test_launching_while_it_runs_attaches_and_another_config_is_refused(stage):
    run = stage.launch()
    assert stage.launch().run_id == run.run_id
    with pytest.raises(TrainingBusy, match=run.run_id):
        stage.launch(config=CONFIG.replace(top_k=3))
    with pytest.raises(TrainingBusy):
        stage.launch(config=CONFIG.replace(top_k=3))
    assert stage.kinds(run).count("refused") == 1  # repeated refusals are one event
    seen = until(lambda: run.view.preview and run.view, "a preview of what is found")
    assert 0 < seen.preview.n_tokens <= seen.n_tokens_done
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert run.view.preview is None
    assert stage.executions(run) == 1
    assert len(stage.ws.views()) == 1


def test_the_notebook_that_launched_may_die_and_the_run_completes(stage, tmp_path):
    script = tmp_path / "cell.py"
    script.write_text(
        "import sys, os, extraction_kit as xk\n"
        "ws = xk.Workspace(sys.argv[1])\n"
        "config = xk.ExtractionConfig.from_dict(eval(sys.argv[3]))\n"
        "run = ws.launch('tiny', corpus=sys.argv[2], config=config)\n"
        "print(run.run_id, run.state, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    arguments = [str(stage.ws.home), str(stage.tiny.corpus), repr(CONFIG.to_dict())]

    def cell():
        result = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**__import__("os").environ, **stage.settings.to_environment()},
        )
        assert result.returncode == -9, result.stderr
        return result.stdout.split()

    run_id, _ = cell()
    run = stage.ws.run(run_id)
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    assert cell() == [run_id, "completed"]
    assert stage.executions(run) == 1


def test_the_catalog_may_be_held_open_by_another_program_all_the_time(stage):
    holder = None
    try:
        stage.ws.up()
        code = (
            "import sys, duckdb\n"
            "held = duckdb.connect(sys.argv[1])\n"
            "print(held.sql('select count(*) from runs').fetchall(), flush=True)\n"
            "sys.stdin.read()\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(stage.bench.paths.catalog)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout.readline() == "[(0,)]\n"
        run = stage.launch()
        run.wait(PATIENCE_S)
        assert run.state is RunState.COMPLETED, run.explain()

        def in_snapshot():
            with duckdb.connect(str(stage.bench.paths.catalog), read_only=True) as catalog:
                return catalog.sql("select state, n_tokens from runs").fetchall()

        until(lambda: in_snapshot() == [("completed", 60_000)], "the snapshot of the end")
    finally:
        if holder is not None:
            holder.communicate("", timeout=30)


def test_the_results_answer_in_python_and_sql(undisturbed):
    stage, run = undisturbed
    assert run.done()
    summary = run.result()["summary"]
    assert summary["n_tokens"] == 60_000
    features = run.features().df()
    assert len(features) == stage.tiny.d_sae
    assert summary["n_dead"] == features.dead.sum()
    assert (features.density == features.n_active / 60_000).all()
    by_sql = stage.ws.sql(
        "SELECT count(*) FROM features WHERE run_id = $run AND NOT dead",
        {"run": run.run_id},
    ).fetchall()
    assert by_sql == [(int((~features.dead).sum()),)]
    best = run.examples(0).df()
    assert list(best["rank"]) == list(range(5))
    promoted = run.logits(0, sign="top").df()
    assert list(promoted["rank"]) == list(range(10))
    assert promoted.value.is_monotonic_decreasing
    assert promoted.text.str.len().min() > 0
    assert (run.similar(0, k=3).df().other != 0).all()
    by_sql = stage.ws.sql("SELECT count(*) FROM logits").fetchall()
    assert by_sql == [(2 * 10 * stage.tiny.d_sae,)]
    windows = run.windows(0, k=5)
    assert [window.act for window in windows] == pytest.approx(list(best.act))
    assert all(max(w.acts) == pytest.approx(w.act) for w in windows)
    every = stage.ws.sql(
        'SELECT "group", feature, n_active, held_out FROM examples JOIN features '
        "USING (run_id, feature)"
    ).df()
    assert set(every["group"]) == set(GROUPS)
    assert set(every.feature[every["group"] == "random"]) == set(
        every.feature[every.n_active > 0]
    )
    assert 0 < every.held_out.mean() < 0.5
    quiet = int(every.feature[every["group"] == "silent"].iloc[0])
    silent = run.windows(quiet, group="silent")
    assert silent
    assert all(not any(window.acts) for window in silent)
