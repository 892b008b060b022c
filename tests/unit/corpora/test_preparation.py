"""A corpus holds exactly the tokens asked for, is made once, and never half."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from extraction_kit.config import ExtractionConfig
from extraction_kit.corpora import Corpus, prepare, progress_bar, tokenising
from extraction_kit.corpora.corpus import asked_for
from extraction_kit.errors import BadConfig, BadCorpus, WorkspaceUnusable


def naive_ids(spec, texts):
    """Tokenise one text after the other."""
    tokenizer = Tokenizer.from_file(spec.path)
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def contexts_of(corpus):
    batch = corpus.read(0, corpus.n_contexts)
    return [
        row[here].tolist() for row, here in zip(batch.tokens, batch.present, strict=True)
    ]


@pytest.fixture
def tokenised(monkeypatch):
    """How many texts were tokenised so far."""
    count = []
    real = tokenising.batched

    def batches(documents):
        for batch in real(documents):
            count.extend(batch)
            yield batch

    monkeypatch.setattr(tokenising, "batched", batches)
    return count


def test_packed_contexts_equal_the_naive_ones(make, bpe, topics):
    corpus = make(topics)
    stream = []
    for ids in naive_ids(bpe, topics):
        stream += ([bpe.eos_id] if stream else []) + ids
    chunks = [stream[at : at + 15] for at in range(0, len(stream), 15)]
    assert contexts_of(corpus) == [[bpe.bos_id, *chunk] for chunk in chunks]


def test_document_contexts_equal_the_naive_ones(make, bpe, topics):
    corpus = make(topics, packing="document")
    naive = [
        [bpe.bos_id, *ids[at : at + 15]]
        for ids in naive_ids(bpe, topics)
        for at in range(0, len(ids), 15)
    ]
    assert contexts_of(corpus) == naive


def test_a_tokenizer_without_bos_and_eos_adds_nothing(make, words):
    corpus = make(["the cat", "sat ."], tokenizer=words, context_size=3)
    assert contexts_of(corpus) == [[1, 2, 3], [4]]
    assert corpus.masks["prepend_bos"] is False
    assert corpus.n_tokens == corpus.n_tokens_total == 4


@pytest.mark.parametrize("n_tokens", [1, 14, 15, 16, 31, 1000])
@pytest.mark.parametrize("packing", ["pack", "document"])
def test_exactly_the_valid_tokens_asked_for_are_there(make, topics, n_tokens, packing):
    corpus = make(topics, n_tokens=n_tokens, packing=packing, ignore_positions=(3,))
    batch = corpus.read(0, corpus.n_contexts)
    assert corpus.n_tokens == n_tokens == batch.valid.sum()
    assert corpus.n_tokens_total == batch.present.sum()
    assert batch.valid[-1][batch.present[-1]][-1], "nothing follows the last token wanted"


def test_masks_count_neither_special_nor_ignored_tokens_nor_positions(make, bpe, topics):
    corpus = make(topics, ignore_tokens=(70, 71), ignore_positions=(5,))
    batch = corpus.read(0, corpus.n_contexts)
    excluded = np.isin(batch.tokens, [bpe.bos_id, bpe.eos_id, 70, 71])
    expected = batch.present & ~excluded
    expected[:, 5] = False
    assert (batch.valid == expected).all()
    assert corpus.n_tokens == expected.sum()
    everything = make(topics, exclude_special_tokens=False)
    assert everything.n_tokens == everything.n_tokens_total


def test_reading_stops_when_there_are_enough_tokens(make, topics):
    def texts():
        yield from topics * 100
        pytest.fail("read on")

    assert make(texts(), n_tokens=500).n_tokens == 500


def test_the_same_texts_from_any_source_are_the_same_corpus(make, topics, bpe, tmp_path):
    as_json, as_parquet = tmp_path / "t.jsonl", tmp_path / "t.parquet"
    as_json.write_text("\n\n".join(json.dumps({"id": 1, "body": text}) for text in topics))
    table = pa.table({"text": topics, "title": topics})
    pq.write_table(table, as_parquet, row_group_size=3)
    ids = naive_ids(bpe, topics)
    sources = [topics, tuple(topics), iter(topics), as_json, str(as_parquet), ids]
    corpora = [make(source) for source in sources]
    assert {corpus.digest for corpus in corpora} == {corpora[0].digest}
    assert corpora[3].source == "t.jsonl"


def test_arrays_and_npy_files_of_ids_are_read(make, tmp_path):
    ids = np.random.default_rng(0).integers(2, 600, (40, 15), dtype=np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    corpus = make(ids, packing="document")
    assert (corpus.read(0, 40).tokens[:, 1:] == ids).all()
    assert make(tmp_path / "ids.npy", packing="document").digest == corpus.digest


def test_a_second_preparation_tokenises_nothing(make, topics, tokenised, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(topics[0])
    ids = np.full((3, 5), 70)
    for source in (topics, path, ids, [[70, 71], [72]]):
        first = make(source)
        n = len(tokenised)
        assert make(source) == first
        assert len(tokenised) == n


def test_other_content_or_options_are_another_corpus(make, topics, tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(topics[0])
    first = make(path)
    path.write_text(topics[0].swapcase())
    os.utime(path, (1, 1))
    assert make(path).digest != first.digest
    options = [{}, {"context_size": 17}, {"prepend_bos": False}, {"ignore_tokens": (70,)},
               {"n_tokens": 50}, {"exclude_special_tokens": False}]  # fmt: skip
    digests = {make(topics, **option).digest for option in options}
    assert len(digests) == len(options)


def test_a_corpus_whose_folder_was_deleted_is_prepared_again(make, topics, tokenised):
    first = make(topics)
    for file in first.path.iterdir():
        file.unlink()
    first.path.rmdir()
    n = len(tokenised)
    assert make(topics) == first
    assert len(tokenised) == 2 * n


def test_a_corpus_that_is_asked_for_again_is_as_young_as_a_new_one(make, topics):
    first = make(topics)
    for source in (topics, first):
        os.utime(first.path, (1, 1))
        assert asked_for(first.path) == 1
        make(source)
        assert asked_for(first.path) > 1


def test_a_prepared_corpus_is_taken_as_it_is_if_it_fits(make, topics, words):
    corpus = make(topics, n_tokens=100)
    assert make(corpus, n_tokens=100) is corpus
    assert make(corpus) is corpus
    for options, said in [
        ({"context_size": 17}, "context_size=16.*17"),
        ({"n_tokens": 90}, "n_tokens=100.*90"),
        ({"packing": "document"}, "packing='pack'"),
        ({"tokenizer": words}, "tokenizer="),
    ]:
        with pytest.raises(BadCorpus, match=said):
            make(corpus, **options)


def test_too_few_tokens_names_both_numbers_and_leaves_nothing(make, paths, words):
    with pytest.raises(BadCorpus, match=r"has 4 valid tokens, n_tokens=5 .*n_tokens=4"):
        make(["the cat", "sat ."], tokenizer=words, n_tokens=5)
    assert list(paths.corpora.iterdir()) == []


@pytest.mark.parametrize(
    "source",
    [[], [""], ["", ""], iter([]), [[]]],
    ids=["none", "empty", "two empty", "iterator", "no ids"],
)
def test_an_empty_corpus_is_refused_and_leaves_nothing(make, paths, source):
    with pytest.raises(BadCorpus, match="is empty"):
        make(source)
    assert list(paths.corpora.iterdir()) == []


def test_an_error_in_the_middle_leaves_nothing(make, paths, topics):
    class Lost(BaseException):
        """What a cancelled cell raises."""

    def texts():
        yield from topics * 5
        raise Lost

    with pytest.raises(Lost):
        make(texts())
    assert list(paths.corpora.iterdir()) == []


def test_a_full_disk_says_so_and_leaves_nothing(make, paths, topics, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    other = make(["another corpus, which also wrote the vocabulary"])
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(WorkspaceUnusable, match="disk is full"):
        make(topics)
    assert list(paths.corpora.iterdir()) == [other.path]


def test_an_unwritable_workspace_says_so(make, paths, topics):
    paths.shared.mkdir(parents=True)
    paths.corpora.write_text("a file where the folder should be")
    with pytest.raises(WorkspaceUnusable, match="corpora"):
        make(topics)


@pytest.mark.parametrize("token", [-1, 600, 2**40])
def test_an_id_outside_the_vocabulary_names_its_row(make, token):
    with pytest.raises(BadCorpus, match=f"row 1 has the token id {token}: 0 to 599"):
        make([[70, 71], [72, token]])


def test_options_that_cannot_have_an_effect_are_refused(make, topics, words, bpe, paths):
    with pytest.raises(BadCorpus, match="no BOS token"):
        make(topics, tokenizer=words, prepend_bos=True)
    with pytest.raises(BadConfig, match="ignore_tokens has 600: 0 to 599"):
        make(topics, ignore_tokens=(600,))
    with pytest.raises(BadConfig, match="ignore_positions has 16: 0 to 15"):
        make(topics, ignore_positions=(16,))
    with pytest.raises(BadConfig, match=r"context_size=128.*at most 64"):
        prepare(
            topics, tokenizer=bpe, config=ExtractionConfig(), paths=paths, max_context=64
        )


def test_progress_is_told_in_valid_tokens(make, topics):
    told = []
    make(topics, n_tokens=400, progress=lambda *facts: told.append(facts))
    assert told[-1] == (400, 400, "tokenising")


def test_a_bar_is_drawn_only_for_what_takes_long(make, topics, capsys):
    with progress_bar("corpus") as progress:
        make(topics, progress=progress)
    assert capsys.readouterr().err.strip() == ""


def test_a_bar_in_a_notebook_leaves_no_red_stripe_and_one_in_a_shell_no_line_in_a_pipe(
    monkeypatch, capsys
):
    monkeypatch.setattr("extraction_kit.corpora.progress._DELAY_S", 0)
    with progress_bar("corpus") as progress:
        progress(1, 2, "tokenising")
    shown = capsys.readouterr()
    assert "corpus" in shown.err
    assert shown.out == ""

    kernel = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", kernel)
    with progress_bar("corpus") as progress:
        progress(1, 2, "tokenising")
    assert "corpus" in kernel.getvalue()
    assert capsys.readouterr().err == ""


def test_nothing_is_kept_in_memory_beyond_a_batch(topics):
    batches = tokenising.batched(iter(topics * 1000))
    sizes = [(len(batch), sum(map(len, batch))) for batch in batches]
    assert max(n for n, _ in sizes) <= 256
    longest = max(map(len, topics))
    assert max(size for _, size in sizes) <= 2**20 + longest


def test_the_workspace_can_be_moved(make, topics, paths, tmp_path):
    corpus = make(topics)
    moved = paths.shared.rename(tmp_path / "moved")
    again = Corpus.load(moved / "corpora" / corpus.digest)
    assert again.vocab == moved / "vocab" / corpus.vocab.name
    assert again.vocab.exists()
    assert contexts_of(again)
    assert Path(again.path).is_relative_to(moved)
