"""A prepared corpus is read by number, quickly and without surprises."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadCorpus


@pytest.fixture
def large(make):
    """2,500 contexts, so three row groups, as ids."""
    ids = np.random.default_rng(1).integers(2, 600, (2500, 8))
    return ids, make(ids, packing="document", context_size=9)


@pytest.mark.parametrize(
    ("start", "n"),
    [(0, 1), (5, 7), (1020, 10), (1000, 1100), (2047, 2), (2499, 1), (0, 2500)],
)
def test_any_range_of_contexts_can_be_read(large, start, n):
    ids, corpus = large
    batch = corpus.read(start, n)
    assert (batch.tokens[:, 1:] == ids[start : start + n]).all()
    assert batch.tokens.dtype == np.int32
    assert len(batch) == n
    assert batch.present.all()


def test_reading_past_the_end_gives_what_is_there(large):
    ids, corpus = large
    assert (corpus.read(2490, 100).tokens[:, 1:] == ids[2490:]).all()
    for start, n in ((2500, 1), (-1, 1), (0, 0)):
        with pytest.raises(IndexError, match="0 to 2499"):
            corpus.read(start, n)


def test_reading_on_reads_each_row_group_once(large, monkeypatch):
    monkeypatch.setattr("extraction_kit.corpora.corpus.KEPT_TOKENS", 0)  # two groups
    _, corpus = large
    groups = []
    real = Corpus._read_group
    monkeypatch.setattr(
        Corpus,
        "_read_group",
        lambda self, group: (groups.append(group), real(self, group))[1],
    )
    for start in range(0, 2500, 7):
        corpus.read(start, 7)
    assert groups == [0, 1, 2]
    for _ in range(3):
        corpus.read(1020, 10)
    assert groups == [0, 1, 2, 0, 1], "a range across two groups reads neither twice"


def test_what_is_read_may_be_changed(large):
    ids, corpus = large
    corpus.read(0, 5).tokens[:] = 0
    assert (corpus.read(0, 5).tokens[:, 1:] == ids[:5]).all()


def test_the_file_is_as_documented(large):
    ids, corpus = large
    file = pq.ParquetFile(corpus.path / "contexts.parquet")
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).num_rows == 1024
    table = file.read()
    assert table["context"].to_pylist() == list(range(2500))
    assert table["doc"].to_pylist() == list(range(2500))
    tokens = np.frombuffer(table["tokens"][7].as_py(), "<u2")
    assert tokens.tolist() == [0, *ids[7]]


def test_padding_is_neither_present_nor_valid(make):
    corpus = make([[70, 71], [72]], packing="document", context_size=4)
    batch = corpus.read(0, 2)
    assert batch.tokens.tolist() == [[0, 70, 71, 1], [0, 72, 1, 1]]
    assert batch.present.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert batch.valid.tolist() == [[False, True, True, False], [False, True, False, False]]
    assert corpus.pad_id == 1


def test_a_corpus_is_loaded_from_its_folder(large):
    _, corpus = large
    assert Corpus.load(corpus.path) == corpus


def test_a_damaged_corpus_says_what_to_delete(large, tmp_path):
    _, corpus = large
    with pytest.raises(BadCorpus, match=r"there is no .*corpus\.json"):
        Corpus.load(tmp_path)
    spec = json.loads((corpus.path / "corpus.json").read_text())
    for change, said in [
        ({"format": 99}, "another format than 1"),
        ({"n_contexts": 3}, "2500 contexts instead of 3"),
        ({"colour": 1}, "colour"),
    ]:
        (corpus.path / "corpus.json").write_text(json.dumps(spec | change))
        with pytest.raises(BadCorpus, match=f"{said}.*delete the folder"):
            Corpus.load(corpus.path)
    (corpus.path / "corpus.json").write_text(json.dumps(spec))
    contexts = corpus.path / "contexts.parquet"
    contexts.write_bytes(contexts.read_bytes()[:100])
    with pytest.raises(BadCorpus, match="damaged"):
        Corpus.load(corpus.path)
