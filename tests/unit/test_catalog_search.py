"""Which features fire on a token: by its exact text, with and without the space before it."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction_kit.catalog import reading
from extraction_kit.catalog.publish import stage
from extraction_kit.errors import BadQuery, ResultsDamaged
from tests.unit.synthetic import synthetic

TEXTS = {
    3: "Paris",
    4: " Paris",
    5: "paris",
    6: " Parisian",
    7: "it's",
    8: "\ufffd",
    9: "\ufffd",
}
COLUMNS = ["token", "text", "feature", "n_examples", "max_act", "n_active"]


@pytest.fixture(scope="module")
def made():
    return synthetic(d_sae=96)


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "beef.parquet"
    texts = [TEXTS.get(token, f"tok{token}") for token in range(50)]
    columns = {
        "token_id": pa.array(range(50), pa.int32()),
        "text": pa.array(texts),
        "bytes": pa.array([text.encode() for text in texts]),
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "staged"
    stage(folder, made.result, made.manifest)
    return folder


def by_hand(made, tokens):
    """Return (token, feature, n_examples, max_act), read off the arrays."""
    examples, found = made.result.examples, {}
    for feature, token, act in zip(
        examples.feature, examples.peak_token, examples.act, strict=True
    ):
        if token in tokens:
            n, most = found.get((token, feature), (0, 0.0))
            found[token, feature] = (n + 1, max(most, act))
    return {(int(t), int(f), n, float(a)) for (t, f), (n, a) in found.items()}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Paris", {3, 4}),
        (" Paris", {4}),
        ("paris", {5}),
        ("it's", {7}),
        ("\ufffd", {8, 9}),
    ],
)
def test_the_text_of_a_token_is_compared_exactly(made, folder, vocab, text, tokens):
    found = reading.search(folder, text, vocab=vocab)
    assert found.columns == COLUMNS
    rows = {(row[0], row[2], row[3], row[4]) for row in found.fetchall()}
    assert rows == by_hand(made, tokens)
    assert rows, "the random tokens hold this one"
    assert {TEXTS[row[0]] for row in found.fetchall()} == {
        row[1] for row in found.fetchall()
    }


def test_those_that_the_token_marks_most_surely_come_first(folder, vocab):
    rows = reading.search(folder, "Paris", vocab=vocab).fetchall()
    order = [(-row[3], -row[4]) for row in rows]
    assert order == sorted(order)
    assert reading.search(folder, "Paris", vocab=vocab, k=2).fetchall() == rows[:2]


def test_a_text_that_is_no_token_names_some_that_contain_it(folder, vocab):
    with pytest.raises(
        BadQuery, match=r"'PARIS' or ' PARIS'. Tokens that contain it: 'Paris'"
    ):
        reading.search(folder, "PARIS", vocab=vocab)
    with pytest.raises(BadQuery, match="may be several tokens"):
        reading.search(folder, "New York", vocab=vocab)


def test_a_token_that_was_counted_is_found_without_an_example(made, tmp_path, vocab):
    feature = 2
    tokens = {int(one) for one in made.result.examples.peak_token[
        made.result.examples.feature == feature
    ]}  # fmt: skip
    token = next(one for one in (3, 4, 5, 6, 7) if one not in tokens)
    counted = {
        "feature": np.array([feature], np.int32),
        "rank": np.array([0], np.int16),
        "token": np.array([token], np.int32),
        "n_active": np.array([17], np.int64),
        "sum_act": np.array([34.0]),
        "mean_act": np.array([2.0]),
        "max_act": np.array([2.5], np.float32),
    }
    stage(tmp_path / "s", replace(made.result, tables={"tokens": counted}), made.manifest)
    rows = reading.search(tmp_path / "s", TEXTS[token], vocab=vocab).fetchall()
    assert [row[3:] for row in rows if row[2] == feature] == [(0, 2.5, 17)]


def test_an_older_result_without_counted_tokens_can_be_searched(
    made, folder, tmp_path, vocab
):
    stage(tmp_path / "s", made.result, made.manifest)
    (tmp_path / "s" / "tokens.parquet").unlink()
    card = json.loads((tmp_path / "s" / "manifest.json").read_text())
    del card["files"]["tokens.parquet"]
    (tmp_path / "s" / "manifest.json").write_text(json.dumps(card | {"format": 2}))
    old, new = (
        reading.search(one, "Paris", vocab=vocab) for one in (tmp_path / "s", folder)
    )
    assert old.fetchall() == new.fetchall()


@pytest.mark.parametrize("name", ["tokens.parquet", "examples.parquet"])
@pytest.mark.parametrize("damage", ["lost", "altered"])
def test_nothing_is_found_in_damaged_files(made, tmp_path, vocab, name, damage):
    stage(tmp_path / "s", made.result, made.manifest)
    path = tmp_path / "s" / name
    if damage == "lost":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    with pytest.raises(ResultsDamaged, match=name):
        reading.search(tmp_path / "s", "Paris", vocab=vocab)
