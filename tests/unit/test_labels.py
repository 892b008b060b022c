"""Labels: one for all runs of an SAE, with a history that nothing takes away."""

import csv

import duckdb
import numpy as np
import pytest

from extraction_kit import Workspace
from extraction_kit.cli import main
from extraction_kit.errors import BadLabel, UnknownFeature, UnknownTraining
from tests.unit.lab import Lab

UGLY = 'dates, "1990s"\nand; 日本 🦎 \t=1+1'


@pytest.fixture
def lab(tmp_path, ledger_url):
    """A workspace with one completed run, on either database."""
    lab = Lab(tmp_path / "ws", ledger_url)
    lab.run_id = lab.completed()
    return lab


@pytest.fixture
def sqlite(tmp_path):
    lab = Lab(tmp_path / "ws")
    lab.run_id = lab.completed()
    return lab


def said(lab, training_id="tiny"):
    """What is said now: feature, name, description, source."""
    rows = lab.ws.labels(training_id).fetchall()
    return [row[:4] for row in rows]


def test_the_newest_change_counts_and_every_one_is_kept(lab):
    lab.ws.label("tiny", 5, name="dates", source="a person")
    lab.ws.label("tiny", np.int64(5), description="years of the 20th century")
    lab.ws.label("tiny", 7, name="colons")
    lab.ws.label("tiny", 5, name="years")
    assert said(lab) == [
        (5, "years", "years of the 20th century", None),
        (7, "colons", None, None),
    ]
    lab.ws.unlabel("tiny", 5)
    assert said(lab) == [(7, "colons", None, None)]
    history = lab.ws.labels("tiny", history=True)
    assert [row[1:5] for row in history.fetchall()] == [
        (5, "dates", None, "a person"),
        (5, "dates", "years of the 20th century", None),
        (7, "colons", None, None),
        (5, "years", "years of the 20th century", None),
        (5, None, None, None),
    ]
    assert {row[-1] for row in history.fetchall()} == {lab.bench.mover().name}


def test_a_run_labels_the_features_of_its_training(sqlite):
    run = sqlite.ws.run(sqlite.run_id)
    run.label(5, name="dates", source="me")
    assert said(sqlite) == [(5, "dates", None, "me")]
    run.label(5, description="of history")
    assert said(sqlite) == [(5, "dates", "of history", None)]
    run.label(5, name=None, description=None)
    assert said(sqlite) == []
    with pytest.raises(UnknownFeature):
        run.label(16, name="dates")
    with pytest.raises(BadLabel, match="nothing is said of it"):
        run.label(5)


def test_the_same_again_is_no_change_and_none_takes_one_text_away(sqlite):
    lab = sqlite
    for _ in range(3):
        lab.ws.label("tiny", 5, name=" dates ", description=UGLY)
    lab.ws.unlabel("tiny", 6)  # there is none
    assert len(lab.ws.labels("tiny", history=True)) == 1
    lab.ws.label("tiny", 5, name=None)
    assert said(lab) == [(5, None, UGLY, None)]


def test_all_trainings_and_runs_of_an_sae_share_its_labels_and_nothing_loses_them(lab):
    lab.ws.label("tiny", 5, name="dates")
    other = lab.completed("other")  # another training of the same weights
    again = lab.completed(generation=2)
    lab.ws.run(lab.run_id).delete()
    lab.ws.purge(older_than="0d", apply=True)
    assert said(lab, "other") == said(lab) == [(5, "dates", None, None)]
    labelled = lab.ws.sql("SELECT run_id, feature FROM features WHERE label = 'dates'")
    assert sorted(labelled.fetchall()) == sorted([(other, 5), (again, 5)])
    assert {row[0] for row in lab.ws.sql("SELECT sae_digest FROM runs").fetchall()} == {
        "5ae" * 20
    }


def test_a_session_sees_a_label_at_once_also_one_of_another_process(sqlite):
    query = "SELECT feature, label, description FROM features WHERE label IS NOT NULL"
    assert sqlite.ws.sql(query).fetchall() == []
    sqlite.ws.label("tiny", 5, name="dates")
    assert sqlite.ws.sql(query).fetchall() == [(5, "dates", None)]
    elsewhere = Workspace(sqlite.home, settings=sqlite.settings)
    elsewhere.label("tiny", 5, description="of history")
    assert sqlite.ws.sql(query).fetchall() == [(5, "dates", "of history")]
    elsewhere.unlabel("tiny", 5)
    assert sqlite.ws.sql(query).fetchall() == []
    assert len(sqlite.ws.sql("FROM features")) == 16


def test_the_snapshot_has_labels_and_history_under_any_name(sqlite):
    sqlite.ws.label("tiny", 5, name="dates")
    sqlite.ws.label("tiny", 6, name="gone")
    sqlite.ws.unlabel("tiny", 6)
    path = str(sqlite.ws.refresh_catalog())
    with duckdb.connect(path, read_only=True) as opened:
        assert opened.sql("SELECT feature, name FROM labels").fetchall() == [(5, "dates")]
        assert opened.sql("SELECT count(*) FROM label_history").fetchall() == [(3,)]
    with duckdb.connect() as other:
        other.execute(f"ATTACH '{path}' AS theirs (READ_ONLY)")
        query = "SELECT feature FROM theirs.features WHERE label = 'dates'"
        assert other.sql(query).fetchall() == [(5,)]


def test_a_query_of_one_run_opens_no_other_file_because_of_labels(sqlite):
    others = [sqlite.completed(generation=number) for number in range(2, 6)]
    sqlite.ws.label("tiny", 5, name="dates")
    query = f"EXPLAIN ANALYZE FROM features WHERE run_id = '{others[2]}'"
    assert "Scanning Files: 1/5" in sqlite.ws.sql(query).fetchall()[0][1]


@pytest.mark.parametrize(
    ("feature", "texts", "error", "words"),
    [
        (16, {"name": "x"}, UnknownFeature, "0 to 15"),
        (-1, {"name": "x"}, UnknownFeature, "0 to 15"),
        (True, {"name": "x"}, UnknownFeature, "0 to 15"),
        ("5", {"name": "x"}, UnknownFeature, "0 to 15"),
        (5, {}, BadLabel, "nothing is said"),
        (5, {"source": "me"}, BadLabel, "nothing is said"),
        (5, {"name": 7}, BadLabel, "name=7: a text"),
        (5, {"name": "two\nlines"}, BadLabel, "one line"),
        (5, {"name": "x" * 201}, BadLabel, "up to 200"),
        (5, {"description": "x" * 20_001}, BadLabel, "up to 20,000"),
        (5, {"name": "x", "source": "a\nb"}, BadLabel, "one line"),
        (5, {"description": "a\0b"}, BadLabel, "NUL"),
        (5, {"name": "\ud800"}, BadLabel, "no text that can be stored"),
    ],
)
def test_what_cannot_be_a_label_is_named_and_nothing_changes(
    sqlite, feature, texts, error, words
):
    with pytest.raises(error, match=words):
        sqlite.ws.label("tiny", feature, **texts)
    assert len(sqlite.ws.labels("tiny", history=True)) == 0
    with pytest.raises(UnknownTraining, match="tiny"):
        sqlite.ws.label("nobody", 5, name="x")
    with pytest.raises(UnknownTraining, match="tiny"):
        sqlite.ws.labels("nobody")


# --- CSV ------------------------------------------------------------------------------------


def test_what_is_exported_comes_back_as_it_was(lab, tmp_path):
    lab.ws.label("tiny", 5, name='"quoted", and more', description=UGLY, source="me")
    lab.ws.label("tiny", 0, description="only described")
    before = said(lab)
    path = tmp_path / "labels.csv"
    assert lab.ws.export_labels("tiny", path) == 2
    assert lab.ws.import_labels("tiny", path) == 0, "they are there already"
    for feature in (0, 5):
        lab.ws.unlabel("tiny", feature)
    assert lab.ws.import_labels("tiny", path) == 2
    assert said(lab) == before


def test_columns_and_features_that_are_not_in_the_file_stay(sqlite, tmp_path):
    sqlite.ws.label("tiny", 5, name="dates", description="kept")
    sqlite.ws.label("tiny", 6, name="other")
    path = tmp_path / "by a spreadsheet.csv"
    path.write_bytes("\ufeffName,FEATURE\r\nyears,5\r\n\r\nnew,7\r\n".encode())
    assert sqlite.ws.import_labels("tiny", path) == 2
    assert said(sqlite) == [
        (5, "years", "kept", None),
        (6, "other", None, None),
        (7, "new", None, None),
    ]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("feature,name\n1,a\n16,b\n", r"row 3: feature='16': an integer from 0 to 15"),
        ("feature,name\n1,a\nx,b\n", r"row 3: feature='x': an integer from 0 to 15"),
        ("feature,name\n1,a\n-1,b\n", r"row 3: feature='-1'"),
        ("feature,name\n1,a\n1.0,b\n", r"row 3: feature='1.0'"),
        ("feature,name\n1,a\n²,b\n", r"row 3: feature='²'"),
        ("feature,name\n1,a\n,b\n", r"row 3: feature=''"),
        ("feature,name\n1,a\n2,b\n1,c\n", r"row 4: feature=1: it is in row 2 already"),
        ("feature,name\n1,a\n2, \n", r"row 3: feature=2 has neither name nor"),
        ("feature,name\n1,a\n2,b,c\n", r"row 3: it has 3 cells, the first row names 2"),
        ('feature,name\n1,a\n2,"b\n', r"row 3: unexpected end of data"),
        (f"feature,name\n1,a\n2,{'x' * 201}\n", r"row 3: name=.* up to 200"),
        ("feature,name\n1,a\n2,b\0c\n", r"row 3: name=.*NUL"),
        ("feature,nam\n1,a\n", r"row 1: .* unknown column 'nam'"),
        ("feature,source\n1,a\n", r"row 1: .*name or description are needed"),
        ("name\na\n", r"row 1: its columns are name: feature and"),
        ("", r"row 1: its columns are none"),
        ("feature,name,name\n1,a,b\n", r"row 1: .* each once"),
    ],
)
def test_one_bad_row_and_nothing_is_imported(sqlite, tmp_path, table, words):
    path = tmp_path / "labels.csv"
    path.write_text(table, encoding="utf-8", newline="")
    with pytest.raises(BadLabel, match=words) as caught:
        sqlite.ws.import_labels("tiny", path)
    assert str(path) in str(caught.value)
    assert "Nothing was imported" in str(caught.value)
    assert len(sqlite.ws.labels("tiny", history=True)) == 0


def test_a_file_that_is_none_or_no_utf_8_is_named(sqlite, tmp_path):
    with pytest.raises(BadLabel, match="No such file"):
        sqlite.ws.import_labels("tiny", tmp_path / "nothing.csv")
    path = tmp_path / "latin.csv"
    path.write_bytes("feature,name\n1,a\n2,é\n".encode("latin-1"))
    with pytest.raises(BadLabel, match="line 3: byte 0xe9 is no UTF-8"):
        sqlite.ws.import_labels("tiny", path)


def test_an_import_is_one_transaction_and_one_row_per_change(sqlite, tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[str(feature), f"name {feature}", "a program"] for feature in range(16)]
        csv.writer(file).writerows([["feature", "name", "source"], *rows])
    before = sqlite.ws.sql("SELECT count(*) FROM events").fetchall()[0][0]
    assert sqlite.ws.import_labels("tiny", path) == 16
    assert len(sqlite.ws.labels("tiny")) == 16
    assert sqlite.ws.sql("SELECT count(*) FROM events").fetchall() == [(before + 1,)]


def test_a_lost_ledger_loses_its_labels_the_repair_says_so_and_an_export_brings_them_back(
    sqlite, tmp_path, capsys
):
    sqlite.ws.label("tiny", 5, name="dates")
    path = tmp_path / "labels.csv"
    sqlite.ws.export_labels("tiny", path)
    sqlite.bench.paths.ledger.unlink()
    home = ["--workspace", str(sqlite.home)]
    assert main([*home, "repair", "--yes"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Labels were in the ledger only: ws.import_labels(...)" in shown
    assert said(sqlite) == []
    assert sqlite.ws.import_labels("tiny", path) == 1
    assert said(sqlite) == [(5, "dates", None, None)]


def test_rows_that_are_repaired_leave_labels_alone(sqlite):
    sqlite.ws.label("tiny", 5, name="dates")
    for table in ("attempts", "runs", "trainings"):
        sqlite.sql(f"DELETE FROM {table}")  # noqa: S608 - names of this test
    assert sqlite.repair().is_sound
    assert said(sqlite) == [(5, "dates", None, None)]
