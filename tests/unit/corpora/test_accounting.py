"""Every token of a source is accounted for, whatever becomes of it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, prepare
from extraction_kit.paths import Paths
from extraction_kit.testing import _save_tokenizer, _texts, _words
from extraction_kit.trainings import describe_tokenizer

PAD, BOS, EOS, WORD = 0, 1, 2, 10


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A word-level tokenizer with PAD, BOS, EOS and UNK."""
    folder = tmp_path_factory.mktemp("words")
    _save_tokenizer(folder, _words(60))
    return describe_tokenizer(folder)


@pytest.fixture
def corpus_of(spec, paths):
    def make(source, **options):
        config = ExtractionConfig(**({"context_size": 8} | options))
        return prepare(source, tokenizer=spec, config=config, paths=paths)

    return make


def unpadded(row):
    """Return a row without the padding around it."""
    there = [place for place, token in enumerate(row) if token != PAD]
    return row[there[0] : there[-1] + 1] if there else []


def naive_items(row, last, packing):
    """Return (token, fate or None) of one document, and its last token."""
    ids = unpadded(row)
    items = [(PAD, "padding")] * (len(row) - len(ids))
    if ids[:1] == [BOS]:
        items.append((BOS, "document_bos"))
        ids = ids[1:]
    if packing == "pack" and ids and last not in (None, EOS):
        items.append((EOS, "eos"))
    n_kept = 7 if packing == "truncate" else len(ids)
    items += [(token, None) for token in ids[:n_kept]]
    items += [(token, "truncated") for token in ids[n_kept:]]
    return items, (ids[-1] if ids else last)


def fate_of(token):
    """Return what the statistics do with a token of a context."""
    if token in (PAD, BOS, EOS):
        return "special_tokens"
    return "ignore_tokens" if token in (8, 9) else "counted"


def naive(rows, *, packing, n_tokens):
    """Follow every token one at a time: their fates, and the contexts of 7 and a BOS."""
    fates, contexts, last = [], [], None
    for row in rows:
        if fates.count("counted") == n_tokens:
            break
        items, last = naive_items(row, last, packing)
        if packing != "pack":
            contexts.append([])
        for token, fixed in items:
            stands = fixed in (None, "eos")
            if stands and fates.count("counted") == n_tokens:
                fates.append("after_n_tokens")
                continue
            if stands:
                if not contexts or len(contexts[-1]) == 7:
                    contexts.append([])
                contexts[-1].append(fixed or token)
            fates.append(fixed or fate_of(token))
    return fates, [context for context in contexts if context]


ROW = st.lists(st.sampled_from([PAD, BOS, EOS, 7, 8, 9, 11, 12]), max_size=20)


@pytest.mark.parametrize("packing", ["pack", "document", "truncate"])
@given(rows=st.lists(ROW, max_size=6), share=st.sampled_from([0.3, 0.7, 1.0, None]))
def test_each_token_is_counted_once_as_a_naive_walk_finds(
    tmp_path_factory, spec, packing, rows, share
):
    n_all = naive(rows, packing=packing, n_tokens=None)[0].count("counted")
    if not n_all:
        return
    n_tokens = None if share is None else max(1, int(share * n_all))
    fates, contexts = naive(rows, packing=packing, n_tokens=n_tokens)
    corpus = prepare(
        rows,
        tokenizer=spec,
        config=ExtractionConfig(
            context_size=8, packing=packing, ignore_tokens=(8, 9), n_tokens=n_tokens
        ),
        paths=Paths.of(tmp_path_factory.mktemp("w"), Settings()),
    )
    account = corpus.accounting
    for reason in ("padding", "document_bos", "truncated", "after_n_tokens"):
        assert account["discarded"][reason] == fates.count(reason), reason
    assert account["counted"] == corpus.n_tokens == fates.count("counted")
    assert account["added"]["bos"] == len(contexts) == corpus.n_contexts
    assert account["added"]["eos"] == fates.count("eos")
    n_present = sum(map(len, contexts)) + len(contexts)
    assert account["in_contexts"] == n_present == corpus.n_tokens_total
    assert account["read"] + sum(account["added"].values()) == account["in_contexts"] + sum(
        account["discarded"].values()
    )
    assert account["in_contexts"] == account["counted"] + sum(account["masked"].values())
    assert account["masked"]["ignore_tokens"] == fates.count("ignore_tokens")


def test_masked_tokens_have_one_reason_each(corpus_of):
    rows = [[7, 8, 9, 11, EOS, 12]]
    corpus = corpus_of(rows, ignore_tokens=(8,), ignore_positions=(0, 2, 4))
    # positions: BOS 7 8 9 11 EOS 12; 8 and BOS stand at ignored positions as well
    assert corpus.accounting["masked"] == {
        "special_tokens": 2,
        "ignore_tokens": 1,
        "ignore_positions": 1,
    }
    assert corpus.n_tokens == 3


def test_it_does_not_show_how_far_the_source_was_read_ahead(corpus_of):
    rows = [[WORD] * 3] * 1000
    account = corpus_of(rows, n_tokens=4).accounting
    assert account["documents"] == 2
    assert account["read"] == 6
    assert account["discarded"]["after_n_tokens"] == 2


def test_the_account_is_kept_with_the_corpus_and_found_again(corpus_of):
    rows = [[7, 8], [], [9] * 9]
    made = corpus_of(rows, packing="truncate")
    assert made.accounting["empty_documents"] == 1
    assert made.accounting["discarded"]["truncated"] == 2
    assert Corpus.load(made.path).accounting == made.accounting
    assert corpus_of(rows, packing="truncate").accounting == made.accounting


def test_sources_with_the_same_tokens_keep_their_own_accounts(corpus_of):
    short = corpus_of([[9] * 7], packing="truncate")
    for _ in range(2):  # made, then found
        long = corpus_of([[9] * 30], packing="truncate")
        assert long.digest == short.digest
        assert long.accounting["discarded"]["truncated"] == 23
    assert short.accounting["discarded"]["truncated"] == 0


def test_a_corpus_prepared_before_accounts_were_kept_is_still_read(corpus_of):
    rows = [[7, 8, 9]]
    corpus = corpus_of(rows)
    spec = json.loads((corpus.path / "corpus.json").read_text())
    del spec["accounting"]
    (corpus.path / "corpus.json").write_text(json.dumps(spec))
    assert Corpus.load(corpus.path).accounting is None
    assert Corpus.load(corpus.path).n_tokens == 3


DIGESTS = {  # made by the first release of this format
    "f665278a4d82715a78e4187f3729351a16b576e973411b1afacf86e5f6505c9a": {},
    "3c2b10ea07a58ceabb5f7f98a1850d766de732e8f101d68244fc44aecbab77ae": {
        "packing": "document"
    },
    "fdaba261e1fdaaf17f019cc0119b4cebd8a92a6371634948d9fb79e6a6e1fb74": {
        "n_tokens": 300,
        "ignore_positions": (3,),
        "ignore_tokens": (9,),
    },
    "a2d49f57a1f7b043aa3614d3d758598a5d0155ad5a76314324ebdd5a9978964b": {
        "prepend_bos": False,
        "exclude_special_tokens": False,
        "packing": "document",
        "n_tokens": 77,
    },
}


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_corpus_that_exists_keeps_its_digest(corpus_of, digest):
    corpus = corpus_of(_texts(_words(60), 40, 0), context_size=16, **DIGESTS[digest])
    assert corpus.digest == digest


def test_an_array_that_exists_keeps_its_digest(corpus_of):
    digest = "5a658520a66312e57e87b52b0c3832802efee4fa1b79f1039a910e8ca69105c2"
    assert corpus_of(np.arange(4, 64).reshape(6, 10), context_size=16).digest == digest


@pytest.mark.parametrize("packing", ["pack", "document", "truncate"])
def test_padding_on_any_side_gives_the_same_corpus(corpus_of, packing):
    rows = [[7, 8, 9], [11, 12, 9, 9, 7], [8]]
    bare = corpus_of(rows, packing=packing)
    left = np.array([[PAD] * (6 - len(row)) + row for row in rows])
    right = np.array([row + [PAD] * (6 - len(row)) for row in rows])
    for padded in (left, right):
        corpus = corpus_of(padded, packing=packing)
        assert corpus.digest == bare.digest
        assert corpus.accounting["discarded"]["padding"] == 18 - 9


def test_truncate_keeps_the_first_context_of_each_document(corpus_of):
    corpus = corpus_of([[7] * 10, [8] * 3], packing="truncate")
    batch = corpus.read(0, 2)
    assert batch.tokens.tolist() == [[BOS] + [7] * 7, [BOS, 8, 8, 8] + [PAD] * 4]
    assert corpus.n_contexts == 2
