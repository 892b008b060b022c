"""Deleting a run: gone at once, back when asked, and never computed again by itself."""

import pytest

from extraction_kit import Workspace, deletion, service
from extraction_kit.catalog.publish import stage
from extraction_kit.errors import (
    GenerationUnavailable,
    RunDeleted,
    StillActive,
    UnknownRun,
)
from extraction_kit.ledger import tombstones
from extraction_kit.ledger.transitions import move, next_attempt
from extraction_kit.lifecycle import (
    ACTIVE,
    ENDED,
    RESTING,
    Actor,
    Answer,
    Move,
    RunState,
    answer_to_cancel,
    answer_to_delete,
    answer_to_launch,
    answer_to_resume,
)
from tests.unit.lab import RESULT, lab_without_server


@pytest.fixture
def lab(tmp_path):
    return lab_without_server(tmp_path)


@pytest.fixture
def shared(tmp_path, ledger_url):
    """The same on either database."""
    return lab_without_server(tmp_path, ledger_url)


def seen(lab):
    """The ids of all runs that lists, tables and views show."""
    found = [{view.run_id for view in lab.ws.views()}]
    for table in ("runs", "features", "examples", "histograms"):
        rows = lab.ws.sql(f"SELECT DISTINCT run_id FROM {table}").fetchall()  # noqa: S608 - names of this test
        found.append({run_id for (run_id,) in rows})
    assert all(ids == found[0] for ids in found), found
    told = lab.ws.sql("SELECT DISTINCT run_id FROM events WHERE run_id IS NOT NULL")
    assert {run_id for (run_id,) in told.fetchall()} == found[0]
    return found[0]


# --- the mark -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_run_that_has_ended_is_deleted_and_comes_back_as_it_was(lab, state):
    run_id = lab.completed()
    lab.put(run_id, state)
    before = lab.record(run_id)
    for _ in range(2):  # the same cell again
        assert lab.ws.run(run_id).delete().view.deleted_at is not None
    assert lab.record(run_id).state is state
    assert lab.ws.views() == []
    for _ in range(2):
        assert lab.ws.restore(run_id).view.deleted_at is None
    assert lab.record(run_id) == before
    kinds = [one.kind for one in lab.story(run_id)]
    assert kinds[-2:] == ["deleted", "restored"]
    assert not list((lab.bench.paths.results / ".deleted").iterdir())


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_an_active_run_is_not_deleted_and_says_why(lab, state):
    run_id = lab.begun(lab.content())
    lab.put(run_id, state)
    before = lab.record(run_id)
    with pytest.raises(StillActive, match=f"is {state}.*run.cancel()"):
        lab.ws.run(run_id).delete()
    assert lab.record(run_id) == before
    assert [one.kind for one in lab.story(run_id)][-1] == "refused"
    with lab.bench.store.write() as connection:  # whoever asks the ledger itself
        assert not tombstones.bury(connection, before.target, by=lab.bench.mover())


def test_the_calls_of_a_deleted_run_stand_in_the_table():
    for state in RunState:
        wanted = Answer.STILL_ACTIVE if state in ACTIVE else Answer.DELETE
        assert answer_to_delete(state) is wanted
        for call in (answer_to_launch, answer_to_resume, answer_to_cancel):
            assert call(state, deleted=True) is Answer.DELETED


def test_a_deleted_run_leaves_lists_views_snapshot_and_its_own_handle(shared):
    lab = shared
    kept, gone = lab.completed(), lab.completed("other")
    run = lab.ws.run(gone)
    assert seen(lab) == {kept, gone}
    elsewhere = Workspace(lab.home, settings=lab.settings)
    elsewhere.run(gone).delete()
    assert seen(lab) == {kept}
    catalog = lab.bench.paths.catalog
    assert gone.encode() not in catalog.read_bytes()
    assert "deleted" in repr(run)
    for read in (run.features, run.examples, run.result, lambda: run.windows(1)):
        with pytest.raises(RunDeleted, match=f"ws.restore\\('{gone}'\\)"):
            read()
    assert f"next: ws.restore('{gone}')" in str(run.explain())
    lab.ws.restore(gone)
    assert seen(lab) == {kept, gone}
    assert gone.encode() in catalog.read_bytes()
    assert len(run.features()) == 16


def test_an_unknown_run_is_named(lab):
    for call in (deletion.delete, deletion.restore):
        with pytest.raises(UnknownRun, match="nope"):
            call(lab.bench, "nope")


# --- never computed again by itself ---------------------------------------------------------


def test_deleted_content_is_launched_as_the_next_generation_only(shared):
    lab = shared
    run_id, content = lab.completed(), lab.content()
    lab.write_corpus()
    lab.ws.run(run_id).delete()
    for generation in (None, 1):
        with pytest.raises(RunDeleted, match=r"deleted since .*generation=2"):
            service.launch(lab.bench, content, generation=generation)
    with pytest.raises(GenerationUnavailable, match="generation 2 is the next"):
        service.launch(lab.bench, content, generation=3)
    launched = service.launch(lab.bench, content, generation=2)
    assert launched.answer is Answer.NEW_RUN
    again = service.launch(lab.bench, content)
    assert (again.run_id, again.answer) == (launched.run_id, Answer.ATTACH)
    story = [one.kind for one in lab.story(run_id)]
    assert story.count("launched") == 1


def test_what_can_be_seen_is_returned_before_what_is_deleted(lab):
    first, second = lab.completed(), lab.completed(generation=2)
    lab.ws.run(second).delete()
    found = service.launch(lab.bench, lab.content())
    assert (found.run_id, found.answer) == (first, Answer.RETURN)
    lab.ws.run(first).delete()
    with pytest.raises(RunDeleted, match=second):
        service.launch(lab.bench, lab.content())
    lab.ws.restore(first)
    assert service.launch(lab.bench, lab.content()).run_id == first


@pytest.mark.parametrize("state", sorted(ENDED))
def test_a_deleted_run_is_neither_resumed_nor_cancelled(lab, state):
    run_id = lab.completed()
    lab.put(run_id, state)
    run = lab.ws.run(run_id).delete()
    before = lab.record(run_id)
    for call in (run.resume, run.cancel, lambda: lab.ws._watcher.relaunch(run_id)):
        with pytest.raises(RunDeleted):
            call()
    assert lab.record(run_id) == before


def test_no_move_leads_out_of_a_deleted_run_whoever_comes_late(lab):
    """The guard itself: a resume and an adoption that were decided before the deletion."""
    run_id = lab.completed()
    lab.put(run_id, RunState.INTERRUPTED)
    target = lab.record(run_id).target
    lab.ws.run(run_id).delete()
    with lab.bench.store.write() as connection:
        assert not next_attempt(
            connection, target, Move.RESUME, by=lab.bench.mover(), job_id="j",
            kit_version="0", text="",
        )  # fmt: skip
        by = lab.bench.mover(Actor.RECONCILER)
        assert not move(connection, target, Move.ADOPT, by=by, text="")
    assert lab.record(run_id).state is RunState.INTERRUPTED


def test_a_deleted_run_is_not_adopted_and_a_restored_one_is(lab):
    run_id = lab.completed()
    lab.put(run_id, RunState.INTERRUPTED)
    stale = lab.record(run_id)
    lab.ws.run(run_id).delete()
    assert lab.bench.reconcile() == []
    assert lab.bench.reconciler().adopt(stale) is None, "an observer that looked before"
    assert lab.repair().is_sound
    assert lab.record(run_id).state is RunState.INTERRUPTED
    lab.ws.restore(run_id)
    assert [done.what for done in lab.bench.reconcile()] == ["completed"]


def test_what_a_deleted_run_staged_is_not_published(lab):
    run_id = lab.begun(lab.content())
    manifest = lab.bench.manifest_of(lab.record(run_id))
    stage(lab.bench.paths.staging_of(run_id, 1), RESULT, manifest)
    lab.put(run_id, RunState.INTERRUPTED)
    lab.ws.run(run_id).delete()
    lab.bench.reconcile()
    assert not lab.folder(run_id).exists()
    lab.ws.restore(run_id)
    lab.bench.reconcile()
    assert lab.record(run_id).state is RunState.COMPLETED


@pytest.mark.parametrize("state", sorted(RESTING | {RunState.COMPLETED}))
def test_a_repair_leaves_a_deleted_run_deleted(lab, state):
    run_id = lab.completed()
    lab.put(run_id, state)
    lab.ws.run(run_id).delete()
    assert not lab.repair().steps
    lab.sql("UPDATE runs SET result_digest = 'x'")
    (lab.folder(run_id) / "features.parquet").unlink()
    assert lab.repair().is_sound, "a person threw it away"
    assert lab.record(run_id).deleted_at is not None


def test_a_ledger_built_anew_does_not_bring_a_deleted_run_back(lab):
    kept, gone = lab.completed(), lab.completed("other")
    lab.ws.run(gone).delete()
    before = lab.record(gone)
    lab.bench.paths.ledger.unlink()
    assert lab.repair().is_sound
    assert lab.record(gone).deleted_at == before.deleted_at
    assert lab.record(gone).results_bytes == before.results_bytes
    assert "deleted as a person had it" in lab.story(gone)[-1].text
    assert seen(lab) == {kept}
    with pytest.raises(RunDeleted):
        service.launch(lab.bench, lab.content("other"))
    lab.ws.restore(gone)
    assert seen(lab) == {kept, gone}


def test_a_mark_that_cannot_be_read_is_a_mark(lab):
    run_id = lab.completed()
    lab.ws.run(run_id).delete()
    lab.bench.paths.tombstone_of(run_id).write_text("torn")
    lab.bench.paths.ledger.unlink()
    lab.repair()
    assert lab.record(run_id).deleted_at is not None
