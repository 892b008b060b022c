"""Where an interrupted extraction continues: arrays and a cursor, whole or not at all.

``<run>/a<attempt>/<number>/`` holds ``state.safetensors`` and ``checkpoint.json`` with its
sha256. A folder gets its name only when both are on disk, so a process that dies at any
instruction leaves the checkpoints before it as they were.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from extraction_kit import atomic
from extraction_kit.errors import CheckpointUnusable

STATE = "state.safetensors"
META = "checkpoint.json"
CHECKPOINT_FORMAT = 1
KEPT = 2
"""Checkpoints that an attempt keeps: should the last be damaged, there is one before."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk, found sound when it was looked at.

    Parameters
    ----------
    path : Path
        Its folder.
    meta : mapping
        ``n_contexts_done``, ``n_tokens_done``, ``content_key``, ``fingerprint``,
        ``corpus_digest``, ``saved_at`` and what else the engine noted.
    """

    path: Path
    meta: Mapping[str, Any]

    def load(self) -> dict[str, np.ndarray]:
        """Return the arrays.

        Raises
        ------
        CheckpointUnusable
            The file went away or was altered since.
        """
        try:
            arrays: dict[str, np.ndarray] = load_file(self.path / STATE)
        except (OSError, SafetensorError) as error:
            raise CheckpointUnusable(
                f"checkpoint {self.path} cannot be read ({error}): delete that folder to "
                "continue from the one before, or from the beginning"
            ) from error
        return arrays


def save(folder: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> Path:
    """Write the next checkpoint of one attempt and drop all but the last two.

    Parameters
    ----------
    folder : Path
        The attempt's own folder; nobody else writes in it.
    arrays : mapping of str to ndarray
        The state of all statistics.
    meta : mapping
        Plain JSON values; ``n_contexts_done`` is the cursor. ``saved_at`` is added.

    Returns
    -------
    Path
        The new checkpoint.

    Raises
    ------
    WorkspaceUnusable
        The disk is full or not writable; the earlier checkpoints are untouched.
    """
    earlier = sorted(_numbered(folder))
    number = int(earlier[-1].name) + 1 if earlier else 1
    final = folder / f"{number:06d}"
    staged = atomic.temporary_beside(final)
    try:
        staged.mkdir(parents=True)
        save_file(dict(arrays), staged / STATE)
        atomic.fsync_file(staged / STATE)
        values = {
            **meta,
            "format": CHECKPOINT_FORMAT,
            "saved_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": _sha256(staged / STATE),
        }
        atomic.write_json(staged / META, values)
        atomic.move_folder(staged, final)
    except OSError as error:
        raise atomic.unusable(final, error) from error
    except SafetensorError as error:
        raise atomic.unusable(final, _os_error_of(error)) from error
    finally:
        atomic.remove_folder(staged)
    for old in earlier[: len(earlier) + 1 - KEPT]:
        atomic.remove_folder(old)
    return final


class Saver:
    """Writes the checkpoints of one attempt while its computation goes on.

    A thread does it: to write, to sync and to hash a large state takes seconds.

    Parameters
    ----------
    folder : Path
        As for `save`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="xk-checkpoint")
        self._writing: Future[Path] | None = None
        self._written: Mapping[str, Any] = {}
        self.newest: Mapping[str, Any] | None = None
        """What the newest checkpoint that is on disk says of itself."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let what is being written be finished, whatever ended the computation."""
        self._thread.shutdown()

    def begin(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint, once the one before it is written.

        Parameters
        ----------
        arrays : mapping of str to ndarray
            Nobody changes them from now on.
        meta : mapping
            As for `save`.

        Raises
        ------
        WorkspaceUnusable
            The one before it could not be written.
        """
        self.finish()
        self._written = meta
        self._writing = self._thread.submit(save, self._folder, arrays, meta)

    def look(self) -> None:
        """Take note of a checkpoint that has been written since; raise as `finish`."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one.

        Raises
        ------
        WorkspaceUnusable
            The disk is full or not writable; the earlier checkpoints are untouched.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self.newest = self._written


def _os_error_of(error: SafetensorError) -> OSError:
    """Return the system's error that safetensors only tells of in words."""
    found = re.search(r"os error (\d+)", str(error))
    if found is None:
        return OSError(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])))


def best(run_folder: Path) -> Checkpoint | None:
    """Return the sound checkpoint that is furthest on, over all attempts at a run.

    A torn or altered one is passed over. None if there is no sound one.
    """
    return next((each for each in _furthest_first(run_folder) if _sound(each)), None)


def newest_meta(run_folder: Path) -> Mapping[str, Any] | None:
    """Return what the furthest checkpoint says of itself, without reading its state."""
    return next((each.meta for each in _furthest_first(run_folder)), None)


def _furthest_first(run_folder: Path) -> list[Checkpoint]:
    found = [
        Checkpoint(folder, meta)
        for attempt in _inside(run_folder)
        if attempt.name.startswith("a")
        for folder in _numbered(attempt)
        if (meta := _read_meta(folder)) is not None
    ]
    found.sort(key=lambda each: (each.meta["n_contexts_done"], each.meta["saved_at"]))
    return found[::-1]


def _numbered(folder: Path) -> Iterator[Path]:
    return (each for each in _inside(folder) if each.name.isdecimal())


def _inside(folder: Path) -> list[Path]:
    """Return what is in a folder, which may vanish at any time: its run may end."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_meta(folder: Path) -> dict[str, Any] | None:
    try:
        meta = json.loads((folder / META).read_bytes())
        known = (
            meta["format"] == CHECKPOINT_FORMAT
            and isinstance(meta["n_contexts_done"], int)
            and isinstance(meta["saved_at"], str)
            and isinstance(meta["sha256"], str)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if known else None


def _sound(checkpoint: Checkpoint) -> bool:
    try:
        return _sha256(checkpoint.path / STATE) == str(checkpoint.meta["sha256"])
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
