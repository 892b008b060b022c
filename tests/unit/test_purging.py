"""Purging: shown first, then gone for good; and what a workspace takes of its disk."""

import logging
import os
import shutil
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from extraction_kit import disk, purging, service
from extraction_kit.cli import main
from extraction_kit.disk import tree_bytes
from extraction_kit.doctor import examine
from extraction_kit.errors import (
    BadCorpus,
    BadSettings,
    RunDeleted,
)
from extraction_kit.lifecycle import (
    Answer,
    RunState,
)
from tests.unit.lab import NOWHERE, Lab, lab_without_server


@pytest.fixture
def lab(tmp_path):
    return lab_without_server(tmp_path)


@pytest.fixture
def shared(tmp_path, ledger_url):
    """The same on either database."""
    return lab_without_server(tmp_path, ledger_url)


# --- purge ----------------------------------------------------------------------------------


def test_a_purge_shows_what_it_frees_then_frees_it_and_the_row_stays(shared):
    lab = shared
    run_id, corpus = lab.completed(), lab.write_corpus()
    checkpoint = lab.bench.paths.checkpoints_of(run_id, 1) / "000001" / "state"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"c" * 3_000)
    lab.ws.run(run_id).delete()
    shown = lab.ws.purge(older_than="0d")
    on_disk = tree_bytes(lab.folder(run_id)) + 3_000
    on_disk += lab.bench.paths.tombstone_of(run_id).stat().st_size
    assert shown.runs[0].n_bytes == on_disk
    assert (list(shown.corpora.values()), shown.n_bytes) == ([5_000], on_disk + 5_000)
    assert f"to purge    {run_id}" in str(shown)
    assert lab.folder(run_id).exists(), "it was only shown"
    purged = lab.ws.purge(older_than="0d", apply=True)
    assert (purged.n_bytes, purged.problems) == (shown.n_bytes, ())
    left = [path for path in lab.home.rglob("*") if run_id in str(path)]
    assert left == []
    assert not corpus.exists()
    assert not list(lab.home.rglob("*.purged"))
    assert not lab.ws.purge(older_than="0d").is_needed
    with pytest.raises(RunDeleted, match=r"were purged .*generation=2"):
        lab.ws.restore(run_id)
    with pytest.raises(RunDeleted, match=r"were purged .*generation=2"):
        service.launch(lab.bench, lab.content())
    with pytest.raises(RunDeleted):
        lab.ws._watcher.relaunch(run_id)
    assert [one.kind for one in lab.story(run_id)][-3:] == ["deleted", "purged", "refused"]
    assert lab.repair().is_sound


def test_a_young_deletion_is_kept_and_named(lab):
    run_id = lab.completed()
    lab.ws.run(run_id).delete()
    shown = lab.ws.purge()
    assert not shown.is_needed
    assert f"kept        {run_id}" in str(shown)
    assert "deleted more than 30 d ago" in str(shown)
    lab.sql("UPDATE runs SET deleted_at = datetime(deleted_at, '-31 days')")
    assert lab.ws.purge(older_than=timedelta(days=30)).runs[0].run_id == run_id


def test_a_corpus_stays_while_a_run_that_can_be_seen_or_restored_uses_it(lab):
    corpus = lab.write_corpus()
    first, second = lab.completed(), lab.completed("other")
    third = lab.completed(generation=2)
    for run_id in (first, second):
        lab.ws.run(run_id).delete()
    lab.sql("UPDATE runs SET deleted_at = datetime(deleted_at, '-2 days') WHERE run_id = ?",
            first)  # fmt: skip
    assert not lab.ws.purge(older_than="1d", apply=True).corpora
    lab.ws.run(third).delete()
    assert corpus.exists()
    assert list(lab.ws.purge(older_than="0d", apply=True).corpora.values()) == [5_000]
    assert not corpus.exists()


def test_a_corpus_of_a_forecast_that_nobody_launched_goes_when_it_is_old(lab):
    used, forecast = lab.write_corpus(), lab.write_corpus(seed=1)
    lab.completed()
    assert lab.ws.disk().corpora == {used.name: 5_000, forecast.name: 5_000}
    shown = lab.ws.purge(older_than="1d")
    assert (dict(shown.corpora), shown.young_corpora) == ({}, {forecast.name: 5_000})
    assert "which no run uses, asked for less than 1 d ago: 4.9 KiB" in str(shown)
    two_days_ago = time.time() - 2 * 86_400
    for folder in (used, forecast):
        os.utime(folder, (two_days_ago, two_days_ago))
    assert lab.ws.purge(older_than="1d").corpora == {forecast.name: 5_000}
    again = lab.content(seed=1).corpus
    again.mark_asked_for()
    assert not lab.ws.purge(older_than="1d", apply=True).corpora
    os.utime(forecast, (two_days_ago, two_days_ago))
    assert lab.ws.purge(older_than="1d", apply=True).n_bytes == 5_000
    assert (used.exists(), forecast.exists()) == (True, False)
    with pytest.raises(BadCorpus, match="is gone: type the launch again"):
        service.launch(lab.bench, lab.content("other", seed=1))


def test_a_launch_whose_corpus_was_purged_meanwhile_makes_nothing(lab):
    run_id, content = lab.completed(), lab.content()
    lab.write_corpus()
    lab.ws.run(run_id).delete()
    lab.ws.purge(older_than="0d", apply=True)
    with pytest.raises(BadCorpus, match="launch again with the texts"):
        service.launch(lab.bench, content, generation=2)
    assert lab.ws.views() == []


def test_a_corpus_that_a_launch_takes_at_the_last_moment_stays(lab, monkeypatch):
    corpus = lab.write_corpus()
    lab.ws.run(lab.completed()).delete()
    remove = purging._remove_corpora

    def launched_before(bench, corpora):
        service.launch(bench, lab.content(), generation=2)
        return remove(bench, corpora)

    monkeypatch.setattr(purging, "_remove_corpora", launched_before)
    assert not lab.ws.purge(older_than="0d", apply=True).corpora
    assert corpus.exists()


def test_a_run_restored_while_somebody_looks_at_the_purge_is_not_purged(lab, monkeypatch):
    run_id = lab.completed()
    lab.ws.run(run_id).delete()
    plan = purging.plan

    def then_restored(*arguments):
        shown = plan(*arguments)
        lab.ws.restore(run_id)
        return shown

    monkeypatch.setattr(purging, "plan", then_restored)
    assert lab.ws.purge(older_than="0d", apply=True).runs == ()
    assert len(lab.ws.run(run_id).features()) == 16


@pytest.mark.parametrize("dies_at", ["_remove", "_hide", "remove_folder"])
def test_a_purge_that_dies_is_finished_by_the_next_one(lab, monkeypatch, dies_at):
    run_id, corpus = lab.completed(), lab.write_corpus()
    for folder in (
        lab.bench.paths.checkpoints_of(run_id),
        lab.bench.paths.staging_of(run_id, 1),
    ):
        folder.mkdir(parents=True)
    lab.ws.run(run_id).delete()

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(purging, dies_at, die)
        with pytest.raises(KeyboardInterrupt):
            lab.ws.purge(older_than="0d", apply=True)
    with pytest.raises(RunDeleted, match="purged"):
        lab.ws.restore(run_id)
    assert lab.bench.reconcile() == []
    shown = lab.ws.purge(older_than="0d")
    assert shown.leftovers
    assert "left over" in str(shown)
    lab.ws.purge(older_than="0d", apply=True)
    assert [path for path in lab.home.rglob("*") if run_id in str(path)] == []
    assert not corpus.exists()
    assert not lab.ws.purge(older_than="0d").is_needed


def test_what_cannot_be_removed_is_named_and_tried_again(lab, monkeypatch):
    run_id = lab.completed()
    lab.ws.run(run_id).delete()
    with monkeypatch.context() as patch:
        patch.setattr(purging, "remove_folder", lambda _: None)  # as without permission
        done = lab.ws.purge(older_than="0d", apply=True)
    (problem,) = done.problems
    assert "could not be removed" in problem
    assert not lab.folder(run_id).exists()
    assert lab.ws.purge(older_than="0d", apply=True).problems == ()
    assert not list(lab.home.rglob("*.purged"))


def test_a_process_that_publishes_after_the_purge_brings_nothing_back(lab):
    run_id = lab.begun(lab.content())
    lab.put(run_id, RunState.INTERRUPTED)
    lab.ws.run(run_id).delete()
    lab.ws.purge(older_than="0d", apply=True)
    lab.publish(run_id)  # frozen before its rename, thawed now
    assert lab.bench.reconcile() == []
    assert lab.repair().is_sound
    assert lab.record(run_id).state is RunState.INTERRUPTED
    assert lab.ws.purge(older_than="0d", apply=True).leftovers == (lab.folder(run_id),)
    assert not lab.folder(run_id).exists()


@pytest.mark.parametrize("bad", ["30", "d", "-1d", "1.5d", "1w", "", None, timedelta(-1)])
def test_an_age_that_cannot_be_read_is_refused(lab, bad):
    with pytest.raises(BadSettings, match="30d, 12h or 90m"):
        lab.ws.purge(older_than=bad)


def test_the_command_line_deletes_restores_and_purges(lab, capsys, monkeypatch):
    run_id = lab.completed()
    for name, value in lab.settings.to_environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments):
        code = main(["--workspace", str(lab.home), *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert call("delete", run_id)[0] == 0
    assert run_id not in call("status")[1]
    assert "deleted since" in call("status", run_id)[1]
    assert call("restore", run_id)[0] == 0
    assert run_id in call("status")[1]
    call("delete", run_id)
    code, said = call("purge")
    assert (code, f"kept        {run_id}" in said) == (0, True)
    code, said = call("purge", "--older-than", "0d")
    assert (code, "nothing was removed" in said) == (1, True)
    assert lab.folder(run_id).exists()
    code, said = call("purge", "--older-than", "0d", "--yes")
    assert (code, "freed" in said) == (0, True)
    assert not lab.folder(run_id).exists()
    code, said = call("restore", run_id)
    assert (code, "RunDeleted" in said) == (1, True)
    assert call("purge", "--older-than", "soon")[0] == 1


# --- disk -----------------------------------------------------------------------------------


def test_disk_use_is_what_lies_there_by_run_and_corpus(shared):
    lab = shared
    first, second, corpus = lab.completed(), lab.completed("other"), lab.write_corpus()
    begun = lab.begun(lab.content("third", seed=1))
    state = lab.bench.paths.checkpoints_of(begun, 1) / "000001" / "state"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"c" * 3_000)
    use = lab.ws.disk()
    manifest = (lab.folder(first) / "manifest.json").stat().st_size
    assert use.runs[first].results == tree_bytes(lab.folder(first)) - manifest
    assert (use.runs[begun].results, use.runs[begun].checkpoints) == (0, 3_000)
    assert use.corpora[corpus.name] == 5_000
    assert use.runs[second].corpus_digest == use.runs[first].corpus_digest == corpus.name
    lab.ws.run(second).delete()
    use = lab.ws.disk()
    assert second not in use.runs
    assert use.deleted == use.runs[first].results
    assert "deleted" in repr(use)
    (row,) = lab.ws.sql(
        "SELECT results_bytes FROM runs WHERE state = 'completed'"
    ).fetchall()
    assert row == (use.runs[first].results,)


def test_the_size_of_a_result_is_in_the_ledger_or_for_an_older_one_in_its_manifest(
    lab, monkeypatch
):
    first, older = lab.completed(), lab.completed("other")
    sizes = {run_id: run.results for run_id, run in lab.ws.disk().runs.items()}
    lab.sql("UPDATE runs SET results_bytes = NULL WHERE run_id = ?", older)
    asked = []
    read = disk.read_manifest
    monkeypatch.setattr(disk, "read_manifest", lambda f: asked.append(f) or read(f))
    assert {run_id: run.results for run_id, run in lab.ws.disk().runs.items()} == sizes
    assert asked == [lab.folder(older)], f"{first} is known without a look at its files"


def leave_free(monkeypatch, n_bytes):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=n_bytes))


def test_a_launch_warns_before_the_disk_is_full(tmp_path, monkeypatch, caplog):
    lab = Lab(tmp_path / "ws", redis_url=NOWHERE, min_free_bytes=100 * 2**20)
    lab.write_corpus()
    content = lab.content()
    leave_free(monkeypatch, 150 * 2**20)
    with caplog.at_level(logging.WARNING):
        launched = service.launch(lab.bench, content)
    assert "150.0 MiB free" in caplog.text
    assert "extraction-kit purge" in caplog.text
    assert launched.answer is Answer.NEW_RUN
    assert "free. What runs" in str(lab.ws.run(launched.run_id).view.findings)
    caplog.clear()
    service.launch(lab.bench, content)  # attaches: nothing new is to be written
    assert caplog.text == ""


def test_status_and_doctor_warn_and_are_quiet_with_room(tmp_path, monkeypatch):
    lab = Lab(tmp_path / "ws", redis_url=NOWHERE, min_free_bytes=100 * 2**20)
    for name, value in lab.settings.to_environment().items():
        monkeypatch.setenv(name, value)

    def grade():
        return next(str(one.grade) for one in examine(lab.home) if one.subject == "disk")

    for free, warns, graded in ((250, "", "ok"), (150, "150.0 MiB free", "note")):
        leave_free(monkeypatch, free * 2**20)
        assert warns in lab.ws.disk().warning
        assert bool(lab.ws.disk().warning) == bool(warns)
        assert grade() == graded
    leave_free(monkeypatch, 50 * 2**20)
    assert grade() == "PROBLEM"


def test_what_waits_counts_as_space_that_is_taken(tmp_path, monkeypatch):
    lab = Lab(tmp_path / "ws", redis_url=NOWHERE, min_free_bytes=100 * 2**20)
    leave_free(monkeypatch, 250 * 2**20)
    assert lab.ws.disk().warning == ""
    lab.begun(lab.content())
    monkeypatch.setattr(disk, "disk_bytes", lambda *_: 30 * 2**20)
    monkeypatch.setattr(disk, "_needs", {})
    assert "may take 30.0 MiB" in lab.ws.disk().warning
