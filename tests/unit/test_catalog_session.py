"""SQL in the notebook: typed when empty, current when something was committed."""

import threading
from datetime import UTC, datetime

import numpy as np
import pytest

from extraction_kit.catalog.publish import publish, stage
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.session import Session
from extraction_kit.catalog.tables import (
    CATALOG,
)
from extraction_kit.errors import BadQuery
from tests.unit.synthetic import DEAD, synthetic


class Ledger:
    """Rows and cursor as the service hands them over."""

    def __init__(self, home):
        self.home = home
        self.rows = CatalogRows()
        self.change = 0
        self.asked = 0

    def commit(self, run_id, made, **columns):
        """Publish `made` as a run, then move the cursor."""
        staged = self.home / "results" / ".staging" / f"{run_id}-a1"
        final = self.home / "results" / f"run_id={run_id}"
        stage(staged, made.result, made.manifest)
        assert publish(staged, final)
        run = {"run_id": run_id, "state": "completed", **columns}
        self.rows = CatalogRows(
            runs=[*self.rows.runs, run],
            folders={**self.rows.folders, run_id: final},
            corpora=self.rows.corpora,
            vocabs=self.rows.vocabs,
        )
        self.change += 1
        return final

    def read(self):
        self.asked += 1
        return self.rows

    def open(self):
        return Session(self.read, lambda: self.change)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "feature=3" / "a[1]*'b")  # a home as people name it


@pytest.fixture
def session(ledger):
    session = ledger.open()
    yield session
    session.close()


@pytest.mark.parametrize("table", CATALOG, ids=lambda table: table.name)
def test_an_empty_workspace_answers_with_typed_views(session, table):
    found = session.sql(f"FROM {table.name}")
    assert found.fetchall() == []
    types = dict(zip(found.columns, map(str, found.types), strict=True))
    assert {column.name: column.type for column in table.columns}.items() <= types.items()


def test_types_do_not_change_when_the_first_run_is_committed(session, ledger):
    names = [table.name for table in CATALOG]
    empty = {name: session.sql(f"DESCRIBE {name}").fetchall() for name in names}
    made = synthetic()
    contexts, vocab = made.write_corpus(ledger.home)
    ledger.rows = CatalogRows(corpora={"c0ffee": contexts}, vocabs={"beef": vocab})
    ledger.commit("00000000000000aa", made)
    assert {name: session.sql(f"DESCRIBE {name}").fetchall() for name in names} == empty
    assert session.sql("SELECT DISTINCT corpus_digest FROM contexts").fetchall() == [
        ("c0ffee",)
    ]
    assert session.sql("SELECT text FROM vocab WHERE token_id = 7").fetchall() == [
        ("tok7",)
    ]


def test_numbers_in_sql_equal_numpys(session, ledger):
    made = synthetic()
    ledger.commit("00000000000000aa", made)
    query = (
        "SELECT n_active, max_act, mean_act FROM features WHERE run_id = ? ORDER BY feature"
    )
    rows = session.sql(query, ["00000000000000aa"]).fetchall()
    for feature, (n_active, max_act, mean_act) in enumerate(rows):
        active = made.acts[:, :, feature].astype(np.float64)
        active = active[active > 0]
        assert n_active == len(active)
        if feature == DEAD:
            assert mean_act is None
            continue
        assert max_act == active.max()
        assert mean_act == pytest.approx(active.mean(), rel=1e-12)
    hist = session.sql("SELECT hist FROM histograms ORDER BY feature").fetchall()
    assert [row[0] for row in hist] == made.result.histograms.tolist()


def test_polars_arrow_and_pandas_get_the_rows_that_duckdb_has(session, ledger):
    made = synthetic()
    ledger.commit("a", made)
    for query in (
        "SELECT feature, density, mean_act, dead FROM features ORDER BY feature",
        "SELECT feature, hist FROM histograms ORDER BY feature",
        "SELECT feature, act_val FROM examples ORDER BY feature, rank",
    ):
        answer = session.sql(query)
        rows = answer.fetchall()
        assert answer.pl().rows() == rows
        assert answer.arrow().read_all().to_pylist() == answer.pl().to_dicts()
        assert answer.df().feature.tolist() == [row[0] for row in rows]
    dead = session.sql("SELECT mean_act FROM features WHERE dead").pl()
    assert dead["mean_act"].null_count() == len(dead) > 0


def test_ten_runs_are_told_apart_and_one_is_found_without_opening_the_others(
    session, ledger
):
    for number in range(10):
        ledger.commit(f"{number:016d}", synthetic(seed=number))
    counted = session.sql("SELECT run_id, count(*) FROM features GROUP BY 1 ORDER BY 1")
    assert counted.fetchall() == [(f"{number:016d}", 16) for number in range(10)]
    query = "EXPLAIN ANALYZE FROM features WHERE run_id = '0000000000000003'"
    assert "Scanning Files: 1/10" in session.sql(query).fetchall()[0][1]


def test_a_run_committed_later_is_seen_and_an_idle_ledger_is_not_read_again(
    session, ledger
):
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(0,)]
    session.sql("FROM runs")
    assert ledger.asked == 1
    ledger.commit("00000000000000aa", synthetic(), l0=3.5)
    assert session.sql("SELECT run_id, l0 FROM runs").fetchall() == [
        ("00000000000000aa", 3.5)
    ]
    assert session.sql("SELECT count(*) FROM features").fetchall() == [(16,)]
    assert ledger.asked == 2


def test_a_staged_run_is_not_seen(session, ledger):
    made = synthetic()
    ledger.commit("00000000000000aa", made)
    staging = ledger.home / "results" / ".staging"
    stage(staging / "00000000000000bb-a1", made.result, made.manifest)
    ledger.change += 1
    assert session.sql("SELECT DISTINCT run_id FROM examples").fetchall() == [
        ("00000000000000aa",)
    ]


def test_a_lost_folder_costs_its_own_rows_only(session, ledger):
    lost = ledger.commit("00000000000000aa", synthetic())
    ledger.commit("00000000000000bb", synthetic())
    for path in lost.iterdir():
        path.unlink()
    assert session.sql("SELECT DISTINCT run_id FROM features").fetchall() == [
        ("00000000000000bb",)
    ]
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]


def test_a_damaged_file_leaves_every_other_question_answerable(session, ledger):
    torn = ledger.commit("00000000000000aa", synthetic())
    ledger.commit("00000000000000bb", synthetic())
    (torn / "features.parquet").write_bytes(b"torn")
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]
    query = "SELECT count(*) FROM features WHERE run_id = '00000000000000bb'"
    assert session.sql(query).fetchall() == [(16,)]


def test_times_come_back_naive_in_utc(session, ledger):
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
    ledger.commit("00000000000000aa", synthetic(), created_at=at)
    assert session.sql("SELECT created_at FROM runs").fetchall() == [
        (at.replace(tzinfo=None),)
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEC 1", "syntax error"),
        ("FROM nowhere", "nowhere does not exist"),
        ("SELECT densty FROM features", "densty"),
        ("", "this is nothing"),
        ("SELECT 1; SELECT 2", "this is SELECT, SELECT"),
        ("DROP VIEW features", "this is DROP"),
        ("COPY runs TO 'x.csv'", "this is COPY"),
        ("FROM query", "query does not exist"),
        ("SELECT ?", "The catalog has: runs"),
    ],
)
def test_a_bad_query_says_what_duckdb_says_and_what_there_is(session, query, says):
    with pytest.raises(BadQuery, match=says):
        session.sql(query)
    assert session.sql("SELECT count(*) FROM features").fetchall() == [(0,)]


def test_a_bad_query_lists_the_views(session):
    with pytest.raises(BadQuery, match="features, histograms, examples, logits, "):
        session.sql("FROM nowhere")


def test_a_home_named_like_a_pattern_never_reads_its_neighbours_files(tmp_path):
    neighbour, mine = Ledger(tmp_path / "a1"), Ledger(tmp_path / "a[1]")
    neighbour.commit("00000000000000aa", synthetic(d_sae=4))
    mine.commit("00000000000000aa", synthetic(d_sae=16))
    assert mine.open().sql("SELECT count(*) FROM features").fetchall() == [(16,)]


def test_a_relation_goes_on_after_a_refresh_and_without_its_session(ledger):
    session = ledger.open()
    relation = session.sql("SELECT count(*) FROM runs")
    ledger.commit("00000000000000aa", synthetic())
    session.sql("FROM runs")
    del session
    assert relation.fetchall() == [(1,)]


def test_threads_ask_while_runs_are_committed(session, ledger):
    failures = []

    def ask():
        try:
            for _ in range(30):
                runs, features = session.sql(
                    "SELECT (SELECT count(*) FROM runs), "
                    "(SELECT count(DISTINCT run_id) FROM features)"
                ).fetchall()[0]
                assert runs == features
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5):
        ledger.commit(f"{number:016d}", synthetic(seed=number))
    for thread in threads:
        thread.join()
    assert failures == []
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(5,)]


def test_rows_that_cannot_be_read_leave_the_session_as_it_was(session, ledger):
    ledger.commit("00000000000000aa", synthetic())
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(1,)]
    good = ledger.rows
    ledger.rows = CatalogRows(runs=[{"n_tokens": "many"}])
    ledger.change += 1
    with pytest.raises((ValueError, TypeError)):
        session.sql("FROM runs")
    ledger.rows = good
    assert session.sql("SELECT count(*) FROM runs").fetchall() == [(1,)]
