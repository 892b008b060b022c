"""The questions with a name say the same as Python does, also of large and strange corpora."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE

from extraction_kit.catalog.comparing import differences
from extraction_kit.catalog.macros import MACROS
from extraction_kit.catalog.publish import publish, stage
from extraction_kit.catalog.reading import example_windows
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.session import Session
from extraction_kit.catalog.tables import CATALOG
from extraction_kit.config import Settings
from extraction_kit.corpora.vocabulary import byte_alphabet, write_vocabulary
from extraction_kit.paths import Paths
from extraction_kit.results import Examples
from tests.unit.published import made_with, write_corpus
from tests.unit.synthetic import DEAD, TOP_K, WINDOW, synthetic

ONE, OTHER = "00000000000000aa", "00000000000000bb"


def session_of(folders, contexts, vocab):
    rows = CatalogRows(
        runs=[
            {
                "run_id": run_id,
                "corpus_digest": contexts.parent.name,
                "tokenizer_digest": vocab.stem,
                "config": json.dumps({"window": list(WINDOW)}),
            }
            for run_id in folders
        ],
        folders=folders,
        corpora={contexts.parent.name: contexts},
        vocabs={vocab.stem: vocab},
    )
    return Session(lambda: rows, lambda: 1)


def published(home, run_id, made):
    final = home / "results" / f"run_id={run_id}"
    stage(home / "results" / ".staging" / run_id, made.result, made.manifest)
    assert publish(home / "results" / ".staging" / run_id, final)
    return final


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    home = tmp_path_factory.mktemp("macros")
    folders = {
        ONE: published(home, ONE, made_with(0)),
        OTHER: published(home, OTHER, made_with(1)),
    }
    contexts, vocab = made_with(0).write_corpus(home)
    return session_of(folders, contexts, vocab), folders, contexts, vocab


def test_top_features_are_those_with_the_largest_activations(two):
    peaks = made_with(0).acts.max(axis=(0, 1))
    wanted = sorted(range(16), key=lambda feature: (-peaks[feature], feature))
    found = two[0].sql(f"FROM top_features('{ONE}', 5)").project("run_id, feature, max_act")
    assert found.fetchall() == [(ONE, f, peaks[f]) for f in wanted[:5]]
    assert len(two[0].sql("FROM top_features(?, ?)", [ONE, 3]).fetchall()) == 3
    plan = two[0].sql(f"EXPLAIN ANALYZE FROM top_features('{ONE}', 5)").fetchall()[0][1]
    assert "Scanning Files: 1/2" in plan


def test_examples_come_with_the_text_that_python_shows(two):
    session, folders, contexts, vocab = two
    n_cut = 0
    for feature in range(16):
        rows = session.sql(f"FROM examples_of('{ONE}', {feature})")
        rows = rows.project("feature, rank, pos, act, text, act_off, act_val").fetchall()
        windows = example_windows(folders[ONE], feature, contexts=contexts, vocab=vocab)
        assert len(rows) == len(windows) == (0 if feature == DEAD else TOP_K)
        for (number, rank, pos, act, text, offsets, values), window in zip(
            rows, windows, strict=True
        ):
            tokens = list(window.tokens)
            tokens[pos - window.start] = f"«{tokens[pos - window.start]}»"
            assert (number, rank, act) == (feature, window.rank, window.act)
            assert text == "".join(tokens)
            acts = dict(zip(offsets, values, strict=True))
            assert window.acts == [acts.get(i, 0) for i in range(len(tokens))]
            n_cut += len(tokens) < sum(WINDOW) + 1
    assert n_cut > 0  # windows at the edge of their context were among them


def test_two_runs_are_compared_feature_by_feature(two):
    rows = two[0].sql(f"FROM compare('{ONE}', '{OTHER}')").df()
    a, b = (made_with(seed).result.features["n_active"] for seed in (0, 1))
    n_tokens = made_with(0).result.summary["n_tokens"]
    rows = rows.sort_values("feature")
    assert rows.density_a.tolist() == (a / n_tokens).tolist()
    assert rows.density_b.tolist() == (b / n_tokens).tolist()
    alive = a > 0
    assert rows.log2_ratio[alive].tolist() == pytest.approx(np.log2(b[alive] / a[alive]))
    assert rows.log2_ratio[~alive].isna().all()
    found = two[0].sql(f"FROM compare('{ONE}', '{OTHER}')").project("log2_ratio")
    ratios = [abs(ratio) for (ratio,) in found.fetchall() if ratio is not None]
    assert ratios == sorted(ratios, reverse=True)


def test_the_largest_differences_leave_out_pairs_that_cannot_be_relied_on(two):
    pairs = two[0].sql(
        """SELECT * FROM (VALUES
            (0, 5, 0.9, true, 0.1, 0.1, false, false, 0.0),
            (1, 6, 0.9, true, 0.1, 0.4, false, false, 2.0),
            (2, 7, 0.1, false, 0.1, 0.9, false, false, 3.2),
            (3, 8, 0.8, true, 0.0, 0.2, true, false, NULL),
            (4, 9, 0.7, true, 0.2, 0.1, false, false, -1.0),
            (5, 2, 0.7, true, 0.0, 0.3, true, false, NULL)
        ) AS t(feature_a, feature_b, cosine, mutual, density_a, density_b, dead_a, dead_b,
               log2_ratio)"""
    )
    found = differences(pairs, 2)
    assert (found.n, found.n_paired, found.n_doubled) == (6, 5, 2)
    assert (found.n_dead_a, found.n_dead_b) == (2, 0)
    assert [row["feature_a"] for row in found.rows] == [5, 3]  # the densest of the dead
    assert [row["feature_a"] for row in differences(pairs, 9).rows] == [5, 3, 1, 4]


def test_similar_features_come_with_what_they_are(two):
    rows = two[0].sql(f"FROM similar_to('{ONE}', 2)").fetchall()
    peaks = made_with(0).acts.max(axis=(0, 1))
    assert [row[:7] for row in rows] == [
        (ONE, 2, "decoder", 0, 4, 0.5, None),
        (ONE, 2, "coactivation", 0, 9, 0.25, 30),
    ]
    assert [row[8] for row in rows] == [peaks[4], peaks[9]]


def test_a_macro_says_what_it_is_and_no_parameter_is_called_like_a_column(two):
    said = two[0].sql(
        "SELECT function_name, parameters, comment FROM duckdb_functions() "
        "WHERE function_type = 'table_macro' AND schema_name = 'main' AND NOT internal"
    )
    found = {name: (parameters, comment) for name, parameters, comment in said.fetchall()}
    columns = {column.name for table in CATALOG for column in table.columns}
    for macro in MACROS:
        names = [name for name, _ in macro.parameters]
        assert found[macro.name] == (names, macro.comment)
        assert not columns & set(names)


def test_an_unknown_run_has_no_rows(two):
    for call in (
        "top_features('none', 3)",
        "examples_of('none', 3)",
        "similar_to('none', 1)",
    ):
        assert two[0].sql(f"FROM {call}").fetchall() == []


# --- corpora that are large or strange --------------------------------------------------------


def example_at(context, pos, token, *, start):
    """One example of feature 1, active on its peak only."""
    return Examples(
        feature=np.array([1], np.int32), group=np.zeros(1, np.int8),
        rank=np.zeros(1, np.int16), context=np.array([context], np.int64),
        pos=np.array([pos], np.int32), start=np.array([start], np.int32),
        act=np.array([2.5], np.float32), peak_token=np.array([token], np.int32),
        offsets=np.array([0, 1]), act_off=np.array([pos - start], np.int32),
        act_val=np.array([2.5], np.float32),
    )  # fmt: skip


def alphabet_tokenizer(extra=()):
    """A byte-level tokenizer whose tokens are the 256 bytes, and `extra`."""
    pieces = {piece: i for i, piece in enumerate(byte_alphabet())} | dict(extra)
    tokenizer = Tokenizer(BPE(pieces, []))
    tokenizer.decoder = ByteLevel()
    return tokenizer, {byte: i for i, byte in enumerate(byte_alphabet().values())}


def corpus_of(home, tokens, vocab_size, tokenizer):
    paths = Paths.of(home, Settings())
    vocab = paths.vocab / "v.parquet"
    write_vocabulary(vocab, tokenizer)
    facts = {"context_size": tokens.shape[1], "tokenizer_digest": "v", "masks": {}}
    return write_corpus(paths, vocab, tokens, vocab_size=vocab_size, **facts)


def read_both(home, corpus, examples):
    """Return the only window, and the text that SQL gives for it."""
    made = synthetic(d_sae=4)
    result = replace(made.result, examples=examples, held_out=np.zeros(1, bool))
    folder = published(home, ONE, replace(made, result=result))
    contexts = corpus.path / "contexts.parquet"
    (window,) = example_windows(folder, 1, contexts=contexts, vocab=corpus.vocab)
    session = session_of({ONE: folder}, contexts, corpus.vocab)
    found = session.sql(f"FROM examples_of('{ONE}', 1)").project("context, pos, text")
    return window, found.fetchall()


def test_70_000_contexts_are_told_apart(tmp_path):
    tokenizer, ids = alphabet_tokenizer()
    tokens = np.full((70_000, 4), ids[ord("x")])
    tokens[69_999] = [ids[byte] for byte in b"last"]
    tokens[69_999 - 2**16] = [ids[byte] for byte in b"oops"]
    corpus = corpus_of(tmp_path, tokens, 256, tokenizer)
    window, rows = read_both(
        tmp_path, corpus, example_at(69_999, 2, ids[ord("s")], start=0)
    )
    assert (window.context, window.tokens) == (69_999, list("last"))
    assert rows == [(69_999, 2, "la«s»t")]


@pytest.mark.parametrize("vocab_size", [256, 70_000], ids=["two bytes", "four bytes"])
def test_a_context_of_40_000_tokens_is_read_at_its_end(tmp_path, vocab_size):
    # four bytes are needed by the size of the vocabulary; most of its ids have no text
    extra = {} if vocab_size == 256 else {"<last>": vocab_size - 1}
    tokenizer, ids = alphabet_tokenizer(extra)
    last = vocab_size - 1
    tokens = np.full((2, 40_000), ids[ord(".")])
    tokens[1, 39_995:] = [ids[byte] for byte in b"here"] + [last]
    corpus = corpus_of(tmp_path, tokens, vocab_size, tokenizer)
    window, rows = read_both(
        tmp_path, corpus, example_at(1, 39_998, ids[ord("e")], start=39_994)
    )
    text = window.tokens[-1]
    assert window.pos == 39_998
    assert window.tokens == [".", "h", "e", "r", "e", text]
    assert rows == [(1, 39_998, f".her«e»{text}")]
    assert vocab_size == 256 or text == "<last>"


def test_tokens_that_are_no_utf_8_show_as_the_replacement_character(tmp_path):
    tokenizer, ids = alphabet_tokenizer()
    tokens = np.array([[ids[byte] for byte in "aé😀".encode()]])
    corpus = corpus_of(tmp_path, tokens, 256, tokenizer)
    window, rows = read_both(tmp_path, corpus, example_at(0, 3, ids[0xF0], start=0))
    assert window.tokens[0] == "a"
    assert set("".join(window.tokens[1:])) == {"\N{REPLACEMENT CHARACTER}"}
    assert rows[0][2].startswith("a")
    assert "«\N{REPLACEMENT CHARACTER}»" in rows[0][2]
    table = pq.read_table(corpus.vocab)
    exact = dict(
        zip(table["token_id"].to_pylist(), table["bytes"].to_pylist(), strict=True)
    )
    whole = b"".join(exact[token] for token in window.token_ids)
    assert "aé😀".encode().startswith(whole)
    session = session_of({}, corpus.path / "contexts.parquet", corpus.vocab)
    query = "SELECT bytes FROM vocab WHERE token_id = ?"
    assert session.sql(query, [ids[0xF0]]).fetchall() == [(b"\xf0",)]
