"""No number of one run is read from a damaged file: DuckDB alone would show altered ones as good.

Parquet as it is written carries no checksum that a reader looks at: of the flipped bits
that were tried, a quarter to a half came back as other numbers without an error.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

from extraction_kit.catalog.publish import MANIFEST, problem_of, read_manifest
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.errors import BadQuery, ResultsDamaged

ADVICE = (
    "Type ws.verify() (or `extraction-kit verify`) to see all that is damaged; put the "
    "folder back from a backup, or compute it anew: launch with the next generation="
)


def require_sound(path: Path) -> None:
    """Refuse a file of a result that is not the one that was published.

    Its bytes are read once per process (about 1 s per GB), and again if its size or times
    change.

    Raises
    ------
    ResultsDamaged
        It is missing, torn or altered; run and file are named.
    BadQuery
        The run is of a newer release, so that its columns are not known.
    """
    try:
        identity = identity_of(path)
    except OSError as error:
        raise ResultsDamaged(f"{path} cannot be read: {error}. {ADVICE}") from None
    _check(path, identity)


Identity = tuple[int, ...]
"""What changes when the bytes of a file do."""


def identity_of(path: Path) -> Identity:
    """Return what tells whether a file is still the same."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=4096)
def _check(path: Path, _identity: Identity) -> None:
    """Raise what `require_sound` says; only that a file is sound is remembered."""
    manifest = read_manifest(path.parent)
    if manifest is None:
        raise ResultsDamaged(f"{path.parent / MANIFEST} is missing or torn. {ADVICE}")
    if manifest["format"] > STATISTICS_FORMAT:
        raise BadQuery(
            f"{path.parent} was written by extraction_kit "
            f"{manifest.get('kit_version', 'of a newer release')} with statistics of format "
            f"{manifest['format']}, this release reads up to {STATISTICS_FORMAT}: type "
            "pip install --upgrade extraction_kit"
        )
    expected = manifest["files"].get(path.name)
    problem = "" if expected is None else problem_of(path, expected)
    if problem:
        raise ResultsDamaged(f"{problem}. {ADVICE}")


def find_damage(
    folders: Mapping[str, Path], *, max_bytes: int | None = None
) -> Iterator[str]:
    """Yield what is wrong with the results in `folders`, the quickest to find first.

    First missing files and wrong sizes, which costs little for thousands of runs, then the
    bytes of all files, or of the first `max_bytes`.
    """
    manifests = {folder: read_manifest(folder) for folder in folders.values()}
    for folder, manifest in manifests.items():
        if manifest is None:
            yield f"{folder / MANIFEST} is missing or torn"
    files = [
        (folder / name, expected)
        for folder, manifest in manifests.items()
        if manifest is not None
        for name, expected in manifest["files"].items()
    ]
    wrong = [
        (path, expected) for path, expected in files if _size(path) != expected["bytes"]
    ]
    yield from (problem_of(path, expected) for path, expected in wrong)
    read = 0
    for path, expected in files:
        read += expected["bytes"]
        if max_bytes is not None and read > max_bytes:
            return
        problem = problem_of(path, expected)
        if problem and (path, expected) not in wrong:
            yield problem


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
