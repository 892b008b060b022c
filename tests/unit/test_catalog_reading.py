"""Questions about one run go to its own files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from extraction_kit.catalog import sorted_file
from extraction_kit.catalog.publish import publish, stage
from extraction_kit.catalog.reading import (
    example_windows,
    examples,
    features,
    histogram,
    logits,
    similar,
    top_tokens,
)
from extraction_kit.errors import BadQuery, ResultsDamaged, UnknownFeature
from tests.unit.synthetic import DEAD, TOP_K, WINDOW, synthetic


@pytest.fixture(scope="module")
def made():
    return synthetic()


@pytest.fixture
def run(made, tmp_path):
    final = tmp_path / "results" / "run_id=r"
    stage(tmp_path / "results" / ".staging" / "r-a1", made.result, made.manifest)
    publish(tmp_path / "results" / ".staging" / "r-a1", final)
    return final


@pytest.fixture
def files(made, tmp_path):
    contexts, vocab = made.write_corpus(tmp_path)
    return {"contexts": contexts, "vocab": vocab}


def test_features_come_in_order_with_every_column(run):
    found = features(run)
    assert [row[0] for row in found.fetchall()] == list(range(16))
    assert found.filter("NOT dead").aggregate("count(*)").fetchall() == [(15,)]


def test_features_held_in_memory_are_those_that_duckdb_reads(run, monkeypatch):
    held = features(run)
    sorted_file._opened.cache_clear()
    monkeypatch.setattr(sorted_file, "KEPT_BYTES", 0)  # as of an SAE of 131,072 features
    read = features(run)
    sorted_file._opened.cache_clear()
    assert "PARQUET" in read.explain()
    assert "PARQUET" not in held.explain()
    assert (held.columns, held.types) == (read.columns, read.types)
    assert held.order("max_act DESC").fetchall() == read.order("max_act DESC").fetchall()
    assert len(held.fetchall()) == 16


def test_examples_of_a_feature_are_its_first_by_rank(run):
    rows = examples(run, 2, k=3).project("feature, rank").fetchall()
    assert rows == [(2, 0), (2, 1), (2, 2)]
    assert len(examples(run, np.int64(2)).fetchall()) == TOP_K


def test_a_histogram_is_the_array(run, made):
    assert histogram(run, 5).tolist() == made.result.histograms[5].tolist()


def test_windows_hold_the_tokens_and_activations_around_the_peak(run, made, files):
    windows = example_windows(run, 2, **files, k=TOP_K)
    assert [window.rank for window in windows] == list(range(TOP_K))
    for window in windows:
        stop = window.pos + WINDOW[1] + 1
        tokens = made.tokens[window.context, window.start : stop]
        assert window.start == max(0, window.pos - WINDOW[0])
        assert window.token_ids == tokens.tolist()
        assert window.tokens == [f"tok{token}" for token in tokens]
        assert window.acts == made.acts[window.context, window.start : stop, 2].tolist()
        assert window.acts[window.pos - window.start] == window.act


def test_windows_are_cut_at_both_edges_of_the_context(run, made, files):
    found = [w for f in range(16) for w in example_windows(run, f, **files)]
    width = sum(WINDOW) + 1
    left = [w for w in found if w.pos < WINDOW[0]]
    right = [w for w in found if w.pos >= made.tokens.shape[1] - WINDOW[1]]
    assert left
    assert right
    assert all(len(w.tokens) < width for w in left + right)


def test_a_dead_feature_has_no_examples(run, files):
    assert example_windows(run, DEAD, **files) == []


@pytest.mark.parametrize("feature", [-1, 16, 1.5, "3", True])
def test_a_feature_outside_the_sae_is_refused(run, files, feature):
    with pytest.raises(UnknownFeature, match="from 0 to 15"):
        histogram(run, feature)
    with pytest.raises(UnknownFeature, match="from 0 to 15"):
        example_windows(run, feature, **files)


def test_top_tokens_come_in_order_with_their_texts(made, tmp_path, files):
    rows = {
        "feature": np.int32([2, 2, 2, 5]),
        "rank": np.int16([0, 1, 2, 0]),
        "token": np.int32([7, 49, 3, 7]),
        "n_active": np.int64([9, 4, 4, 1]),
        "sum_act": np.float64([18, 4, 2, 3]),
        "mean_act": np.float64([2, 1, 0.5, 3]),
        "max_act": np.float32([5, 1, 1, 3]),
    }
    folder = tmp_path / "results" / "run_id=t"
    result = replace(made.result, tables={"tokens": rows})
    stage(tmp_path / "staging", result, made.manifest)
    publish(tmp_path / "staging", folder)
    found = top_tokens(folder, 2, vocab=files["vocab"])
    assert found.columns == [
        "feature", "rank", "token", "text", "n_active", "sum_act", "mean_act", "max_act",
    ]  # fmt: skip
    assert found.fetchall() == [
        (2, 0, 7, "tok7", 9, 18.0, 2.0, 5.0),
        (2, 1, 49, "tok49", 4, 4.0, 1.0, 1.0),
        (2, 2, 3, "tok3", 4, 2.0, 0.5, 1.0),
    ]
    first = top_tokens(folder, 2, vocab=files["vocab"], k=1)
    assert first.project("text").fetchall() == [("tok7",)]
    assert top_tokens(folder, vocab=files["vocab"]).fetchall()[3][:4] == (5, 0, 7, "tok7")
    assert top_tokens(folder, DEAD, vocab=files["vocab"]).fetchall() == []
    with pytest.raises(UnknownFeature, match="from 0 to 15"):
        top_tokens(folder, 16, vocab=files["vocab"])


def test_an_unknown_group_is_refused(run):
    with pytest.raises(BadQuery, match=r"one of 'top', 'band_1', .*'silent' is allowed"):
        examples(run, 1, group="bottom'; DROP")


def test_a_missing_or_torn_file_is_named(run, files):
    (run / "examples.parquet").write_bytes(b"torn")
    with pytest.raises(ResultsDamaged, match=r"examples\.parquet"):
        example_windows(run, 1, **files)
    (run / "features.parquet").unlink()
    with pytest.raises(ResultsDamaged, match=r"features\.parquet"):
        features(run)


def test_the_wrong_corpus_is_noticed(run, tmp_path, files):
    small = synthetic(n_contexts=1)
    contexts, _ = small.write_corpus(tmp_path / "other")
    with pytest.raises(ResultsDamaged, match="not the corpus"):
        example_windows(run, 1, contexts=contexts, vocab=files["vocab"])


LOGITS = {
    "feature": np.repeat(np.arange(16, dtype=np.int32), 4),
    "sign": np.tile(np.repeat(np.arange(2, dtype=np.int8), 2), 16),
    "rank": np.tile(np.arange(2, dtype=np.int16), 32),
    "token": np.tile(np.array([7, 49, 3, 50], dtype=np.int32), 16),
    "value": np.tile(np.array([2.5, 1, -4, -3], dtype=np.float32), 16),
}
NEIGHBOURS = {
    "feature": np.repeat(np.arange(16, dtype=np.int32), 3),
    "kind": np.tile(np.array([0, 0, 1], dtype=np.int8), 16),
    "rank": np.tile(np.array([0, 1, 0], dtype=np.int16), 16),
    "other": np.tile(np.array([4, 9, 11], dtype=np.int32), 16),
    "value": np.tile(np.array([0.5, 0.25, 0.125], dtype=np.float32), 16),
    "n_both": np.tile(np.array([-1, -1, 30]), 16),
}


@pytest.fixture
def with_tables(made, tmp_path):
    folder = tmp_path / "with-tables"
    tables = {"logits": LOGITS, "neighbours": NEIGHBOURS}
    stage(folder, replace(made.result, tables=tables), made.manifest)
    return folder


def test_logits_come_with_token_texts_the_top_ones_first(with_tables, files):
    found = logits(with_tables, 2, vocab=files["vocab"])
    assert found.columns == ["feature", "sign", "rank", "token", "text", "value"]
    assert found.fetchall() == [
        (2, "top", 0, 7, "tok7", 2.5),
        (2, "top", 1, 49, "tok49", 1),
        (2, "bottom", 0, 3, "tok3", -4),
        (2, "bottom", 1, 50, None, -3),  # the tokenizer skips this id
    ]
    bottom = logits(with_tables, np.int64(2), vocab=files["vocab"], k=1, sign="bottom")
    assert bottom.fetchall() == [(2, "bottom", 0, 3, "tok3", -4)]
    assert len(logits(with_tables, vocab=files["vocab"]).fetchall()) == 64


def test_similar_features_are_of_one_kind(with_tables):
    found = similar(with_tables, 2)
    assert found.columns == ["feature", "kind", "rank", "other", "value", "n_both"]
    assert found.fetchall() == [
        (2, "decoder", 0, 4, 0.5, None),
        (2, "decoder", 1, 9, 0.25, None),
    ]
    assert similar(with_tables, 2, k=1).fetchall() == found.fetchall()[:1]
    both = similar(with_tables, 2, kind="coactivation").fetchall()
    assert both == [(2, "coactivation", 0, 11, 0.125, 30)]
    assert len(similar(with_tables).fetchall()) == 32


def test_what_is_not_there_is_refused_by_name(with_tables, files):
    with pytest.raises(UnknownFeature):
        logits(with_tables, 16, vocab=files["vocab"])
    with pytest.raises(UnknownFeature):
        similar(with_tables, -1)
    with pytest.raises(BadQuery, match="'top', 'bottom' is allowed"):
        logits(with_tables, 2, vocab=files["vocab"], sign="positive")
    with pytest.raises(BadQuery, match="'decoder', 'coactivation' is allowed"):
        similar(with_tables, 2, kind="encoder")
    (with_tables / "logits.parquet").unlink()
    with pytest.raises(ResultsDamaged):
        logits(with_tables, 2, vocab=files["vocab"])


def test_why_a_run_has_none_is_said(made, with_tables, files, tmp_path):
    said = {
        "logits": {"absent_because": "it is an encoder"},
        "neighbours": {
            "decoder": {"absent_because": "n_neighbours=0"},
            "coactivation": {"absent_because": "n_coactive=0"},
        },
        "tokens": {"absent_because": "n_top_tokens=0"},
    }
    without = replace(made.result, provenance=said)
    stage(tmp_path / "without", without, made.manifest)
    with pytest.raises(BadQuery, match="this run has no logits: it is an encoder"):
        logits(tmp_path / "without", 2, vocab=files["vocab"])
    with pytest.raises(BadQuery, match="has no decoder neighbours: n_neighbours=0"):
        similar(tmp_path / "without", 2)
    with pytest.raises(BadQuery, match="has no coactivation neighbours: n_coactive=0"):
        similar(tmp_path / "without", 2, kind="coactivation")
    with pytest.raises(BadQuery, match="has no tokens: n_top_tokens=0"):
        top_tokens(tmp_path / "without", 2, vocab=files["vocab"])
    manifest = json.loads((with_tables / "manifest.json").read_text())
    (with_tables / "manifest.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(BadQuery, match="knew no neighbours: launch it again"):
        similar(with_tables, 2)
