"""Exports appear whole or not at all, and never replace anything."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from extraction_kit.atomic import (
    fsync_file,
    fsync_folder,
    move_folder,
    remove_folder,
    temporary_beside,
    unusable,
    write_new_file,
)
from extraction_kit.errors import BadExport


@contextmanager
def new_folder(path: Path | str) -> Iterator[tuple[Path, Path]]:
    """Yield where a new folder will be, and a hidden one beside it that becomes it.

    Raises
    ------
    BadExport
        Something is at `path`, before or afterwards; it is left as it is.
    WorkspaceUnusable
        The disk is full or not writable; nothing is left behind.
    """
    final = _free(path)
    staged = temporary_beside(final)
    try:
        staged.mkdir(parents=True)
        yield final, staged
        _flush(staged)
        if not move_folder(staged, final):
            raise BadExport.taken(final)
    except OSError as error:
        raise unusable(final, error) from error
    finally:
        remove_folder(staged)


def new_file(path: Path | str, write: Callable[[Path], None]) -> Path:
    """Put a new file at `path`; return where it is.

    Raises as `new_folder`.
    """
    final = _free(path)
    if not write_new_file(final, write):
        raise BadExport.taken(final)
    return final


def _free(path: Path | str) -> Path:
    final = Path(path).expanduser().absolute()
    if os.path.lexists(final):
        raise BadExport.taken(final)
    return final


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fsync_file(path)
        else:
            fsync_folder(path)
    fsync_folder(folder)


def short(value: float | np.floating) -> float:
    """Return a float32 as the number with the fewest digits that is it in float32."""
    return float(str(np.float32(value)))
