"""How long it takes to record a run, and to ask one, two, a thousand and ten thousand runs.

Beside each figure is the plain alternative, asked the same in the same process: one DuckDB
table in a file, and JSON files as SAEDashboard writes them (batches of features with the texts
and activations of each window). Medians of warm repetitions, one at a time; CPU time beside
wall time, because a busy machine lengthens the latter only.

The runs of a thousand and of ten thousand are hard links of a dozen: 137 GB would not fit. The
plain alternatives are measured at a thousand runs at most, JSON with a sixteenth of one run's
features, and multiplied (the rows say so).

`make bench-catalog` prints the table and writes ``build/bench/catalog.json``. The workspaces
stay in ``build/bench/catalog``: the first time takes half an hour, most of it the indexes of a
thousand runs.
"""

import gc
import json
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pytest

from extraction_kit import cataloguing, indexing, status
from extraction_kit.catalog import reading
from extraction_kit.catalog.arrays import examples_table, features_table, histograms_table
from extraction_kit.catalog.session import Session
from tests.benchmarks import large_result as large
from tests.benchmarks.catalog_workspace import (
    claimed,
    corpus_in,
    made_once,
    open_workspace,
    record,
    write_distinct,
)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

OUT = Path("build/bench/catalog.json")
HOME = Path("build/bench/catalog").absolute()
N = 9
SHARE_OF_JSON = 16
TOP = "SELECT feature, max_act FROM {} WHERE run_id = '{}' ORDER BY max_act DESC LIMIT 50"
TOP_OF_ALL = "SELECT run_id, feature, max_act FROM {} ORDER BY max_act DESC LIMIT 50"
COMPARE = (
    "SELECT feature, b.density - a.density AS change FROM {0} AS a JOIN {0} AS b "
    "USING (feature) WHERE a.run_id = '{1}' AND b.run_id = '{2}' "
    "ORDER BY abs(change) DESC LIMIT 50"
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    target: float | None
    value: float
    unit: str
    cpu: float | None = None

    def __str__(self) -> str:
        target = "" if self.target is None else f"(target {self.target:g})"
        cpu = "" if self.cpu is None else f"cpu {self.cpu:9.1f}"
        return f"{self.name:66} {self.value:9.1f} {self.unit:3} {cpu:14} {target}"


def timed(name, ask, *, target=None, n=N, prepare=lambda: None, times=1) -> Row:
    """Return the medians of a question; it is asked once before."""
    prepare()
    ask()
    walls, cpus = [], []
    for _ in range(n):
        prepare()
        wall, cpu = time.perf_counter(), time.process_time()
        ask()
        walls.append(1000 * times * (time.perf_counter() - wall))
        cpus.append(1000 * times * (time.process_time() - cpu))
    return Row(name, target, statistics.median(walls), "ms", statistics.median(cpus))


def _resident_mb(name: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.split(f"{name}:")[1].split()[0]) / 1024


def recording(tiny, home: Path) -> list[Row]:
    """Return what it costs to record a run, by the worker's own code."""
    workspace = open_workspace(home / "recording", tiny)
    corpus = corpus_in(workspace)
    result = large.large_result(0)
    walls, cpus, extra = [], [], []
    for seed in range(5):
        attempt = claimed(workspace, corpus, seed)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak
        before = _resident_mb("VmRSS")
        wall, cpu = time.perf_counter(), time.process_time()
        folder = record(attempt, result)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        extra.append(_resident_mb("VmHWM") - before)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    whole = claimed(workspace, corpus, 99)
    folder = record(whole, large.with_weights(result))
    with_weights = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    contexts = (corpus.path / "contexts.parquet").stat().st_size / 1e6
    name = f"record a run of {result.examples.feature.size:,} examples"
    return [
        Row(
            name,
            2500,
            1000 * statistics.median(walls),
            "ms",
            1000 * statistics.median(cpus),
        ),
        Row("  extra memory", 400, max(extra), "MB"),
        Row("  on disk", 15, size, "MB"),
        Row(
            "  on disk with logits and neighbours, as by default", None, with_weights, "MB"
        ),
        Row("  contexts, once", None, contexts, "MB"),
    ]


def plain_table(path: Path, n_runs: int) -> duckdb.DuckDBPyConnection:
    """Write one DuckDB table of features of many runs, and of examples of two; open it."""
    results = [large.large_result(seed) for seed in (0, 1)]
    if not path.exists():
        with duckdb.connect(path, config={"threads": 1}) as database:
            for table, content in (
                ("features", features_table), ("histograms", histograms_table),
                ("examples", examples_table),
            ):  # fmt: skip
                for seed, result in enumerate(results):
                    database.register("content", content(result))
                    query = f"SELECT '{seed:016x}' AS run_id, * FROM content"  # noqa: S608 - ours
                    verb = f"INSERT INTO {table}" if seed else f"CREATE TABLE {table} AS"
                    database.execute(f"{verb} {query}")
            database.execute(
                "INSERT INTO features SELECT printf('%016x', n + 2), one.* EXCLUDE (run_id) "  # noqa: S608 - ours
                f"FROM features AS one, range({n_runs - 2}) AS r(n) WHERE run_id = '{0:016x}'"
            )
    return duckdb.connect(path, read_only=True)


def plain_record(path: Path) -> Row:
    """Return what it takes to insert a run into one DuckDB table each."""
    result = large.large_result(0)

    def insert():
        with duckdb.connect(path) as database:
            for table, content in (
                ("features", features_table), ("histograms", histograms_table),
                ("examples", examples_table),
            ):  # fmt: skip
                database.register("content", content(result))
                database.execute(f"CREATE OR REPLACE TABLE {table} AS FROM content")
            database.execute("CHECKPOINT")

    return timed("    one DuckDB table", insert, n=3)


def write_json(folder: Path, tokens: np.ndarray) -> Row:
    """Write a share of a run's features as SAEDashboard does; return the time of a whole run."""
    result = large.large_result(0)
    texts = [large.text_of(token) for token in range(large.N_VOCAB)]
    given, n = result.examples, large.D_SAE // SHARE_OF_JSON
    folder.mkdir(parents=True, exist_ok=True)
    began, cpu = time.perf_counter(), time.process_time()
    rows = {}
    for row in range(int(np.searchsorted(given.feature, n))):
        start, stop = given.start[row], min(given.pos[row] + 17, large.CONTEXT_SIZE)
        window = tokens[given.context[row], start:stop]
        values = [0.0] * len(window)
        for entry in range(given.offsets[row], given.offsets[row + 1]):
            values[given.act_off[entry]] = float(given.act_val[entry])
        rows.setdefault(int(given.feature[row]), []).append(
            {"bin_min": -1, "tokens": [texts[token] for token in window], "values": values}
        )
    for batch in range(0, n, 128):
        features = [
            {"feature_index": feature, "max_act": float(result.features["max_act"][feature]),
             "frac_nonzero": int(result.features["n_active"][feature]),
             "freq_hist_data_bar_heights": result.histograms[feature].tolist(),
             "activations": rows.get(feature, [])}
            for feature in range(batch, batch + 128)
        ]  # fmt: skip
        (folder / f"batch-{batch // 128}.json").write_text(
            json.dumps({"features": features})
        )
    return Row(
        f"    JSON files (a {SHARE_OF_JSON}th, times {SHARE_OF_JSON})",
        None,
        1000 * SHARE_OF_JSON * (time.perf_counter() - began),
        "ms",
        1000 * SHARE_OF_JSON * (time.process_time() - cpu),
    )


def top_of_json(folder: Path) -> list:
    """Return the 50 features with the largest maximum: every file must be read."""
    found = [
        (one["max_act"], one["feature_index"])
        for path in folder.iterdir()
        for one in json.loads(path.read_bytes())["features"]
    ]
    return sorted(found, reverse=True)[:50]


def feature_of_json(folder: Path, feature: int) -> dict:
    """Return one feature: one file must be read."""
    batch = json.loads((folder / f"batch-{feature // 128}.json").read_bytes())
    return batch["features"][feature % 128]


def one_run(workspace, plain, folder: Path) -> list[Row]:
    """Ask a single run, straight from its files."""
    bench = workspace._bench
    run_id = next(iter(cataloguing.catalog_rows(bench).folders))
    results, corpus = bench.paths.results_of(run_id), corpus_in(workspace)
    key = f"{0:016x}"
    n_json = large.D_SAE // SHARE_OF_JSON
    live = reading.features(results).filter(f"NOT dead AND feature < {n_json}")
    order = np.random.default_rng(0).permutation(
        live.project("feature").fetchnumpy()["feature"]
    )
    features = map(int, order)  # another one each time, as a person looks through them

    def top():
        return reading.features(results).order("max_act DESC").limit(50).fetchall()

    def windows():
        contexts = corpus.path / "contexts.parquet"
        return reading.example_windows(
            results, next(features), contexts=contexts, vocab=corpus.vocab
        )

    def histogram():
        return reading.histogram(results, next(features))

    def of_json():
        return feature_of_json(folder, next(features))

    texts = dict(
        duckdb.read_parquet(str(corpus.vocab)).project("token_id, text").fetchall()
    )
    tokens = large.shared().tokens

    def windows_of_table():
        rows = plain.sql(
            f"FROM examples WHERE run_id = '{key}' AND feature = {next(features)}"
        ).fetchall()
        return [
            [texts[token] for token in tokens[row[4], row[6] : row[5] + 17]] for row in rows
        ]

    assert len(top()) == 50
    found = [windows() for _ in range(3)]
    assert {len(one) for one in found} == {20}
    assert all(one[0].tokens[0].startswith(" word") for one in found)
    scaled = f"    JSON files (a {SHARE_OF_JSON}th, times {SHARE_OF_JSON})"
    hist = f"SELECT hist FROM histograms WHERE run_id = '{key}' AND feature = {{}}"  # noqa: S608 - ours
    return [
        timed("one run: top 50 features", top, target=15),
        timed("    one DuckDB table", lambda: plain.sql(TOP.format("features", key)).fetchall()),
        timed(scaled, lambda: top_of_json(folder), n=3, times=SHARE_OF_JSON),
        timed("one run: 20 decoded examples of a feature", windows, target=20),
        timed("    one DuckDB table, contexts in memory", windows_of_table),
        timed("    JSON files", lambda: of_json()["activations"]),
        timed("one run: histogram of a feature", histogram, target=5),
        timed("    one DuckDB table", lambda: plain.sql(hist.format(next(features))).fetchall()),
        timed("    JSON files", of_json),
    ]  # fmt: skip


def two_runs(workspace, plain) -> list[Row]:
    """Compare two runs of a workspace with two dozen."""
    a, b = list(cataloguing.catalog_rows(workspace._bench).folders)[:2]
    ours = COMPARE.format("features", a, b)
    theirs = COMPARE.format("features", f"{0:016x}", f"{1:016x}")
    return [
        timed("compare two runs", lambda: workspace.sql(ours).fetchall(), target=20),
        timed("    one DuckDB table", lambda: plain.sql(theirs).fetchall()),
    ]


def ten_thousand(workspace) -> list[Row]:
    """Open a session over ten thousand runs, and tell it of a new one."""
    bench = workspace._bench
    found = cataloguing.catalog_rows(bench)
    assert len(found.folders) >= 10_000
    one = TOP.format("features", next(iter(found.folders)))
    sessions = []

    def opened():
        return Session(
            lambda: cataloguing.catalog_rows(bench),
            lambda: status.cursor(bench),
            lambda since: cataloguing.catalog_rows(bench, since),
        )

    def first(query):
        sessions.append(opened())
        answer = sessions[-1].sql(query).fetchall()
        sessions.pop().close()
        return answer

    session, corpus = opened(), corpus_in(workspace)
    session.sql(one).fetchall()
    result = large.large_result(0, d_sae=512)
    seeds = iter(range(int(time.time()), 2**40))
    count = "SELECT count(*) FROM runs WHERE state = 'completed'"
    before = session.sql(count).fetchall()[0][0]
    rows = [
        timed("10,000 runs: first query of a session, all runs by state",
              lambda: first("SELECT state, count(*) FROM runs GROUP BY ALL"), n=3),
        timed("10,000 runs: first query of a session, top 50 of one by the view",
              lambda: first(one), target=1000, n=3),
        timed("10,000 runs: refresh with one new run", lambda: session.sql(count).fetchall(),
              target=50, n=5,
              prepare=lambda: record(claimed(workspace, corpus, next(seeds)), result)),
    ]  # fmt: skip
    assert session.sql(count).fetchall()[0][0] == before + 6
    again = "10,000 runs: top 50 of one by the view, again"
    return [*rows, timed(again, lambda: session.sql(one).fetchall(), n=5)]


def thousand(workspace, plain) -> list[Row]:
    """Ask a thousand runs at once, with the indexes and without."""
    bench = workspace._bench
    if indexing.is_due(bench) or not (bench.paths.derived / "index.json").exists():
        print(indexing.build(bench, now=True))  # noqa: T201 - it takes long
    aside = bench.paths.derived.with_name("derived.aside")
    ours = TOP_OF_ALL.format("features")
    word = large.text_of(777).strip()
    rows = [
        timed("1,000 runs: top 50", lambda: workspace.sql(ours).fetchall(), target=300, n=5),
        timed("1,000 runs: token search, the first 50",
              lambda: workspace.search(word, k=50).fetchall(), target=50),
        timed("1,000 runs: token search, everything",
              lambda: workspace.search(word).fetchall(), n=5),
    ]  # fmt: skip
    top, found = workspace.sql(ours).fetchall(), workspace.search(word).fetchall()
    assert found
    bench.paths.derived.rename(aside)
    try:
        rows.append(timed("    without the index: top 50",
                          lambda: workspace.sql(ours).fetchall(), n=3))  # fmt: skip
        assert [row[2] for row in workspace.sql(ours).fetchall()] == [row[2] for row in top]
    finally:
        aside.rename(bench.paths.derived)
    theirs = TOP_OF_ALL.format("features")
    rows.append(
        timed("    one DuckDB table: top 50", lambda: plain.sql(theirs).fetchall(), n=5)
    )
    return rows


def snapshots(workspace) -> list[Row]:
    """Write snapshots of a thousand runs while a reader opens and asks them all the time."""
    path, failures, reads, end = workspace._bench.paths.catalog, [], [], threading.Event()
    workspace.refresh_catalog()

    def read():
        while not end.is_set():
            try:
                with duckdb.connect(path, read_only=True) as reader:
                    reads.append(reader.sql("SELECT count(*) FROM runs").fetchall()[0][0])
            except duckdb.Error as error:
                failures.append(error)

    row = timed("1,000 runs: snapshot", workspace.refresh_catalog, target=400)
    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        workspace.refresh_catalog()
    end.set()
    reader.join()
    assert reads
    assert set(reads) == {1000}
    return [
        row,
        Row("  reads of 20 snapshots being replaced", None, len(reads), ""),
        Row("  of them failed", 0, len(failures), ""),
    ]


def test_figures_of_the_catalog(tiny, tmp_path):
    HOME.mkdir(parents=True, exist_ok=True)
    distinct = write_distinct(HOME / "distinct")
    plain = plain_table(HOME / "plain.duckdb", 1000)
    few = made_once(HOME / "24", tiny, n_runs=24, distinct=distinct)
    rows = recording(tiny, tmp_path)
    rows += [plain_record(tmp_path / "plain.duckdb"),
             write_json(tmp_path / "json", large.shared().tokens)]  # fmt: skip
    rows += one_run(few, plain, tmp_path / "json")
    rows += two_runs(few, plain)
    many = made_once(HOME / "1000", tiny, n_runs=1000, distinct=distinct)
    rows += thousand(many, plain)
    rows += snapshots(many)
    most = made_once(HOME / "10000", tiny, n_runs=10_000, distinct=distinct)
    rows += ten_thousand(most)
    table = [
        {"name": row.name.strip(), "target": row.target, "value": round(row.value, 2),
         "unit": row.unit} for row in rows
    ]  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"\nDuckDB {duckdb.__version__}, medians, milliseconds of wall and CPU time")  # noqa: T201 - the table
    for row in rows:
        print(row)  # noqa: T201 - the table
