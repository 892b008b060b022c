"""Indexes over many runs: the same answers as the runs' own files, and never a run too many."""

import contextlib
import functools
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction_kit.catalog import indexes
from extraction_kit.catalog.labelled import label_table
from extraction_kit.catalog.publish import publish, read_manifest, stage
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.session import Session
from extraction_kit.errors import ResultsDamaged
from tests.unit.synthetic import synthetic

QUERIES = (
    "FROM features ORDER BY run_id, feature",
    "SELECT run_id, feature, max_act FROM features ORDER BY max_act DESC, run_id LIMIT 50",
    "FROM features WHERE run_id = '0000000000000003' ORDER BY feature",
    "FROM peaks ORDER BY run_id, feature, token",
    "FROM search_token('tok7') ORDER BY ALL",
)
made_once = functools.cache(lambda seed: synthetic(seed=seed))


class Runs:
    """Published runs, as the ledger tells of them; the cursor moves when they change."""

    def __init__(self, home):
        self.home = home
        self.derived = home / "derived"
        self.change = 1
        contexts, vocab = made_once(0).write_corpus(home)
        self.rows = CatalogRows(
            corpora={"c0ffee": contexts}, vocabs={"beef": vocab}, derived=self.derived
        )

    def add(self, *seeds):
        for seed in seeds:
            run_id, made = f"{seed:016d}", made_once(seed)
            staged = self.home / "staging" / run_id
            final = self.home / "results" / f"run_id={run_id}"
            tokens = {"tokens": counted(made)} if seed % 2 else {}
            stage(staged, replace(made.result, tables=tokens), made.manifest)
            assert publish(staged, final)
            run = {
                "run_id": run_id,
                "training_id": f"t{seed}",
                "tokenizer_digest": "beef",
                "result_digest": read_manifest(final)["result_digest"],
            }
            self.rows = replace(
                self.rows,
                runs=[*self.rows.runs, run],
                folders={**self.rows.folders, run_id: final},
            )
        self.change += 1
        return self

    def delete(self, seed):
        run_id = f"{seed:016d}"
        kept = {one: path for one, path in self.rows.folders.items() if one != run_id}
        runs = [run for run in self.rows.runs if run["run_id"] != run_id]
        self.rows = replace(self.rows, folders=kept, runs=runs)
        self.change += 1

    @property
    def wanted(self):
        return {run["run_id"]: run["result_digest"] for run in self.rows.runs}

    def build(self):
        return indexes.build(self.derived, self.wanted, self.rows.folders)

    def open(self):
        return Session(lambda: self.rows, lambda: self.change)


def counted(made):
    """Count the tokens of one feature, as a run does on request."""
    return {
        "feature": made.result.examples.feature[:1],
        "rank": made.result.examples.rank[:1],
        "token": made.result.examples.peak_token[:1],
        "n_active": made.result.features["n_active"][:1],
        "sum_act": made.result.features["sum_act"][:1],
        "mean_act": made.result.features["sum_act"][:1],
        "max_act": made.result.features["max_act"][:1] * 2,
    }


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(indexes, "SEGMENT", 3)
    return Runs(tmp_path / "it's [mine]").add(0, 1, 2, 3, 4)


def answers(session):
    return [session.sql(query).fetchall() for query in QUERIES]


def files_read(session, query="FROM features"):
    """Return how many files a query names: those of the index and those of runs."""
    plan = session.sql("SELECT sql FROM duckdb_views() WHERE schema_name = 'files' "
                       "AND view_name = 'features'")  # fmt: skip
    session.sql(query)
    text = plan.fetchall()[0][0]
    return text.count(".features.parquet"), text.count("/features.parquet")


def test_answers_are_those_of_the_runs_own_files(runs):
    session = runs.open()
    own = answers(session)
    assert files_read(session) == (0, 5)
    runs.build()
    assert answers(session) == own  # the session that was open takes it up by itself
    assert files_read(session) == (2, 0)
    assert own[4], "the token was found"


def test_a_run_that_is_in_no_index_yet_is_found_by_its_own_files(runs):
    runs.build()
    session = runs.open()
    runs.add(5)
    assert answers(session) == answers(
        Runs(runs.home / "other").add(0, 1, 2, 3, 4, 5).open()
    )
    assert files_read(session) == (2, 1)


def test_a_run_that_was_deleted_never_shows_up_from_an_index(runs):
    runs.build()
    session = runs.open()
    before = answers(session)
    shutil.rmtree(runs.rows.folders["0000000000000001"])
    runs.delete(1)
    after = answers(session)
    assert files_read(session) == (2, 0)
    assert after[0] == [row for row in before[0] if row[0] != "0000000000000001"]
    assert len(after[0]) == len(before[0]) - 16
    assert {row[0] for row in after[3]} == {row[0] for row in after[0]}


def test_a_run_whose_result_is_another_now_is_read_from_its_own_files(runs):
    runs.build()
    changed = [
        run | {"result_digest": "other"} if run["training_id"] == "t2" else run
        for run in runs.rows.runs
    ]
    runs.rows = replace(runs.rows, runs=changed)
    session = runs.open()
    assert answers(session) == answers(Runs(runs.home / "other").add(0, 1, 2, 3, 4).open())
    assert files_read(session) == (2, 1)


def test_full_segments_stay_and_the_last_one_is_built_anew(runs):
    first = runs.build()
    assert [len(one.runs) for one in first.segments] == [3, 2]
    second = runs.add(5, 6).build()
    assert [len(one.runs) for one in second.segments] == [3, 3, 1]
    assert second.segments[0] == first.segments[0]
    # of the index before nothing is removed: somebody may be reading it
    names = {path.name for path in runs.derived.iterdir()}
    assert first.segments[1].name in {name.split(".")[0] for name in names}
    runs.build()
    names = {path.name.split(".")[0] for path in runs.derived.iterdir()}
    assert names == {"index", *(one.name for one in second.segments)}


def test_a_segment_is_built_anew_when_many_of_its_runs_are_gone(runs):
    runs.build()
    runs.delete(0)
    assert indexes.is_due(indexes.read_index(runs.derived), runs.wanted, above=3)
    assert sorted(runs.build().known) == sorted(runs.wanted)


def test_it_is_due_above_a_number_of_runs_and_when_enough_are_new(runs):
    index = indexes.Index()
    assert indexes.is_due(index, runs.wanted, above=4)
    assert not indexes.is_due(index, runs.wanted, above=5)
    index = runs.build()
    assert not indexes.is_due(index, runs.wanted, above=4)
    more = runs.wanted | {"new": "digest"}
    assert indexes.is_due(index, more, above=4)
    many = {f"{number}": "digest" for number in range(1000)}
    known = indexes.Index((indexes.Segment("s", many),))
    nine = many | {f"new{number}": "digest" for number in range(9)}
    assert not indexes.is_due(known, nine, above=1000)
    assert indexes.is_due(known, nine | {"tenth": "digest"}, above=1000)


@pytest.mark.parametrize("what", ["all of it", "one file", "the list"])
def test_it_may_be_deleted_while_a_session_is_open(runs, what):
    index = runs.build()
    session = runs.open()
    before = answers(session)
    if what == "all of it":
        shutil.rmtree(runs.derived)
    elif what == "one file":
        (runs.derived / f"{index.segments[0].name}.peaks.parquet").unlink()
    else:
        (runs.derived / "index.json").unlink()
    assert answers(session) == before
    assert sorted(runs.build().known) == sorted(runs.wanted)
    assert answers(session) == before
    assert files_read(session) == (2, 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": [0], "segments": []}'])
def test_a_list_that_cannot_be_understood_counts_as_none(runs, text):
    runs.build()
    (runs.derived / "index.json").write_text(text)
    assert indexes.read_index(runs.derived) == indexes.Index()
    assert len(runs.open().sql("FROM features").fetchall()) == 5 * 16


def test_a_damaged_run_is_left_out_and_named_by_its_own_file(runs, caplog):
    torn = runs.rows.folders["0000000000000002"] / "features.parquet"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    index = runs.build()
    assert list(index.left_out) == ["0000000000000002"]
    assert f"{torn} has sha256" in caplog.text
    assert not indexes.is_due(index, runs.wanted, above=4)
    torn.write_bytes(whole)
    assert len(runs.open().sql("FROM features").fetchall()) == 5 * 16


def test_what_a_killed_build_left_is_removed_by_the_next(runs):
    runs.derived.mkdir()
    (runs.derived / ".x.features.parquet.77.tmp").write_bytes(b"half")
    spill = runs.derived / ".x.peaks.parquet.77.tmp.spill"
    spill.mkdir()
    (spill / "duckdb_temp_storage.tmp").write_bytes(b"half")
    runs.build()
    assert [path for path in runs.derived.iterdir() if path.name.startswith(".")] == []


def spoilt(path, how):
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(b"PAR1" + bytes(len(data) - 1000) + data[-996:])


@pytest.mark.parametrize("how", ["torn", "overwritten"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_index_is_removed_and_the_runs_own_files_are_read(runs, number, how):
    own = answers(runs.open())
    index = runs.build()
    spoilt(runs.derived / f"{index.segments[number].name}.features.parquet", how)
    session = runs.open()
    with contextlib.suppress(ResultsDamaged):  # where the first query notices too late
        answers(session)
    assert answers(session) == own
    assert files_read(session) == (0, 5)
    assert len(runs.build().segments) == 2
    assert answers(runs.open()) == own


def test_features_from_an_index_have_their_labels(runs):
    runs.build()
    runs.rows = replace(
        runs.rows,
        runs=[run | {"sae_digest": "5ae"} for run in runs.rows.runs],
        label_history=label_table(
            [{"seq": 1, "sae_digest": "5ae", "feature": 3, "name": "dates"}]
        ),
    )
    runs.add(5)  # the one that is in no index has them too
    runs.rows.runs[-1]["sae_digest"] = "5ae"
    found = runs.open().sql("SELECT run_id FROM features WHERE label = 'dates' ORDER BY 1")
    assert found.fetchall() == [(f"{seed:016d}",) for seed in range(6)]


def test_a_damaged_run_does_not_cost_the_index(runs):
    own = runs.open().sql(
        "SELECT run_id, sum(n_active) FROM features GROUP BY 1 ORDER BY 1"
    )
    before = own.fetchall()
    runs.build()
    runs.add(5)
    features = runs.rows.folders["0000000000000005"] / "features.parquet"
    pq.write_table(pa.table({"feature": [0, 1, 2]}), features)  # a Parquet file, not ours
    session = runs.open()
    query = "SELECT run_id, sum(n_active) FROM features WHERE run_id < '0000000000000005' "
    assert session.sql(f"{query} GROUP BY 1 ORDER BY 1").fetchall() == before
    assert len(indexes.read_index(runs.derived).segments) == 2
