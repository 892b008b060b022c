"""Documents become ids in their order, a batch ahead, padding told from text."""

import json
import threading

import numpy as np
import pytest
from tokenizers import Tokenizer

from extraction_kit.corpora import tokenising
from extraction_kit.corpora.chat import ChatTemplate
from extraction_kit.corpora.tokenising import Tokenising
from extraction_kit.errors import BadCorpus
from extraction_kit.trainings import describe_tokenizer
from extraction_kit.trainings.tokenizer_folder import load_tokenizer


def tokeniser_of(spec, folder):
    return Tokenising(spec, load_tokenizer(spec.path), ChatTemplate(folder))


def test_texts_and_ids_come_in_the_order_of_the_source(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 3)
    mixed = ["one", np.array([70, 71]), "two", "three", np.array([72]), "", "four"]
    batches = list(tokeniser_of(bpe, tmp_path).batches(iter(mixed)))
    assert [batch.first for batch in batches] == [0, 3, 6]
    tokenizer = Tokenizer.from_file(bpe.path)
    expected = [
        tokenizer.encode(item, add_special_tokens=False).ids
        if isinstance(item, str)
        else item.tolist()
        for item in mixed
    ]
    assert [ids.tolist() for batch in batches for ids in batch.ids] == expected


def test_the_next_batch_is_tokenised_while_the_last_one_is_used(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 1)
    second_done = threading.Event()
    job = tokeniser_of(bpe, tmp_path)
    real = job.encode

    def encode(first, batch):
        made = real(first, batch)
        if first == 1:
            second_done.set()
        return made

    monkeypatch.setattr(job, "encode", encode)
    batches = job.batches(iter(["a", "b", "c"]))
    next(batches)  # the first one is in use from here on
    assert second_done.wait(10)
    batches.close()


def test_an_error_beyond_what_is_used_is_never_raised(bpe, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 1)

    def source():
        yield "a"
        raise OSError("the network went away")

    batches = tokeniser_of(bpe, tmp_path).batches(source())
    assert next(batches).first == 0
    with pytest.raises(OSError, match="network"):
        next(batches)


def spec_with(tmp_path, bpe, **roles):
    folder = tmp_path / "other"
    folder.mkdir()
    tokenizer = Tokenizer.from_file(bpe.path)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return describe_tokenizer(folder)


def test_padding_that_may_be_text_is_refused_with_two_ways_out(bpe, tmp_path):
    spec = spec_with(tmp_path, bpe, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    eos = spec.eos_id
    job = tokeniser_of(spec, tmp_path)
    for row in ([70, eos, eos], [eos, eos, 70]):
        with pytest.raises(BadCorpus, match=r"row 5 .* 2 times.*attention_mask"):
            job.encode(5, [np.array(row)])
    for row in ([70, eos], [eos, 70], [70, eos, eos, 71]):
        made = job.encode(0, [np.array(row)])
        assert made.ids[0].tolist() == row
        assert made.n_padding == [0]


def test_a_row_of_padding_only_is_an_empty_document(bpe, tmp_path):
    spec = spec_with(tmp_path, bpe, pad_token="<s>")
    made = tokeniser_of(spec, tmp_path).encode(0, [np.array([spec.pad_id] * 4)])
    assert made.ids[0].tolist() == []
    assert made.n_padding == [4]


def test_batches_bound_what_is_held_in_memory(topics):
    batches = tokenising.batched(iter(topics * 1000))
    sizes = [(len(batch), sum(map(len, batch))) for batch in batches]
    assert max(n for n, _ in sizes) <= 256
    longest = max(map(len, topics))
    assert max(size for _, size in sizes) <= 2**20 + longest
