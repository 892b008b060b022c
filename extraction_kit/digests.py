"""Digests of files, remembered by path, size and times so that big ones are read once."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from extraction_kit import atomic
from extraction_kit.lifecycle import digest_of

_SETTLED_S = 2.0
# A file that changed within this time may change again without a visible change of its
# times (coarse clocks of file systems), so its digest is not remembered yet.


def file_digest(path: Path | str, cache: Path | None = None) -> str:
    """Return the sha256 (hex) of the bytes of `path`.

    Parameters
    ----------
    path : Path or str
        The file.
    cache : Path, optional
        Folder that remembers digests. The file is not read again while its path, size,
        modification and change times are the same.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    path = Path(path).absolute()
    status = path.stat()
    if cache is None:
        return _sha256(path)
    note = cache / "digests" / f"{digest_of(str(path))[:32]}.json"
    identity = _identity(path, status)
    known = _remembered(note, identity)
    if known is not None:
        return known
    sha256 = _sha256(path)
    settled = time.time() - status.st_mtime > _SETTLED_S
    if settled and _identity(path, path.stat()) == identity:
        atomic.write_json(note, identity | {"sha256": sha256}, durable=False)
    return sha256


def folder_digest(
    folder: Path | str, names: Iterable[str] | None = None, *, cache: Path | None = None
) -> str:
    """Return one sha256 (hex) over the names and bytes of files in `folder`.

    Parameters
    ----------
    folder : Path or str
        The folder.
    names : iterable of str, optional
        Files to cover, relative to `folder`. None covers every file below it; names that
        begin with a dot are left out.
    cache : Path, optional
        As for :func:`file_digest`.
    """
    folder = Path(folder)
    if names is None:
        names = [
            path.relative_to(folder).as_posix()
            for path in folder.rglob("[!.]*")
            if path.is_file()
        ]
    return digest_of({name: file_digest(folder / name, cache) for name in names})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path, status: os.stat_result) -> dict[str, object]:
    return {
        "path": str(path),
        "inode": status.st_ino,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,  # a copy that keeps mtime still moves this one
    }


def _remembered(note: Path, identity: dict[str, object]) -> str | None:
    try:
        found = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    sha256 = found.pop("sha256", None)
    return sha256 if found == identity and isinstance(sha256, str) else None
