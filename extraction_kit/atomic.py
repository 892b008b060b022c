"""The one way in which this package makes files and folders appear: whole or not at all."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extraction_kit.errors import WorkspaceUnusable


def fsync_file(path: Path) -> None:
    """Force the bytes of `path` to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Force the names in folder `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """Return a hidden, unused name in the folder of `path` (same file system)."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


def write_file(
    path: Path, write: bytes | Callable[[Path], None], *, durable: bool = True
) -> None:
    """Put a whole file at `path`; a reader sees the old one or the new one.

    Parameters
    ----------
    path : Path
        Where the file appears. Its folder is made if need be.
    write : bytes or callable
        The content, or a function that writes it to the path it is given.
    durable : bool
        Force content and name to disk before returning. Beats go without.

    Raises
    ------
    WorkspaceUnusable
        The folder is not writable or the disk is full; nothing is visible then.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        if durable:
            fsync_file(temporary)
        temporary.replace(path)
        if durable:
            fsync_folder(path.parent)
    except OSError as error:
        raise unusable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_new_file(path: Path, write: Callable[[Path], None]) -> bool:
    """Put a whole new file at `path` unless something is there: the first one wins.

    Returns
    -------
    bool
        False if something was at `path`, before or meanwhile; it is left as it is.

    Raises
    ------
    WorkspaceUnusable
        As in `write_file`.
    """
    if os.path.lexists(path):
        return False
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        fsync_file(temporary)
        if not _put(temporary, path):
            return False
        fsync_folder(path.parent)
    except OSError as error:
        raise unusable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _put(temporary: Path, path: Path) -> bool:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(path):
            return False
        temporary.rename(path)
    return True


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:  # noqa: ANN401 - JSON
    """Put `value` as indented JSON at `path`, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_file(path, text.encode(), durable=durable)


def move_folder(staged: Path, final: Path) -> bool:
    """Rename `staged` to `final` unless `final` exists: the first one wins.

    Returns
    -------
    bool
        True if `staged` is now at `final`; False if something was there before, in which
        case nothing changed.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        # POSIX rename replaces an *empty* folder only; ours always holds a manifest.
        staged.rename(final)
    except OSError as error:
        if error.errno in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}:
            return False
        if final.exists():
            return False
        raise unusable(final, error) from error
    fsync_folder(final.parent)
    return True


def remove_folder(path: Path) -> None:
    """Remove `path` and what is in it; nothing happens if it is not there."""
    shutil.rmtree(path, ignore_errors=True)


def unusable(path: Path, error: OSError) -> WorkspaceUnusable:
    """Return the error that tells a person what to do about an `OSError` at `path`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        advice = "the disk is full: free some space, then do the same again"
    elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        advice = (
            "it is not writable for you: choose another workspace, for example "
            "Workspace('~/extractions') or EXTRACTION_KIT_HOME=~/extractions"
        )
    else:
        advice = error.strerror or str(error)
    return WorkspaceUnusable(f"cannot write {path}: {advice}")
