"""Indexes over many runs: copies of their features, and which feature fires on which token.

A question to all of a thousand runs opens a thousand files. Here the same rows are in one file
for every 250 runs. Everything in the folder is derived: it may be deleted at any time, a
run that is in no index is read from its own files, and one that is gone is never shown,
because who reads names the runs that there are.
"""

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.atomic import remove_folder, write_file, write_json
from extraction_kit.catalog.peaks import peaks_of
from extraction_kit.catalog.publish import verify
from extraction_kit.catalog.relations import is_bindable, literal, names_of, scan
from extraction_kit.catalog.tables import EXAMPLES, FEATURES, PEAKS, TOKENS, Table
from extraction_kit.lifecycle import digest_of

log = logging.getLogger(__name__)

SEGMENT = 250
"""Runs in one file: enough to open few files, few enough to sort them in 1 GB of memory."""

INDEXED = (FEATURES, PEAKS)
"""Tables that an index has."""

_FORMAT = [1, *(f"{table.name}.{one.name}" for table in INDEXED for one in table.columns)]
_INDEX = "index.json"
_ROW_GROUP = 122_880  # fewer are skipped faster than more, until one takes long to read
_TOO_MANY_GONE = 0.2  # share of a segment's runs


@dataclass(frozen=True)
class Segment:
    """One file per table of `INDEXED`, with the rows of some runs."""

    name: str
    runs: Mapping[str, str]
    """Run id to result digest, as it was when the rows were copied."""

    def file(self, table: Table) -> str:
        """Name of its file of a table."""
        return f"{self.name}.{table.file}"


@dataclass(frozen=True)
class Index:
    """What there is."""

    segments: tuple[Segment, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Runs whose files are damaged, with the digest that they should have."""

    @property
    def known(self) -> dict[str, str]:
        """Runs that need not be looked at again, with their result digests."""
        known = dict(self.left_out)
        for segment in self.segments:
            known |= segment.runs
        return known


def read_index(folder: Path) -> Index:
    """Return the index in `folder`; an empty one if there is none that can be used.

    A segment of which a file was deleted is left out.
    """
    path = folder / _INDEX
    try:
        seen = path.stat()
        index = _parsed(path, (seen.st_mtime_ns, seen.st_ino, seen.st_size))
    except (OSError, ValueError):
        return Index()
    there = tuple(
        segment
        for segment in index.segments
        if all((folder / segment.file(table)).exists() for table in INDEXED)
    )
    return index if there == index.segments else Index(there, index.left_out)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, _seen: tuple[int, int, int]) -> Index:
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        return Index()
    segments = tuple(Segment(one["name"], one["runs"]) for one in found["segments"])
    index = Index(segments, found["left_out"])
    n_runs = sum(len(segment.runs) for segment in segments)
    if n_runs + len(index.left_out) != len(index.known):  # twice the same run
        return Index()
    return index


def select_indexed(
    table: Table, index: Index, *, folder: Path, runs: Mapping[str, str | None]
) -> tuple[str, set[str]]:
    """Return the SQL that reads a table of `INDEXED`, and the runs whose rows it gives.

    Parameters
    ----------
    table : Table
        One of `INDEXED`.
    index, folder : Index, Path
        What there is, and where.
    runs : mapping
        Runs to be shown: run id to result digest. No other run's rows are given.
    """
    paths, covered, hidden = [], set(), []
    for segment in index.segments:
        shown = {one for one, digest in segment.runs.items() if runs.get(one) == digest}
        if shown:
            paths.append(folder / segment.file(table))
            covered |= shown
            hidden += sorted(segment.runs.keys() - shown)
    if not paths:
        return "", set()
    query = f"SELECT run_id, {names_of(table)} FROM {scan(paths)}"  # noqa: S608 - ours
    if hidden:
        query += f" WHERE run_id NOT IN ({', '.join(map(literal, hidden))})"
    return query, covered


def discard_unreadable(folder: Path | None) -> bool:
    """Remove the index in `folder` if one of its files cannot be read; return whether."""
    if folder is None:
        return False
    readable = all(
        is_bindable(table, folder / segment.file(table))
        for segment in read_index(folder).segments
        for table in INDEXED
    )
    return not readable and discard(folder)


def discard(folder: Path | None) -> bool:
    """Remove the index in `folder`; return whether there was one.

    Each run is read from its own files then, until the index is built anew. For an error of
    DuckDB that no file of a run explains: it seldom says which file it comes from.
    """
    if folder is None or not (folder / _INDEX).exists():
        return False
    for path in (folder / _INDEX, *folder.glob("*.parquet")):
        path.unlink(missing_ok=True)
    return True


# --- building -------------------------------------------------------------------------------


def is_due(index: Index, wanted: Mapping[str, str], *, above: int) -> bool:
    """Return whether to build: above so many runs, and when a hundredth of it is new.

    Parameters
    ----------
    index : Index
        What there is.
    wanted : mapping
        Completed runs: run id to result digest.
    above : int
        ``Settings.index_above``.
    """
    known = index.known
    n_new = sum(known.get(run_id) != digest for run_id, digest in wanted.items())
    stale = any(_is_stale(segment, wanted) for segment in index.segments)
    return len(wanted) > above and (n_new >= max(1, above // 100) or stale)


def _is_stale(segment: Segment, wanted: Mapping[str, str]) -> bool:
    gone = sum(wanted.get(run_id) != digest for run_id, digest in segment.runs.items())
    return gone > _TOO_MANY_GONE * len(segment.runs)


def build(folder: Path, wanted: Mapping[str, str], folders: Mapping[str, Path]) -> Index:
    """Bring the index in `folder` up to date; killed at any moment, it leaves a whole one.

    Full segments stay as they are; the runs of the last one, of those of which many runs are
    gone, and new ones are copied anew, the runs in the order of `wanted`. About 0.2 s per
    run.

    Parameters
    ----------
    folder : Path
        ``Paths.derived``.
    wanted : mapping
        Completed runs: run id to result digest, the oldest first.
    folders : mapping
        Run id to its folder.

    Raises
    ------
    WorkspaceUnusable
        The disk is full or the folder not writable; the index is as it was.
    """
    before = read_index(folder)
    kept = tuple(
        segment
        for segment in before.segments
        if len(segment.runs) >= SEGMENT and not _is_stale(segment, wanted)
    )
    left_out = {
        run_id: digest
        for run_id, digest in before.left_out.items()
        if wanted.get(run_id) == digest
    }
    known = Index(kept, left_out).known
    rest = [run_id for run_id in wanted if run_id not in known]
    segments = list(kept)
    for begin in range(0, len(rest), SEGMENT):
        chunk = rest[begin : begin + SEGMENT]
        sound = [run_id for run_id in chunk if _is_sound(folders[run_id])]
        left_out |= {run_id: wanted[run_id] for run_id in chunk if run_id not in sound}
        if sound:
            segments.append(
                _write_segment(folder, {one: wanted[one] for one in sound}, folders)
            )
    index = Index(tuple(segments), left_out)
    _write_index(folder, index)
    _remove_others(folder, (*before.segments, *index.segments))
    return index


def _is_sound(folder: Path) -> bool:
    """Tell whether each byte is what was published: a copy outlives what it was made of."""
    problems = verify(folder)
    for problem in problems:
        log.warning("left out of the indexes: %s", problem)
    return not problems


def _write_segment(
    folder: Path, runs: Mapping[str, str], folders: Mapping[str, Path]
) -> Segment:
    segment = Segment(digest_of([_FORMAT, sorted(runs.items())])[:16], dict(runs))
    writers = {FEATURES: _write_features, PEAKS: _write_peaks}
    chosen = {run_id: folders[run_id] for run_id in runs}
    for table, write in writers.items():
        path = folder / segment.file(table)
        if not path.exists():  # whole, whoever wrote it: its name says of what
            write_file(path, functools.partial(write, chosen))
    return segment


def _write_features(folders: Mapping[str, Path], path: Path) -> None:
    """Copy features, one row group per run, so that one run is found by its id."""
    schema = FEATURES.schema.insert(0, pa.field("run_id", _RUN_ID))
    # Read far more often than written: not compressed as hard as what is kept for good.
    with pq.ParquetWriter(
        path, schema, compression="lz4", use_dictionary=["run_id"]
    ) as file:
        for run_id, folder in folders.items():
            names = FEATURES.schema.names
            table = pq.read_table(folder / FEATURES.file, columns=names)
            table = table.add_column(0, schema.field(0), _constant(run_id, len(table)))
            file.write_table(table.cast(schema), row_group_size=max(1, len(table)))


def _write_peaks(folders: Mapping[str, Path], path: Path) -> None:
    """Write who fires on what, sorted by token."""
    spill = path.with_name(f"{path.name}.spill")
    try:
        _sort_peaks(folders, path, spill)
    finally:
        remove_folder(spill)


def _sort_peaks(folders: Mapping[str, Path], path: Path, spill: Path) -> None:
    config: dict[str, Any] = {
        "threads": 1,
        "memory_limit": "1GB",
        "temp_directory": str(spill),
    }
    with duckdb.connect(":memory:", config=config) as database:
        columns = ", ".join(f'"{one.name}" {one.type}' for one in PEAKS.columns)
        database.execute(f"CREATE TABLE peaks (run_id VARCHAR, {columns})")
        for run_id, folder in folders.items():
            rows = peaks_of(scan([folder / EXAMPLES.file]), scan([folder / TOKENS.file]))
            database.execute(
                f"INSERT INTO peaks SELECT {literal(run_id)}, {names_of(PEAKS)} FROM ({rows})"  # noqa: S608 - ours
            )
        database.execute(
            "COPY (FROM peaks ORDER BY token) "
            f"TO {literal(str(path))} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP})"
        )


_RUN_ID = pa.dictionary(pa.int32(), pa.string())


def _constant(text: str, n_rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * n_rows, pa.int32()), [text])


def _write_index(folder: Path, index: Index) -> None:
    write_json(
        folder / _INDEX,
        {
            "format": _FORMAT,
            "segments": [
                {"name": one.name, "runs": dict(one.runs)} for one in index.segments
            ],
            "left_out": dict(index.left_out),
        },
    )


def _remove_others(folder: Path, segments: Iterable[Segment]) -> None:
    """Remove what no index names, not the last one either: its readers may be at work."""
    named = {segment.file(table) for segment in segments for table in INDEXED}
    for path in folder.iterdir():
        if path.is_dir():
            remove_folder(path)  # what a killed build spilled
        elif path.name != _INDEX and path.name not in named:
            path.unlink()
