"""A damaged file is named with its run, and every other question has its answer."""

import json
import random
from operator import methodcaller

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction_kit.catalog import reading
from extraction_kit.catalog.publish import publish, stage, verify
from extraction_kit.catalog.relations import CatalogRows, _is_readable
from extraction_kit.catalog.session import Session
from extraction_kit.catalog.snapshot import write_snapshot
from extraction_kit.errors import BadQuery, ExtractionKitError, ResultsDamaged
from tests.unit.synthetic import synthetic

TORN, OTHER = "00000000000000aa", "00000000000000bb"


@pytest.fixture
def folders(tmp_path):
    found = {}
    for number, run_id in enumerate((TORN, OTHER)):
        made = synthetic(seed=number)
        staged = tmp_path / "results" / ".staging" / run_id
        final = found[run_id] = tmp_path / "results" / f"run_id={run_id}"
        stage(staged, made.result, made.manifest)
        assert publish(staged, final)
    return found


@pytest.fixture
def session(folders):
    runs = [{"run_id": run_id, "state": "completed"} for run_id in folders]
    rows = CatalogRows(runs=runs, folders=folders)
    session = Session(lambda: rows, lambda: 1)
    yield session
    session.close()


def flipped(data, random_):
    data = bytearray(data)
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


def truncated(data, random_):
    return data[: random_.randrange(len(data))]


READ = {
    "features": lambda folder: reading.features(folder).fetchall(),
    "examples": lambda folder: reading.examples(folder).fetchall(),
    "histograms": lambda folder: reading.histogram(folder, 1),
    "logits": lambda folder: reading.logits(folder, vocab=folder / "none").fetchall(),
    "neighbours": lambda folder: reading.similar(folder).fetchall(),
    "tokens": lambda folder: reading.top_tokens(folder, vocab=folder / "none").fetchall(),
}


@pytest.mark.parametrize("table", READ)
def test_no_number_is_read_from_a_damaged_file_of_a_run(folders, table):
    path = folders[TORN] / f"{table}.parquet"
    good, random_ = path.read_bytes(), random.Random(0)  # noqa: S311 - which bits
    for number in range(20):
        damage = (flipped, truncated)[number % 2](good, random_)
        path.write_bytes(damage)
        with pytest.raises(ResultsDamaged, match=rf"run_id={TORN}/{table}.parquet"):
            READ[table](folders[TORN])
    path.write_bytes(good)
    if table in {"features", "examples", "histograms"}:
        assert len(READ[table](folders[TORN])) > 0


@pytest.mark.parametrize("name", ["manifest.json", "features.parquet"])
def test_a_file_that_is_put_back_is_read_at_once(folders, name):
    path = folders[TORN] / name
    good, expected = path.read_bytes(), reading.features(folders[OTHER]).fetchall()
    path.unlink()
    with pytest.raises(ResultsDamaged, match=name):
        reading.features(folders[TORN])
    path.write_bytes(good)
    assert len(reading.features(folders[TORN]).fetchall()) == len(expected)


def test_a_folder_that_is_put_back_is_in_the_next_answer(folders, tmp_path):
    rows = CatalogRows(runs=[{"run_id": run_id} for run_id in folders], folders=folders)
    session = Session(lambda: rows, lambda: 1)
    count = "SELECT count(DISTINCT run_id) FROM features"
    folders[TORN].rename(tmp_path / "away")
    assert session.sql(count).fetchall() == [(1,)]
    (tmp_path / "away").rename(folders[TORN])
    assert session.sql(count).fetchall() == [(2,)]


@pytest.mark.parametrize("made_as", [None, "3"])
def test_a_manifest_without_the_number_of_its_format_is_damage(folders, made_as):
    path = folders[TORN] / "manifest.json"
    manifest = json.loads(path.read_text()) | {"format": made_as}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ResultsDamaged, match="missing or torn"):
        reading.features(folders[TORN])


def failure(session, query):
    """Return what the error of a query says, None if it has an answer."""
    try:
        session.sql(query).fetchall()
    except ExtractionKitError as error:
        return str(error)
    return None


def test_sql_names_run_and_file_or_answers_and_goes_on(session, folders):
    path = folders[TORN] / "examples.parquet"
    good, random_ = path.read_bytes(), random.Random(1)  # noqa: S311 - which bits
    n_named = 0
    query = f"SELECT count(*) FROM examples WHERE run_id = '{OTHER}'"  # noqa: S608 - our own
    n_good = session.sql(query).fetchall()
    for number in range(30):
        path.write_bytes((flipped, flipped, truncated)[number % 3](good, random_))
        error = failure(session, "FROM examples")  # altered numbers are for `verify`
        if error is not None:
            n_named += 1
            assert f"run {TORN}: {path}" in error
            assert "ws.verify()" in error
        assert session.sql(query).fetchall() == n_good
        assert session.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]
    assert n_named >= 10  # all that were cut at least


@pytest.mark.parametrize(
    "fetch",
    [
        methodcaller("df"),
        methodcaller("to_arrow_table"),
        pa.table,
        lambda relation: relation.filter("feature = 3").fetchall(),
        lambda relation: relation.aggregate("sum(max_act)").fetchall(),
        len,
        repr,
    ],
    ids=["df", "arrow", "stream", "filter", "aggregate", "len", "repr"],
)
def test_however_it_is_fetched_the_file_is_named(session, folders, fetch):
    relation = session.sql("FROM features")
    fetch(relation)
    path = folders[TORN] / "features.parquet"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ResultsDamaged, match=rf"run {TORN}: .*features.parquet has"):
        fetch(session.sql("FROM features"))


def test_an_answer_is_a_relation_in_all_that_it_does(session):
    answer = session.sql("SELECT feature, max_act FROM features ORDER BY run_id, feature")
    assert answer.columns == ["feature", "max_act"]
    assert "max_act" in answer
    assert len(answer) == 32
    both = answer.filter("feature < 2").union(answer.filter("feature = 9"))
    assert sorted(both.project("feature").fetchall()) == [
        (0,),
        (0,),
        (1,),
        (1,),
        (9,),
        (9,),
    ]
    assert answer["feature"].limit(1).fetchall() == [(0,)]
    assert "max_act" in repr(answer)
    assert "fetchall" in dir(answer)
    for name in ("_repr_mimebundle_", "_repr_html_", "no_such_column"):
        assert hasattr(answer, name) == hasattr(answer._relation, name)
    with pytest.raises(BadQuery, match="densty"):
        answer.project("densty")
    with pytest.raises(BadQuery, match="Could not convert"):
        session.sql("SELECT run_id::INTEGER FROM runs").fetchall()


def test_a_file_that_goes_away_is_named_once_and_then_left_out(session, folders):
    assert session.sql("SELECT count(*) FROM features").fetchall() == [(32,)]
    (folders[TORN] / "features.parquet").unlink()
    with pytest.raises(ResultsDamaged, match=rf"run {TORN}: .*features.parquet is missing"):
        session.sql("SELECT sum(max_act) FROM features").fetchall()
    assert session.sql("SELECT count(*) FROM features").fetchall() == [(16,)]


def test_a_run_of_a_newer_format_says_what_to_do(folders):
    path = folders[TORN] / "manifest.json"
    manifest = json.loads(path.read_text())
    files = {
        "features.parquet": manifest["files"]["features.parquet"]
    }  # others are no more
    new = manifest | {"format": 99, "kit_version": "9.9", "files": files}
    path.write_text(json.dumps(new))
    for ask in (
        reading.features,
        lambda folder: reading.histogram(folder, 1),
        lambda folder: reading.similar(folder, 1),
    ):
        with pytest.raises(BadQuery, match=r"extraction_kit 9\.9 .* pip install --upgrade"):
            ask(folders[TORN])
        assert ask(folders[OTHER]) is not None


@pytest.mark.parametrize("how", ["gone", "torn"])
def test_missing_contexts_are_named(folders, tmp_path, how):
    made = synthetic()
    contexts, vocab = made.write_corpus(tmp_path)
    if how == "gone":
        contexts.unlink()
    else:
        contexts.write_bytes(contexts.read_bytes()[:100])
    with pytest.raises(ResultsDamaged, match=r"c0ffee/contexts.parquet cannot be read"):
        reading.example_windows(folders[TORN], 2, contexts=contexts, vocab=vocab)
    assert len(reading.examples(folders[TORN], 2).fetchall()) > 0


def test_missing_contexts_cost_the_text_of_examples_only(folders, tmp_path):
    runs = [
        {
            "run_id": run_id, "corpus_digest": "c0ffee", "tokenizer_digest": "beef",
            "config": json.dumps({"window": [4, 2]}),
        }
        for run_id in folders
    ]  # fmt: skip
    contexts, vocab = synthetic().write_corpus(tmp_path)
    for there in (True, False):
        if not there:
            contexts.unlink()
        rows = CatalogRows(
            runs=runs, folders=folders, corpora={"c0ffee": contexts}, vocabs={"beef": vocab}
        )
        found = Session(lambda rows=rows: rows, lambda: 1).sql(
            f"FROM examples_of('{TORN}', 2)"
        )
        texts = found.project("text").fetchall()
        assert len(texts) == 5
        assert all((text is not None) == there for (text,) in texts)


def test_a_footer_that_duckdb_alone_cannot_read_costs_its_own_run_only(session, folders):
    path = folders[TORN] / "examples.parquet"
    good, random_ = path.read_bytes(), random.Random(2)  # noqa: S311 - which bits
    footer = int.from_bytes(good[-8:-4], "little")
    for _ in range(1000):
        data = bytearray(good)
        data[-random_.randrange(9, footer + 9)] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        if _is_readable(path):
            with duckdb.connect() as apart:  # a new one: DuckDB 1.5 remembers for a second
                try:
                    apart.execute(f"SELECT act FROM '{path}' LIMIT 0")  # noqa: S608 - our own
                except duckdb.Error:
                    break
    else:
        pytest.fail("DuckDB reads all that pyarrow does")
    query = f"SELECT count(*) FROM examples WHERE run_id = '{OTHER}'"  # noqa: S608 - our own
    n_rows = session.sql(query).fetchall()
    assert n_rows[0][0] > 0
    with pytest.raises(ResultsDamaged, match=rf"run {TORN}: .*examples.parquet"):
        session.sql("FROM examples").fetchall()
    write_snapshot(path.parent / "x.duckdb", session._rows())
    with duckdb.connect(str(path.parent / "x.duckdb"), read_only=True) as snapshot:
        assert snapshot.execute(query).fetchall() == n_rows


@pytest.mark.parametrize("table", ["features", "examples"])
def test_any_flipped_bit_of_a_footer_is_told_in_a_sentence(folders, table):
    path = folders[TORN] / f"{table}.parquet"
    good, random_ = path.read_bytes(), random.Random(3)  # noqa: S311 - which bits
    footer = int.from_bytes(good[-8:-4], "little")
    for _ in range(150):
        data = bytearray(good)
        data[-random_.randrange(1, footer + 9)] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
        (problem,) = verify(path.parent)
        assert problem.startswith(str(path))


def test_whatever_is_damaged_the_error_names_the_run(session, folders):
    for path in folders[TORN].glob("*.parquet"):
        path.write_bytes(b"PAR1" + bytes(200) + b"PAR1")
    for query in (
        "FROM features", "FROM histograms", f"FROM top_features('{TORN}', 3)",
        "SELECT * FROM examples JOIN features USING (feature)",
    ):  # fmt: skip
        assert TORN in failure(session, query)
    assert failure(session, f"FROM top_features('{OTHER}', 3)") is None


def test_types_of_a_readable_file_count_not_those_of_a_damaged_one(session, folders):
    table = pa.table({"feature": np.arange(3)})
    pq.write_table(table, folders[TORN] / "features.parquet")  # a Parquet file, not ours
    with pytest.raises((ResultsDamaged, BadQuery)):
        session.sql("SELECT sum(max_act) FROM features").fetchall()
    query = f"SELECT count(*) FROM histograms WHERE run_id = '{TORN}'"  # noqa: S608 - our own
    assert session.sql(query).fetchall() == [(16,)]
