"""Digests of files are right, and remembered only while the file cannot have changed."""

import hashlib
import os

import pytest

from extraction_kit import digests
from extraction_kit.digests import file_digest, folder_digest


@pytest.fixture
def settled(tmp_path):
    """A file that was written long ago."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


@pytest.fixture
def reads(monkeypatch):
    """Paths whose bytes were read."""
    seen = []
    real = digests._sha256
    monkeypatch.setattr(digests, "_sha256", lambda path: (seen.append(path), real(path))[1])
    return seen


def test_a_digest_is_the_sha256_of_the_bytes(settled):
    assert file_digest(settled) == hashlib.sha256(b"weights").hexdigest()


def test_an_unchanged_file_is_read_once(settled, tmp_path, reads):
    first = file_digest(settled, tmp_path / "cache")
    second = file_digest(settled, tmp_path / "cache")
    assert first == second
    assert len(reads) == 1


def test_other_bytes_of_the_same_size_and_modification_time_are_noticed(settled, tmp_path):
    before = file_digest(settled, tmp_path / "cache")
    settled.write_bytes(b"WEIGHTS")
    os.utime(settled, (1_000_000_000, 1_000_000_000))
    assert file_digest(settled, tmp_path / "cache") != before


def test_a_file_that_was_written_just_now_is_not_remembered(tmp_path, reads):
    path = tmp_path / "fresh"
    path.write_bytes(b"x")
    file_digest(path, tmp_path / "cache")
    file_digest(path, tmp_path / "cache")
    assert len(reads) == 2


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"sha256": 1}'])
def test_a_torn_note_in_the_cache_is_ignored(settled, tmp_path, torn):
    right = file_digest(settled, tmp_path / "cache")
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_bytes(torn)
    assert file_digest(settled, tmp_path / "cache") == right


def test_a_folder_digest_covers_names_and_bytes(tmp_path):
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "inner" / "b").write_bytes(b"2")
    (folder / ".hidden").write_bytes(b"3")
    whole = folder_digest(folder)
    (folder / ".hidden").write_bytes(b"4")
    assert folder_digest(folder) == whole
    assert folder_digest(folder, ["a"]) != whole
    (folder / "inner" / "b").rename(folder / "inner" / "c")
    assert folder_digest(folder) != whole
