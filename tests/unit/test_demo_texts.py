"""The texts of the demo: real English, the same each time."""

import json
import sysconfig
from pathlib import Path

import pytest

from extraction_kit.demo import texts
from extraction_kit.errors import BadCorpus


def test_docstrings_are_read_without_running_the_file(tmp_path):
    file = tmp_path / "module.py"
    long = "A sentence that says something.\n" * 10
    file.write_text(f'"""{long}"""\nraise SystemExit\ndef f():\n    """Short."""\n')
    assert list(texts.docstrings(file)) == [long.strip()]


@pytest.mark.parametrize("content", [b"def broken(:", b"\x00", b'"\xff"'])
def test_a_file_that_is_no_python_gives_nothing(tmp_path, content):
    file = tmp_path / "module.py"
    file.write_bytes(content)
    assert list(texts.docstrings(file)) == []


def test_documents_are_mixed_and_each_comes_once():
    documents = [f"document {number}" for number in range(50)]
    once = texts.mixed(documents + documents)
    assert sorted(once) == sorted(documents)
    assert once != documents
    assert once == texts.mixed(reversed(documents))


def test_the_standard_library_has_sources_but_no_tests_among_them():
    root = Path(sysconfig.get_path("stdlib"))
    names = {str(path.relative_to(root)) for path in texts.stdlib_files()}
    assert "argparse.py" in names
    assert not [name for name in names if name.startswith(("test/", "site-packages/"))]


def test_the_texts_are_written_whole_and_equal_each_time(tmp_path, monkeypatch):
    some = texts.stdlib_files()[:15]
    monkeypatch.setattr(texts, "stdlib_files", lambda: some)
    monkeypatch.setattr(texts, "_MIN_DOCUMENTS", 5)
    seen = []
    for name in ("one.jsonl", "two.jsonl"):
        texts.write_texts(tmp_path / name, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (15, 15)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    lines = (tmp_path / "one.jsonl").read_text().splitlines()
    assert all(json.loads(line)["text"] for line in lines)
    assert len(lines) > 5


def test_a_python_without_sources_is_told_to_use_another(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "stdlib_files", list)
    monkeypatch.setattr(texts, "topics", list)
    with pytest.raises(BadCorpus, match="make demo PYTHON="):
        texts.write_texts(tmp_path / "texts.jsonl")
    assert not list(tmp_path.iterdir())
