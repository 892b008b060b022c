"""The monitor builds the indexes in a process of its own, never the notebook's."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from extraction_kit import ExtractionConfig, Settings, Workspace, indexing, monitor
from extraction_kit.catalog import indexes
from extraction_kit.catalog.publish import read_manifest
from extraction_kit.disk import size_text, tree_bytes
from extraction_kit.errors import BadQuery
from extraction_kit.lifecycle import RunState
from tests.waiting import until

CONFIG = ExtractionConfig(context_size=32, n_tokens=500, top_k=5, n_top_tokens=3)
SETTINGS = Settings(
    device="cpu",
    threads=1,
    tile_tokens=256,
    min_free_bytes=0,
    index_above=1,
    reconcile_s=0.2,
)


@pytest.fixture(scope="module")
def workspace(tiny, tmp_path_factory):
    """A workspace with two completed runs of one corpus; no process of it is alive."""
    workspace = Workspace(tmp_path_factory.mktemp("index") / "ws", settings=SETTINGS)
    workspace.register_training("tiny", sae=tiny.sae, model=tiny.model)
    for top_k in (5, 6):
        config = CONFIG.replace(top_k=top_k)
        run = workspace.launch("tiny", corpus=tiny.corpus, config=config)
        run.wait(120)
        assert run.state is RunState.COMPLETED, run.explain()
    workspace.down()
    return workspace


@pytest.fixture
def bench(workspace):
    yield workspace._bench
    for path in workspace._bench.paths.derived.glob("*"):
        path.unlink()


def n_indexed(bench):
    index = indexes.read_index(bench.paths.derived)
    return sum(len(segment.runs) for segment in index.segments)


def command(bench, *arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "extraction_kit",
            "--workspace",
            bench.paths.home,
            *arguments,
        ],
        env={**os.environ, **bench.settings.to_environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_monitor_builds_them_above_a_number_of_runs(bench):
    log = bench.paths.logs / "index.log"
    stop = threading.Event()
    watching = threading.Thread(target=monitor.watch, args=(bench, print, stop))
    watching.start()
    try:
        until(lambda: log.exists() and log.read_text(), "the runs are indexed")
    finally:
        stop.set()
        watching.join()
    assert not indexing.is_due(bench)
    assert n_indexed(bench) == 2
    assert log.read_text() == "2 runs are in the indexes\n"


def test_the_command_builds_them_once_and_not_below_that_number(bench):
    few = replace(bench, settings=replace(bench.settings, index_above=2))
    assert "nothing to do: indexes are built above 2 completed runs" in command(
        few, "index"
    )
    assert n_indexed(bench) == 0
    assert Workspace(bench.paths.home).disk().indexes == 0
    assert command(few, "index", "--now") == "2 runs are in the indexes\n"
    assert "nothing to do" in command(bench, "index")
    use = Workspace(bench.paths.home).disk()
    assert use.indexes == tree_bytes(bench.paths.derived) > 1000
    assert f"indexes {size_text(use.indexes)}" in repr(use)


def test_a_look_from_cron_builds_them_too(bench):
    assert "2 runs are in the indexes" in command(bench, "monitor", "--once")
    assert n_indexed(bench) == 2


def test_a_search_finds_what_single_runs_find_with_indexes_and_without(workspace, bench):
    runs = [workspace.run(view.run_id) for view in workspace.views()]
    feature, text = workspace.sql(
        "SELECT feature, text FROM peaks JOIN vocab ON token = token_id "
        "WHERE n_examples > 0 ORDER BY n_examples DESC, text LIMIT 1"
    ).fetchall()[0]
    by_run = {(run.run_id, *row) for run in runs for row in run.search(text).fetchall()}
    assert feature in {row[3] for row in by_run}
    for _ in range(2):
        found = workspace.search(text).fetchall()
        assert {(row[0], *row[2:]) for row in found} == by_run
        assert {row[1] for row in found} == {"tiny"}
        macro = workspace.sql("FROM search_token(?)", [text]).fetchall()
        assert {(row[0], *row[2:]) for row in macro} == by_run
        indexing.build(bench, now=True)
    with pytest.raises(BadQuery, match="no token has the text"):
        workspace.search("no such token")


def test_runs_of_one_text_share_its_contexts(bench):
    folders = list(bench.paths.results.glob("run_id=*"))
    digests = {read_manifest(folder)["corpus"]["digest"] for folder in folders}
    assert len(folders) == 2
    assert {path.name for path in bench.paths.corpora.iterdir() if path.is_dir()} == digests
    assert len(digests) == 1
    assert not list(bench.paths.results.rglob("contexts.parquet"))


def test_a_deleted_run_leaves_the_indexes_and_comes_back_with_its_restoration(
    workspace, bench
):
    assert indexing.build(bench, now=True) == "2 runs are in the indexes"
    gone = workspace.run(workspace.views()[0].run_id)
    shown = "SELECT DISTINCT run_id FROM features"
    gone.delete()
    try:
        assert gone.run_id not in {run_id for (run_id,) in workspace.sql(shown).fetchall()}
        assert indexing.build(bench, now=True) == "1 run is in the indexes"
    finally:
        workspace.restore(gone.run_id)
    assert indexing.build(bench, now=True) == "2 runs are in the indexes"
    assert len(workspace.sql(shown).fetchall()) == 2
