"""Verification names what is damaged, everything else works on, and exports stand alone."""

import json
import os
import shutil
import subprocess
import sys

import duckdb
import pyarrow.parquet as pq
import pytest

from extraction_kit import cataloguing, embedded
from extraction_kit.catalog import export
from extraction_kit.catalog.tables import CATALOG, Column
from extraction_kit.cli import main
from extraction_kit.errors import (
    BadExport,
    BadQuery,
    CatalogLocked,
    ResultsDamaged,
    RunDeleted,
    UnknownRun,
)
from extraction_kit.monitor import look
from extraction_kit.verification import verify
from tests.unit.published import PublishedRuns
from tests.unit.synthetic import TOP_K


@pytest.fixture
def runs(tmp_path):
    return PublishedRuns(tmp_path / "ws")


@pytest.fixture
def two(runs):
    return runs.completed("one"), runs.completed("two", seed=1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)


@pytest.mark.usefixtures("two")
def test_a_sound_workspace_is_read_whole(runs):
    seen = []
    found = runs.ws.verify()
    assert found.is_sound
    assert "2 results, 2 corpora" in str(found)
    again = verify(runs.bench, lambda done, total, what: seen.append((done, total, what)))
    files = [*runs.bench.paths.results.rglob("*.parquet")]
    files += [*runs.bench.paths.corpora.rglob("*.parquet")]
    assert again.n_bytes >= sum(path.stat().st_size for path in files)
    assert seen[-1][0] == seen[-1][1] == again.n_bytes
    assert runs.ws.sql("SELECT count(*) FROM events WHERE kind = 'damaged'").fetchall() == [
        (0,)
    ]


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "whole folder gone"])
def test_damage_is_named_the_run_is_left_out_and_taken_in_when_it_is_back(runs, two, how):
    one, other = two
    folder, kept = runs.folder(one), runs.home / "backup"
    path = folder / "examples.parquet"
    shutil.copytree(folder, kept)
    if how == "flipped":
        flip(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "gone":
        path.unlink()
    else:
        shutil.rmtree(folder)
    found = runs.ws.verify()
    assert [it.subject for it in found.damaged] == [f"run {one}"]
    assert str(path if "folder" not in how else folder) in str(found)
    assert "generation=2" in str(found)
    ask = runs.ws.sql
    damage = dict(ask("SELECT run_id, damage FROM runs").fetchall())
    assert (damage[other], damage[one] in str(found)) == (None, True)
    for table in ("features", "examples", "histograms", "logits", "neighbours"):
        rows = ask(f"SELECT DISTINCT run_id FROM {table}").fetchall()  # noqa: S608
        assert rows == [(other,)]
    runs.ws.verify()  # told once
    assert [event.kind for event in runs.story(one)].count("damaged") == 1
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    assert runs.ws.verify().is_sound
    assert ask("SELECT count(DISTINCT run_id) FROM features").fetchall() == [(2,)]
    assert ask("SELECT count(*) FROM runs WHERE damage IS NOT NULL").fetchall() == [(0,)]


def test_damaged_corpora_and_vocabularies_are_named(runs, two):
    corpus = runs.record(two[0]).corpus_digest
    contexts = runs.bench.paths.corpora / corpus / "contexts.parquet"
    good = contexts.read_bytes()
    flip(contexts)
    assert [one.subject for one in runs.ws.verify().damaged] == [f"corpus {corpus[:12]}"]
    contexts.unlink()
    assert "contexts.parquet" in str(runs.ws.verify())
    contexts.write_bytes(good)
    (vocab,) = runs.bench.paths.vocab.iterdir()
    flip(vocab)
    assert str(vocab) in str(runs.ws.verify())
    vocab.unlink()
    assert f"{vocab} is missing" in str(runs.ws.verify())


@pytest.mark.usefixtures("two")
def test_a_vocabulary_that_another_pyarrow_wrote_is_sound(runs):
    (vocab,) = runs.bench.paths.vocab.iterdir()
    before = vocab.read_bytes()
    pq.write_table(pq.read_table(vocab), vocab, compression="gzip")
    assert vocab.read_bytes() != before
    assert runs.ws.verify().is_sound


def test_a_deleted_run_is_not_exported_and_says_why(runs, two, tmp_path):
    runs.ws.run(two[0]).delete()
    with pytest.raises(RunDeleted, match="deleted since"):
        runs.ws.export_catalog(tmp_path / "x.duckdb", runs=[two[0]])


@pytest.mark.usefixtures("two")
def test_the_latest_run_of_a_training_is_none_that_was_deleted(runs):
    shelf = runs.ws["one"]
    shelf.latest.delete()
    with pytest.raises(BadQuery, match="one has no completed run"):
        shelf.latest  # noqa: B018 - asked for


def test_the_command_ends_with_1_when_something_is_damaged(runs, two, capsys):
    command = ["--workspace", str(runs.home), "verify"]
    assert main(command) == 0
    assert "all of it is as it was published" in capsys.readouterr().out
    flip(runs.folder(two[1]) / "histograms.parquet")
    assert main(command) == 1
    said = capsys.readouterr().out
    assert f"DAMAGED     run {two[1]}: " in said
    assert "histograms.parquet has sha256" in said


def test_a_result_without_a_ledger_row_is_verified_too(runs, two):
    stray = runs.bench.paths.results / "run_id=00000000000000ff"
    shutil.copytree(runs.folder(two[0]), stray)
    assert runs.ws.verify().is_sound
    flip(stray / "tokens.parquet")
    found = runs.ws.verify()
    assert [one.subject for one in found.damaged] == ["run 00000000000000ff"]
    assert "extraction-kit repair" in str(found)


# --- one file for another machine -------------------------------------------------------------

ASK = """
import sys, json, duckdb
connection = duckdb.connect(sys.argv[1], read_only=True)
for line in sys.stdin:
    print(json.dumps(connection.execute(line).fetchall(), default=str), flush=True)
"""


def ask_elsewhere(path, *queries):
    """Ask as somebody who has DuckDB and nothing of ours, in another folder."""
    asked = subprocess.run(
        [sys.executable, "-I", "-c", ASK, str(path)],
        input="\n".join(queries), text=True, capture_output=True, cwd=path.parent,
        check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    return [json.loads(line) for line in asked.stdout.splitlines()]


def test_a_deleted_result_is_read_until_it_is_purged(runs, two):
    runs.ws.run(two[0]).delete()
    assert runs.ws.verify().n_results == 2
    runs.ws.purge(older_than="0m", apply=True)
    found = runs.ws.verify()
    assert (found.n_results, found.is_sound) == (1, True)


def test_an_export_answers_without_its_workspace(runs, two, tmp_path):
    one, other = two
    ws = runs.ws
    queries = (
        f"FROM examples_of('{one}', 2)",
        f"FROM top_features('{one}', 3)",
        f"FROM similar_to('{one}', 2)",
        f"FROM compare('{one}', '{other}')",
        "SELECT run_id, training_id, l0, damage FROM runs ORDER BY 1",
        f"SELECT hist FROM histograms WHERE run_id = '{one}' ORDER BY feature",  # noqa: S608 - our own
        "SELECT count(*) FROM logits",
        "SELECT count(*) FROM events WHERE run_id IS NOT NULL",
    )
    here = [ws.sql(query).fetchall() for query in queries]
    made = ws.export_catalog(tmp_path / "out" / "runs.duckdb")
    elsewhere = tmp_path / "another machine"
    elsewhere.mkdir()
    moved = made.rename(elsewhere / "runs.duckdb")
    described = [
        [list(row[:2]) for row in ws.sql(f"DESCRIBE {table.name}").fetchall()]
        for table in CATALOG
    ]
    shutil.rmtree(runs.home)
    *answers, views, comments = ask_elsewhere(
        moved,
        *queries,
        *(f"DESCRIBE {table.name}" for table in CATALOG),
        "SELECT count(*) FROM duckdb_views() WHERE NOT internal",
        "SELECT table_name, comment FROM duckdb_tables()",
    )
    assert answers[: len(queries)] == json.loads(json.dumps(here, default=str))
    assert "«tok" in answers[0][0][10]
    found = [[row[:2] for row in rows] for rows in answers[len(queries) :]]
    assert found == described
    assert views == [[0]]
    meanings = {table.name: table.meaning for table in CATALOG}
    assert dict(comments).items() >= meanings.items()
    assert list((tmp_path / "out").iterdir()) == []


def test_chosen_runs_only_and_only_what_they_need(runs, two, tmp_path):
    one, _ = two
    path = runs.ws.export_catalog(tmp_path / "one.duckdb", runs=[runs.ws.run(one)])
    with duckdb.connect(str(path), read_only=True) as file:

        def ask(query):
            return file.execute(query).fetchall()

        for table in ("runs", "features", "examples", "histograms", "events"):
            assert ask(f"SELECT DISTINCT run_id FROM {table}") == [(one,)]  # noqa: S608
        assert ask("SELECT training_id FROM trainings") == [("one",)]
        corpus = runs.record(one).corpus_digest
        assert ask("SELECT DISTINCT corpus_digest FROM contexts") == [(corpus,)]
        used = ask(
            "SELECT DISTINCT context FROM examples UNION "
            "SELECT max_context FROM features WHERE NOT dead ORDER BY 1"
        )
        assert ask("SELECT context FROM contexts ORDER BY 1") == used
        assert ask("SELECT tags['storage_version'] FROM duckdb_databases()")[0] == (
            "v1.4.0+",
        )
        assert len(ask(f"FROM examples_of('{one}', 2)")) == TOP_K


def test_an_export_replaces_nothing_and_says_why_it_refuses(runs, two, tmp_path):
    one, other = two
    path = tmp_path / "mine.duckdb"
    path.write_text("mine")
    with pytest.raises(BadExport, match="is there already"):
        runs.ws.export_catalog(path)
    assert path.read_text() == "mine"
    with pytest.raises(UnknownRun):
        runs.ws.export_catalog(tmp_path / "new.duckdb", runs=["nobody"])
    with pytest.raises(BadExport, match=r"runs=\[\]"):
        runs.ws.export_catalog(tmp_path / "new.duckdb", runs=[])
    flip(runs.folder(other) / "features.parquet")
    for _ in range(2):  # before it was verified and after
        with pytest.raises(ResultsDamaged, match=rf"run {other}: .*features.parquet"):
            runs.ws.export_catalog(tmp_path / "new.duckdb", runs=[one, other])
        runs.ws.verify()
    runs.ws.export_catalog(tmp_path / "new.duckdb")  # what is sound
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "mine.duckdb", "new.duckdb", "ws",
    ]  # fmt: skip


@pytest.mark.usefixtures("two")
def test_two_exports_to_one_name_leave_one_whole_file(runs, tmp_path, monkeypatch):
    path, build = tmp_path / "x.duckdb", export._build

    def slow(temporary, rows, run_ids):
        build(temporary, rows, run_ids)
        path.write_text("of the quicker one")

    monkeypatch.setattr(export, "_build", slow)
    with pytest.raises(BadExport, match="is there already"):
        runs.ws.export_catalog(path)
    assert path.read_text() == "of the quicker one"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ws", "x.duckdb"]


# --- the snapshot ------------------------------------------------------------------------------


def test_the_snapshot_is_rebuilt_when_it_is_behind_gone_or_altered_and_only_then(runs):
    bench, path = runs.bench, runs.bench.paths.catalog
    one = runs.completed("one")
    assert cataloguing.write_snapshot(bench)
    assert not cataloguing.write_snapshot(
        bench
    )  # of several that wait the last finds it done
    good = path.read_bytes()
    for spoil in (
        path.unlink,
        lambda: path.write_bytes(good[:12] + b"\xff" + good[13:]),  # too new
        lambda: bench.paths.catalog_card.write_text("{"),
    ):
        spoil()
        assert cataloguing.write_snapshot(bench)
        with duckdb.connect(str(path), read_only=True) as snapshot:
            assert snapshot.execute("SELECT run_id FROM runs").fetchall() == [(one,)]
            found = snapshot.execute("FROM examples_of(?, 2)", [one]).fetchall()
            assert len(found) == TOP_K
        assert not cataloguing.write_snapshot(bench)
    runs.completed("two", seed=1)
    assert cataloguing.write_snapshot(bench)
    assert cataloguing.write_snapshot(bench, anew=True)


@pytest.mark.usefixtures("two")
def test_the_monitor_mends_the_snapshot(runs):
    look(runs.bench)
    path = runs.bench.paths.catalog
    assert path.exists()
    path.write_bytes(b"torn")
    look(runs.bench)
    with duckdb.connect(str(path), read_only=True) as snapshot:
        assert snapshot.execute("SELECT count(*) FROM runs").fetchall() == [(2,)]


@pytest.mark.timeout(25)  # the others' patience is 30 s; it has none
@pytest.mark.usefixtures("two")
def test_a_process_frozen_while_it_rebuilds_the_snapshot_does_not_stop_the_monitor(runs):
    lock = embedded.take_lock(runs.bench.paths.run / "catalog.lock")  # as that process does
    look(runs.bench)
    assert not runs.bench.paths.catalog.exists()
    with pytest.raises(CatalogLocked, match=r"more than 0 s .*catalog.lock` names it"):
        cataloguing.write_snapshot(runs.bench, patience_s=0)
    os.close(lock)
    look(runs.bench)
    assert runs.bench.paths.catalog.exists()


@pytest.mark.usefixtures("two")
def test_columns_say_what_they_mean_in_the_export_too(runs, tmp_path):
    path = runs.ws.export_catalog(tmp_path / "x.duckdb")
    with duckdb.connect(str(path), read_only=True) as file:
        said = file.execute("SELECT table_name, column_name, comment FROM duckdb_columns()")
        comments = {(table, column): text for table, column, text in said.fetchall()}
        macros = file.execute(
            "SELECT function_name, comment FROM duckdb_functions() "
            "WHERE schema_name = 'main' AND function_type = 'table_macro'"
        ).fetchall()
    for table in CATALOG:
        for column in table.columns:
            assert isinstance(column, Column)
            assert comments[table.name, column.name] == column.comment
    assert {"top_features", "examples_of", "compare", "similar_to"} <= dict(macros).keys()
