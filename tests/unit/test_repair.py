"""Repair: what published results say comes back into the ledger, and nothing else happens."""

import shutil
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import pytest

from extraction_kit import ExtractionConfig, Settings, Workspace, service
from extraction_kit.catalog.publish import read_manifest
from extraction_kit.errors import AlreadyCompleted, LedgerBusy, WorkspaceUnusable
from extraction_kit.ledger import restoring
from extraction_kit.ledger.damage import damage_of, move_aside
from extraction_kit.ledger.store import Store
from extraction_kit.lifecycle import (
    Answer,
    RunState,
)
from extraction_kit.repair import plan, repair
from tests.unit.lab import Lab, training_named


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "ws")


def facts_of(record):
    """The record without what only a claim knows, which no result can tell."""
    values = vars(record).copy()
    for name in ("nonce", "queued_at", "claimed_at", "ended_at", "process", "completed_at"):
        del values[name]
    return values


def test_a_sound_workspace_has_nothing_to_repair(lab):
    lab.completed()
    assert "nothing to repair" in str(lab.plan())
    assert lab.plan().n_sound == 1
    assert not lab.repair().steps


@pytest.mark.parametrize("tables", [["runs"], ["events", "attempts", "runs", "trainings"]])
def test_a_deleted_run_comes_back_as_it_was_with_or_without_its_attempts(lab, tables):
    run_id = lab.completed()
    before = lab.record(run_id)
    for table in tables:
        lab.sql(f"DELETE FROM {table}")  # noqa: S608 - names of this test
    planned = lab.plan()
    assert run_id in str(planned)
    assert lab.record(run_id) is None, "a plan changes nothing"
    assert len(lab.repair().steps) == 1
    restored = lab.record(run_id)
    assert facts_of(restored) == facts_of(before)
    manifest = read_manifest(lab.folder(run_id))
    assert restored.completed_at.isoformat() == manifest["published_at"]
    last = lab.story(run_id)[-1]
    assert (last.kind, last.actor) == ("repaired", lab.bench.mover().label)
    assert "the ledger has no row of it" in last.text
    assert lab.ws.training("tiny") == training_named("tiny")
    lab.assert_sound()
    assert not lab.repair().steps


def test_a_restored_run_is_completed_for_every_call(lab):
    run_id = lab.completed()
    content = lab.content()
    lab.sql("DELETE FROM runs")
    lab.repair()
    launched = service.launch(lab.bench, content)
    assert (launched.run_id, launched.answer) == (run_id, Answer.RETURN)
    assert "completed since" in str(launched.refusal)
    with pytest.raises(AlreadyCompleted):
        service.resume(lab.bench, run_id)
    assert len(lab.ws.run(run_id).features().fetchall()) == 16
    assert (
        lab.record(run_id).result_digest
        == read_manifest(lab.folder(run_id))["result_digest"]
    )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("result_digest", "0" * 64),
        ("results_dir", "/somewhere/else"),
        ("results_dir", None),
        ("published_attempt", 7),
        ("summary", "{torn"),
        ("config", '{"top_k": 1}'),
        ("corpus_digest", "c"),
        ("content_key", "k"),
        ("generation", 3),
        ("n_tokens", 1),
        ("created_at", "yesterday"),
        ("completed_at", None),
        ("completed_at", "tomorrow"),
        ("attempt", 0),
        ("state", "done"),
    ],
)
def test_what_the_result_says_wins_over_a_row_that_contradicts_it(lab, column, value):
    run_id = lab.completed()
    before = lab.record(run_id)
    lab.sql(f"UPDATE runs SET {column} = ?", value)  # noqa: S608 - names of this test
    assert len(lab.plan().steps) == 1
    assert lab.repair().is_sound
    assert facts_of(lab.record(run_id)) == facts_of(before)
    said = lab.story(run_id)[-1]
    assert said.kind == "repaired"
    assert (column if column != "state" else "done") in said.text
    assert "publish" in said.text
    lab.assert_sound()


@pytest.mark.parametrize("state", [s for s in RunState if s is not RunState.COMPLETED])
def test_a_run_in_any_other_state_is_adopted_by_the_legal_move(lab, state):
    run_id = lab.completed()
    lab.sql("UPDATE runs SET state = ?, error = 'x', completed_at = NULL", str(state))
    assert f"the ledger says {state}" in str(lab.plan())
    assert lab.repair().is_sound
    record = lab.record(run_id)
    assert (record.state, record.error) == (RunState.COMPLETED, None)
    assert [one.kind for one in lab.story(run_id)][-2:] == ["adopt", "repaired"]
    lab.assert_sound()


def test_an_active_run_without_a_result_is_left_alone(lab):
    run_id = lab.begun(lab.content())
    before = lab.record(run_id)
    assert lab.plan().is_sound
    lab.repair()
    assert lab.record(run_id) == before


def test_the_attempt_that_fences_is_not_taken_back(lab):
    run_id = lab.completed()
    lab.sql("UPDATE runs SET state = 'extracting', attempt = 2, job_id = 'j2'")
    lab.sql(
        "INSERT INTO attempts (run_id, attempt, job_id, created_at)"
        " SELECT run_id, 2, 'j2', created_at FROM attempts"
    )
    lab.repair()
    record = lab.record(run_id)
    assert (record.state, record.attempt, record.published_attempt) == ("completed", 2, 1)
    lab.sql("DELETE FROM runs")
    lab.repair()
    assert (lab.record(run_id).attempt, lab.record(run_id).job_id) == (2, "j2")


def test_a_row_without_its_attempt_is_whole_again(lab):
    run_id = lab.completed()
    lab.sql("DELETE FROM attempts")
    assert lab.record(run_id) is None
    assert "attempt 1 is missing" in str(lab.plan())
    lab.repair()
    assert lab.record(run_id).state is RunState.COMPLETED


def test_a_training_that_contradicts_itself_is_restored(lab):
    lab.completed()
    lab.sql("UPDATE trainings SET spec = '{torn'")
    lab.repair()
    assert lab.ws.training("tiny") == training_named("tiny")
    lab.assert_sound()


def test_a_result_of_other_content_under_the_same_training_id_is_reported(lab):
    run_id = lab.completed()
    for table in ("events", "attempts", "runs", "trainings"):
        lab.sql(f"DELETE FROM {table}")  # noqa: S608 - names of this test
    service.register(lab.bench, training_named("tiny", sae_digest="0ther" * 8))
    done = lab.repair()
    assert not done.steps
    (problem,) = done.problems
    assert "a training never changes under its id" in problem.text
    assert lab.record(run_id) is None


def test_a_missing_ledger_is_built_from_all_results(lab):
    ids = {lab.completed(), lab.completed("other")}
    lab.bench.paths.ledger.unlink()
    planned = lab.plan()
    assert "is missing" in planned.ledger
    assert len(planned.steps) == 2
    assert not lab.bench.paths.ledger.exists(), "a plan makes nothing"
    done = lab.repair()
    assert "cannot be restored" in done.ledger
    assert {
        view.run_id for view in Workspace(lab.home, settings=lab.settings).views()
    } == ids
    lab.assert_sound()


def scribble(path):
    path.write_bytes(b"this is no database" * 500)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def overwrite_a_page(path):
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def drop_a_table(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE runs")


@pytest.mark.parametrize("harm", [scribble, cut, overwrite_a_page, drop_a_table])
def test_a_damaged_ledger_is_kept_aside_and_built_anew(lab, harm):
    run_id = lab.completed()
    ledger = lab.bench.paths.ledger
    harm(ledger)
    damaged = ledger.read_bytes()
    assert "is damaged" in lab.plan().ledger
    assert ledger.read_bytes() == damaged, "a plan changes nothing"
    done = lab.repair()
    (aside,) = ledger.parent.glob("ledger.sqlite.damaged-*")
    assert aside.read_bytes() == damaged
    assert str(aside) in str(done)
    assert lab.record(run_id).state is RunState.COMPLETED
    lab.assert_sound()
    assert list(ledger.parent.glob("ledger.sqlite.damaged-*")) == [aside]


def test_the_journal_of_a_damaged_ledger_never_meets_the_new_one(lab):
    ledger = lab.bench.paths.ledger
    for suffix in ("-journal", "-wal"):
        ledger.with_name(ledger.name + suffix).write_text(f"pages{suffix}")
    first = move_aside(ledger, at=datetime.now(UTC))
    assert not list(lab.home.glob("ledger.sqlite-*"))
    for suffix in ("-journal", "-wal"):
        assert first.with_name(first.name + suffix).read_text() == f"pages{suffix}"


def test_ledgers_put_aside_in_the_same_second_are_both_kept(lab):
    ledger, at = lab.bench.paths.ledger, datetime.now(UTC)
    first = move_aside(ledger, at=at)
    ledger.write_text("another")
    second = move_aside(ledger, at=at)
    assert first != second
    assert (damage_of(first), second.read_text()) == (None, "another")


def test_a_busy_or_newer_ledger_is_not_taken_for_a_damaged_one(lab):
    lab.completed()
    ledger = lab.bench.paths.ledger
    lab.sql("DELETE FROM runs")
    with closing(sqlite3.connect(ledger)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert damage_of(ledger, busy_timeout_s=0.1) is None
        impatient = Store.at(ledger, busy_timeout_s=0.1)
        with pytest.raises(LedgerBusy), impatient.write():
            pass
    lab.sql("UPDATE alembic_version SET version_num = '9999'")
    for call in (lab.plan, lab.repair):
        with pytest.raises(WorkspaceUnusable, match="newer release"):
            call()
    assert not list(ledger.parent.glob("*.damaged-*"))


def test_what_was_not_completed_is_named_when_the_ledger_is_lost(lab):
    run_id = lab.begun(lab.content())
    lab.bench.paths.checkpoints_of(run_id, 1).mkdir(parents=True)
    lab.bench.paths.ledger.unlink()
    assert f"{run_id} left checkpoints" in lab.plan().ledger
    lab.repair()
    assert lab.bench.paths.checkpoints_of(run_id, 1).is_dir()


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_a_damaged_result_is_reported_and_nothing_is_touched(lab, state):
    run_id = lab.completed()
    lab.sql("UPDATE runs SET state = ?", state)
    path = lab.folder(run_id) / "features.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    before = lab.record(run_id)
    done = lab.repair()
    assert not done.steps
    (problem,) = done.problems
    assert "features.parquet has" in problem.text
    assert "backup" in problem.text
    assert lab.record(run_id) == before
    assert path.exists()


def test_a_completed_run_without_its_folder_is_reported_with_the_way_out(lab):
    run_id = lab.completed()
    shutil.rmtree(lab.folder(run_id))
    (problem,) = lab.repair().problems
    assert problem.subject == run_id
    assert "backup" in problem.text
    assert "generation=2" in problem.text
    assert lab.record(run_id).state is RunState.COMPLETED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run_id": "0123456789abcdef"}, "run id"),
        ({"generation": 2}, "run id"),
        ({"training_id": "other"}, "run id"),
        ({"content_key": "k"}, "run id"),
        ({"config": ExtractionConfig(context_size=8).to_dict()}, "content key"),
        ({"training": training_named("tiny", "f00d" * 10).to_dict()}, "content key"),
        (
            {"training": training_named("tiny").to_dict() | {"digest": "d"}},
            "training digest",
        ),
        ({"training": {"sae": 1}}, "cannot be understood"),
        ({"generation": "one"}, "run id"),
        ({"published_at": "yesterday"}, "cannot be understood"),
        ({"published_at": None, "summary": None}, "does not name published_at, summary"),
    ],
)
def test_a_manifest_that_does_not_fit_together_restores_nothing(lab, changes, words):
    run_id = lab.completed()
    lab.sql("DELETE FROM runs")
    lab.edit(run_id, changes)
    done = lab.repair()
    assert not done.steps
    (problem,) = done.problems
    assert words in problem.text
    assert str(lab.folder(run_id)) in problem.subject
    assert lab.record(run_id) is None


def test_an_older_manifest_without_job_id_and_release_is_enough(lab):
    run_id = lab.completed()
    before = lab.record(run_id)
    lab.sql("DELETE FROM runs")
    lab.sql("DELETE FROM attempts")
    lab.edit(run_id, {"job_id": None, "kit_version": None})
    lab.repair()
    assert lab.record(run_id).job_id == before.job_id
    assert lab.record(run_id).kit_version == "unknown"


@pytest.mark.parametrize("name", ["run_id={} (copy)", "{}", "backup"])
def test_a_renamed_or_copied_folder_is_reported(lab, name):
    run_id = lab.completed()
    copy = lab.folder(run_id).with_name(name.format(run_id))
    shutil.copytree(lab.folder(run_id), copy)
    done = lab.repair()
    (problem,) = done.problems
    assert problem.subject == str(copy)
    assert f"must be named run_id={run_id}" in problem.text


def test_a_moved_workspace_is_told_its_new_folder_but_a_link_to_it_is_none(lab, tmp_path):
    run_id = lab.completed()
    (tmp_path / "link").symlink_to(lab.home)
    assert plan(tmp_path / "link", lab.settings).is_sound
    (tmp_path / "link").unlink()
    lab.home.rename(tmp_path / "moved")
    moved = Lab(tmp_path / "moved")
    assert moved.repair().is_sound
    assert moved.record(run_id).results_dir == str(moved.folder(run_id))


def test_two_people_repair_at_once_and_each_run_is_restored_once(lab):
    ids = [lab.completed(f"t{number}") for number in range(4)]
    scribble(lab.bench.paths.ledger)
    start = threading.Barrier(3)
    done, errors = [], []

    def person():
        start.wait()
        try:
            done.append(lab.repair())
        except Exception as error:  # noqa: BLE001 - shown below
            errors.append(error)

    people = [threading.Thread(target=person) for _ in range(3)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert errors == []
    assert all(not one.problems for one in done), done
    assert sorted(s.published.run_id for one in done for s in one.steps) == sorted(ids)
    for run_id in ids:
        assert [one.kind for one in lab.story(run_id)] == ["repaired"]
    assert len(list(lab.home.glob("ledger.sqlite.damaged-*"))) == 1


def test_a_row_that_changed_after_the_look_is_looked_at_again(lab):
    run_id = lab.completed()
    lab.sql("UPDATE runs SET state = 'publishing', completed_at = NULL")
    seen = lab.plan().steps[0]
    lab.bench.reconcile()  # somebody else adopts it first
    with lab.bench.store.write() as connection:
        assert not restoring.restore(
            connection, seen.published, seen=seen.seen, by=lab.bench.mover()
        )
    assert "repaired" not in [one.kind for one in lab.story(run_id)]
    lab.assert_sound()


def test_a_row_under_a_wrong_run_id_is_reported_not_overwritten(lab):
    run_id = lab.completed()
    lab.sql("UPDATE runs SET run_id = 'ffffffffffffffff'")
    done = lab.repair()
    assert not done.steps
    assert any(one.subject == run_id and "refuses" in one.text for one in done.problems)
    lab.sql("UPDATE runs SET run_id = ?", run_id)
    lab.assert_sound()


def test_a_mistyped_workspace_is_not_made(tmp_path):
    for home in (tmp_path / "typo", tmp_path):
        for call in (plan, repair):
            with pytest.raises(WorkspaceUnusable, match="is no workspace"):
                call(home, Settings())
    assert list(tmp_path.iterdir()) == []


def test_a_workspace_shows_its_repair_and_does_it_when_asked(lab):
    run_id = lab.completed()
    lab.sql("DELETE FROM runs")
    assert "to restore" in repr(lab.ws.repair())
    assert lab.record(run_id) is None
    assert "restored" in repr(lab.ws.repair(apply=True))
    assert lab.record(run_id).state is RunState.COMPLETED


def test_rows_on_postgresql_are_restored_alike(tmp_path, postgres_url):
    lab = Lab(tmp_path / "ws", ledger_url=postgres_url)
    run_id = lab.completed()
    before = lab.record(run_id)
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is tested

    def sql(statement):
        with psycopg.connect(postgres_url) as connection:
            connection.execute(statement)

    lab.assert_sound()
    for table in ("events", "attempts", "runs", "trainings"):
        sql(f"DELETE FROM {table}")  # noqa: S608 - names of this test
    assert lab.repair().is_sound
    assert facts_of(lab.record(run_id)) == facts_of(before)
    sql("UPDATE runs SET state = 'failed', config = '{}', created_at = '2020-01-01'")
    assert lab.repair().is_sound
    assert facts_of(lab.record(run_id)) == facts_of(before)
    lab.assert_sound()
