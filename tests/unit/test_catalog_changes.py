"""A session takes over what changed, and makes a view when a query names it."""

from dataclasses import replace

import pytest

from extraction_kit.catalog.labelled import label_table
from extraction_kit.catalog.publish import publish, stage
from extraction_kit.catalog.relations import CatalogRows, columns_of
from extraction_kit.catalog.session import Session
from extraction_kit.catalog.tables import CATALOG
from tests.unit.synthetic import synthetic

A, B, C, D = (f"{14 * '0'}{letter}{letter}" for letter in "abcd")


class Ledger:
    """Hands over all runs once, and then those that changed."""

    def __init__(self, home):
        self.home, self.change, self.log = home, 1, []
        self.runs, self.folders = {}, {}
        self.labels = label_table([])
        self.read_whole = self.read_changes = 0

    def commit(self, run_id, **columns):
        final = self.home / f"run_id={run_id}"
        if not final.exists():
            made = synthetic()
            stage(self.home / "staged", made.result, made.manifest)
            assert publish(self.home / "staged", final)
        self.runs[run_id] = {"run_id": run_id, "state": "completed", **columns}
        self.folders[run_id] = final
        self.tell(run_id)

    def delete(self, run_id):
        del self.runs[run_id], self.folders[run_id]
        self.tell(run_id)

    def tell(self, run_id):
        self.change += 1
        self.log.append((self.change, run_id))

    def whole(self):
        self.read_whole += 1
        return CatalogRows(
            runs=list(self.runs.values()),
            folders=dict(self.folders),
            label_history=self.labels,
            events=lambda: {"seq": [change for change, _ in self.log]},
        )

    def changes(self, since):
        self.read_changes += 1
        changed = {run_id for change, run_id in self.log if change > since}
        return replace(
            self.whole(),
            changed=changed,
            runs=[run for run_id, run in self.runs.items() if run_id in changed],
            folders={one: path for one, path in self.folders.items() if one in changed},
        )


class LateLedger(Ledger):
    """Reads the rows of runs when they are wanted, as a large one does."""

    read_runs = 0
    meanwhile = None

    def whole(self):
        return replace(
            super().whole(),
            runs=self.all_runs,
            digests={run_id: run.get("result_digest") for run_id, run in self.runs.items()},
        )

    def all_runs(self):
        self.read_runs += 1
        if self.meanwhile is not None:
            self.commit(self.meanwhile)
            self.meanwhile = None
        columns = sorted({name for run in self.runs.values() for name in run} | {"l0"})
        return {name: [run.get(name) for run in self.runs.values()] for name in columns}


@pytest.fixture(params=[Ledger, LateLedger])
def ledger(request, tmp_path):
    return request.param(tmp_path)


@pytest.fixture
def session(ledger):
    ledger.commit(A)
    session = Session(ledger.whole, lambda: ledger.change, ledger.changes)
    yield session
    session.close()


def found(session):
    runs = session.sql("SELECT run_id, l0 FROM runs ORDER BY run_id").fetchall()
    features = session.sql("SELECT DISTINCT run_id FROM features ORDER BY 1").fetchall()
    assert features == [(run_id,) for run_id, _ in runs]
    return runs


def test_only_what_changed_is_read_again(session, ledger):
    assert found(session) == [(A, None)]
    ledger.commit(B, l0=1.5)
    assert found(session) == [(A, None), (B, 1.5)]
    ledger.commit(A, l0=2.5)
    assert found(session) == [(A, 2.5), (B, 1.5)]
    ledger.delete(B)
    assert found(session) == [(A, 2.5)]
    assert ledger.read_changes == 3
    assert session.sql("SELECT count(*) FROM events").fetchall() == [(4,)]


@pytest.mark.parametrize("ledger", [LateLedger], indirect=True)
def test_runs_are_read_when_a_query_names_them_and_then_with_their_files(session, ledger):
    assert session.sql("SELECT count(DISTINCT run_id) FROM features").fetchall() == [(1,)]
    ledger.commit(B)
    assert session.sql("SELECT count(DISTINCT run_id) FROM features").fetchall() == [(2,)]
    assert ledger.read_runs == 0
    ledger.meanwhile = C
    assert found(session) == [(A, None), (B, None), (C, None)]
    ledger.commit(B, l0=1.5)
    assert found(session) == [(A, None), (B, 1.5), (C, None)]
    assert ledger.read_runs == 1
    ledger.meanwhile = D  # in one query that names both, too
    session.close()
    joined = "FROM runs LEFT JOIN features USING (run_id) WHERE feature IS NULL"
    assert session.sql(f"SELECT run_id {joined}").fetchall() == []
    assert len(found(session)) == 4


@pytest.mark.parametrize("ledger", [LateLedger], indirect=True)
def test_labels_find_the_runs_of_their_sae_in_a_query_that_names_none(session, ledger):
    ledger.commit(A, sae_digest="5ae")
    ledger.labels = label_table(
        [{"seq": 1, "sae_digest": "5ae", "feature": 3, "name": "dates"}]
    )
    ledger.tell(A)
    labelled = "SELECT label FROM features WHERE feature = 3"
    assert session.sql(labelled).fetchall() == [("dates",)]


def test_a_ledger_that_was_put_back_is_read_as_a_whole(session, ledger):
    ledger.commit(B)
    assert len(found(session)) == 2
    del ledger.runs[B], ledger.folders[B]  # a backup, with an older cursor
    ledger.change = 2
    assert found(session) == [(A, None)]
    assert ledger.read_changes == 0


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM FEATURES",
        'SELECT count(*) FROM main."features"',
        "WITH f AS (FROM features) SELECT count(*) FROM f",
        "SELECT count(*) FROM query_table('fea' || 'tures')",
        "SELECT count(*) FROM query('FROM fea' || 'tures')",
    ],
)
def test_a_view_is_current_however_a_query_names_it(session, ledger, query):
    assert session.sql(query).fetchall() == [(16,)]
    ledger.commit(B)
    assert session.sql(query).fetchall() == [(32,)]


def test_a_macro_sees_what_is_current(session, ledger, tmp_path):
    made = synthetic()
    contexts, vocab = made.write_corpus(tmp_path)
    whole = ledger.whole
    ledger.whole = lambda: replace(whole(), vocabs={"beef": vocab}, corpora={"c": contexts})
    session = Session(ledger.whole, lambda: ledger.change, ledger.changes)
    ledger.commit(A, tokenizer_digest="beef")
    query = "SELECT DISTINCT run_id FROM search_token('tok7')"
    assert session.sql(query).fetchall() == [(A,)]
    ledger.commit(B, tokenizer_digest="beef")
    assert sorted(session.sql(query).fetchall()) == [(A,), (B,)]


def test_comments_stay_when_views_and_rows_change(session, ledger):
    query = (
        "SELECT table_name, column_name, comment FROM duckdb_columns() "
        "WHERE schema_name = 'main' AND comment IS NOT NULL ORDER BY ALL"
    )
    meant = sorted(
        (table.name, column.name, column.comment)
        for table in CATALOG
        for column in columns_of(table)
    )
    assert session.sql(query).fetchall() == meant
    ledger.commit(B)
    found(session)
    assert session.sql(query).fetchall() == meant
    session.sql("FROM events").fetchall()
    assert session.sql(query).fetchall() == meant
