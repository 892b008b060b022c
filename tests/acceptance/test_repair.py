"""`extraction-kit repair` after a real run: what it shows and does, and what works then."""

import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from extraction_kit.catalog.publish import read_manifest
from extraction_kit.errors import AlreadyCompleted
from extraction_kit.lifecycle import RunState
from tests.acceptance.staging import CONFIG, SETTINGS, Stage
from tests.waiting import PATIENCE_S, until

SHORT = CONFIG.replace(n_tokens=3_000)


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny):
    """A stage with its worker alive, and one completed run; each test repairs what it breaks."""
    stage = Stage(tmp_path_factory.mktemp("repair") / "ws", tiny)
    run = stage.launch(config=SHORT)
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    yield stage, run
    stage.close()


def extraction_kit(home, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "extraction_kit", "--workspace", str(home), *arguments],
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **SETTINGS.to_environment()},
        **({"stdin": subprocess.DEVNULL} | options),
    )


def forget(stage):
    """Delete every row, as a wrong command in the sqlite3 program does."""
    with closing(sqlite3.connect(stage.bench.paths.ledger)) as connection, connection:
        for table in ("events", "attempts", "runs", "trainings"):
            connection.execute(f"DELETE FROM {table}")  # noqa: S608 - names of this test


def assert_completed_everywhere(stage, run, digest):
    again = stage.launch(config=SHORT)
    assert again.run_id == run.run_id
    assert "completed since" in str(again.refusal)
    with pytest.raises(AlreadyCompleted):
        again.resume()
    assert stage.record(run).result_digest == digest
    assert len(again.features().fetchall()) == stage.tiny.d_sae
    assert [row[0] for row in stage.ws.sql("SELECT run_id FROM runs").fetchall()] == [
        run.run_id
    ]
    assert stage.executions(run) == 0, "restored, not computed"
    assert stage.kinds(run)[0] == "repaired"
    assert "repaired" in str(again.explain())


def test_deleted_rows_are_shown_then_restored_and_nothing_is_computed(done):
    stage, run = done
    digest, home = stage.record(run).result_digest, stage.ws.home
    published = sorted((p.name, p.stat().st_mtime_ns) for p in _files(stage, run))
    forget(stage)

    shown = extraction_kit(home, "repair")
    assert shown.returncode == 1
    assert f"to restore {run.run_id}" in " ".join(shown.stdout.split())
    assert "nothing was changed" in shown.stdout
    assert stage.record(run) is None

    repaired = extraction_kit(home, "repair", "--yes")
    assert repaired.returncode == 0, repaired.stdout
    assert f"restored {run.run_id}" in " ".join(repaired.stdout.split())
    assert_completed_everywhere(stage, run, digest)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in _files(stage, run)) == published

    nothing = extraction_kit(home, "repair")
    assert (nothing.returncode, "nothing to repair" in nothing.stdout) == (0, True)


def _files(stage, run):
    return stage.bench.paths.results_of(run.run_id).iterdir()


def test_a_torn_ledger_beside_a_live_worker_is_built_anew_and_work_goes_on(done):
    stage, run = done
    digest, ledger = stage.record(run).result_digest, stage.bench.paths.ledger
    ledger.write_bytes(b"torn " * 5000)
    opened = extraction_kit(stage.ws.home, "status")
    assert opened.returncode == 1
    assert extraction_kit(stage.ws.home, "repair").returncode == 1
    repaired = extraction_kit(stage.ws.home, "repair", "--yes")
    assert repaired.returncode == 0, repaired.stdout
    assert "cannot be restored" in repaired.stdout
    (aside,) = ledger.parent.glob("ledger.sqlite.damaged-*")
    assert aside.read_bytes() == b"torn " * 5000
    assert_completed_everywhere(stage, run, digest)

    other = stage.launch(config=SHORT.replace(top_k=3))
    until(other.done, "the end of a run after the repair")
    assert (other.state, stage.executions(other)) == (RunState.COMPLETED, 1)
    assert read_manifest(stage.bench.paths.results_of(other.run_id))["attempt"] == 1
    assert extraction_kit(stage.ws.home, "repair").returncode == 0


@pytest.mark.parametrize(("typed", "code"), [("yes\n", 0), ("\n", 1), ("y\n", 1)])
def test_a_person_at_a_terminal_is_asked(done, typed, code):
    stage, run = done
    with closing(sqlite3.connect(stage.bench.paths.ledger)) as connection, connection:
        connection.execute(
            "UPDATE runs SET result_digest = 'x' WHERE run_id = ?", [run.run_id]
        )
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, typed.encode())
        answered = extraction_kit(stage.ws.home, "repair", stdin=terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert "Type yes" in answered.stdout
    assert answered.returncode == code
    assert (stage.record(run).result_digest == "x") == bool(code)
    assert extraction_kit(stage.ws.home, "repair", "--yes").returncode == 0


def test_a_mistyped_workspace_is_refused_and_not_made(tmp_path):
    refused = extraction_kit(tmp_path / "typo", "repair", "--yes")
    assert refused.returncode == 1
    assert "is no workspace" in refused.stdout
    assert "Traceback" not in refused.stdout
    assert not (tmp_path / "typo").exists()
