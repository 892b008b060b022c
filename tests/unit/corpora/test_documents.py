"""Whatever a corpus cannot be made from is refused with the row, line or byte."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extraction_kit.corpora.documents import open_documents
from extraction_kit.errors import BadCorpus


def read(source, **options):
    return list(open_documents(source, **options).read())


class Features(dict):
    """As ``datasets.Features``: a mapping of names to types."""


class Dataset:
    """The part of ``datasets.Dataset`` that is used; the real one is an optional extra."""

    def __init__(self, rows, *, fingerprint="f1"):
        self._rows = rows
        self._fingerprint = fingerprint
        self.column_names = list(rows[0])
        kinds = {name: type(value) for name, value in rows[0].items()}
        self.features = Features(
            {
                name: _Value("string" if kind is str else "int64")
                for name, kind in kinds.items()
            }
        )

    def __len__(self):
        return len(self._rows)

    def iter(self, batch_size):
        for at in range(0, len(self), batch_size):
            rows = self._rows[at : at + batch_size]
            yield {name: [row[name] for row in rows] for name in self.column_names}

    def select_columns(self, names):
        return Dataset([{name: row[name] for name in names} for row in self._rows])


class _Value:
    def __init__(self, dtype):
        self.dtype = dtype


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.md"
    path.write_bytes("\ufeffüber\r\n\r\n42".encode())
    assert read(path) == ["über\r\n\r\n42"]


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path):
    rows = [{"text": "a", "n": 1}, {"text": "ü", "n": 2}]
    jsonl, parquet = tmp_path / "r.jsonl", tmp_path / "r.parquet"
    jsonl.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    assert read(jsonl) == read(parquet) == ["a", "ü"]


def test_the_only_column_of_texts_is_taken_else_it_must_be_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"n": 1, "body": "a"}))
    assert read(path) == ["a"]
    path.write_text(json.dumps({"title": "t", "body": "a"}))
    with pytest.raises(BadCorpus, match="but title, body: say which"):
        read(path)
    assert read(path, text_column="body") == ["a"]
    with pytest.raises(BadCorpus, match="has the columns title, body"):
        read(path, text_column="txt")


def test_lists_of_ids_in_a_column_are_documents(tmp_path):
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"input_ids": [[1, 2], [3]], "text": ["a", "b"]}), path)
    documents = read(path, text_column="input_ids")
    assert [document.tolist() for document in documents] == [[1, 2], [3]]


def test_a_dataset_is_read_by_its_column_and_recognised_by_its_fingerprint():
    rows = [{"text": "a", "id": 1}, {"text": "b", "id": 2}]
    documents = open_documents(Dataset(rows))
    assert list(documents.read()) == ["a", "b"]
    assert documents.key == open_documents(Dataset(rows)).key
    assert documents.key != open_documents(Dataset(rows, fingerprint="f2")).key
    assert open_documents(Dataset(rows, fingerprint=None)).key is None
    rows = [{"content": "a", "id": 1}]
    assert read(Dataset(rows)) == ["a"]
    with pytest.raises(BadCorpus, match="the dataset has the columns content, id"):
        read(Dataset(rows), text_column="text")


def test_a_dataset_of_several_splits_asks_for_one():
    splits = Dataset([{"text": "a"}])
    splits.column_names = {"train": ["text"], "test": ["text"]}
    with pytest.raises(BadCorpus, match=r"train, test.*dataset\['train'\]"):
        open_documents(splits)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("The cat sat on the mat.", r"no such file.*corpus=\[text\]"),
        ("x" * 5000, r"no such file.*corpus=\[text\]"),
        ("a\0b", "no such file"),
        (Path("nowhere.txt"), "no such file"),
        (b"bytes", "bytes object: a path"),
        (7, "int object: a path"),
        (None, "NoneType object"),
        ({"train": ["a"]}, r"keys train.*corpus\['train'\]"),
        ({"a text"}, "sorted"),
        (pd.DataFrame({"text": ["a"]}), r"one column.*list\(table"),
        (pa.table({"text": ["a"]}), "one column"),
        ([1, 2, 3], r"number 1.*\[ids\]"),
        (np.arange(3), r"shape \(3,\).*ids\[None, :\]"),
        (np.ones((2, 3)), "float64"),
        (["a", 1], "row 1 is 1, a int"),
        (["a", None], "row 1 is None"),
        ([[1, 2], [1.5]], "row 1 has type float64"),
        ([[1, 2], [True]], "row 1 has type bool"),
        ([[[1], [2, 3]]], "row 0"),
        (["fine", "half \ud800"], "row 1 has half a character.*5"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_source_of_texts_is_refused(source, said):
    with pytest.raises(BadCorpus, match=said):
        read(source)


def test_a_series_of_texts_is_a_list_of_texts():
    assert read(pd.Series(["a", "b"])) == ["a", "b"]
    assert read(np.array(["a", "b"])) == ["a", "b"]


def test_a_folder_and_names_of_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadCorpus, match=r"is a folder.*glob"):
        read(tmp_path)
    for names in ([tmp_path / "a.txt"], [str(tmp_path / "a.txt")]):
        with pytest.raises(BadCorpus, match=r"name of a file.*read_text"):
            read(names)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"caf\xe9 au lait", "byte 3 is 0xe9.*encoding="),
        ("a.txt", b"a\0b", "NUL character at 1"),
        ("a.csv", b"a,b", r"\.csv files are not read"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', "line 2 holds a list"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}', "row 1 of column 'text' is None"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}', "row 1 of column 'text' is 5"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2, is not UTF-8: byte 24"),
        ("a.jsonl", b'{"text": "\\ud800"}', "half a character"),
        ("a.parquet", b"PAR1 torn", "torn or not a Parquet"),
        ("a.npy", b"\x93NUMPY", "torn, or not a .npy"),
    ],
)
def test_bad_content_is_named_by_its_place(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadCorpus, match=said):
        read(tmp_path / name)


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadCorpus, match=r"not a \.npy file of token ids"):
        read(tmp_path / "a.npy")


def test_null_rows_of_parquet_are_named(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 300 + [None]}), tmp_path / "a.parquet")
    with pytest.raises(BadCorpus, match="row 300 of column 'text' is None"):
        read(tmp_path / "a.parquet")


def test_a_column_makes_sense_only_where_there_are_columns(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    for source in (tmp_path / "a.txt", ["a"]):
        with pytest.raises(BadCorpus, match=r"text_column='body'.*leave it out"):
            read(source, text_column="body")


def test_what_can_be_read_only_once_has_no_key():
    assert open_documents(iter(["a"])).key is None
    assert open_documents(text for text in ["a"]).key is None


def test_keys_tell_texts_apart_however_they_are_split():
    keys = [
        open_documents(source).key
        for source in (["ab", "c"], ["a", "bc"], ["abc"], [[97, 98, 99]], [[97], [98, 99]])
    ]
    assert len(set(keys)) == 5
