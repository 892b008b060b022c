"""What runs and corpora take of the disk, and whether it will soon be full.

Sizes of results come from the ledger, which took them from the manifests: no walk through
the results, however many runs there are.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from extraction_kit.catalog.publish import bytes_of, read_manifest
from extraction_kit.errors import ExtractionKitError
from extraction_kit.estimate import disk_bytes
from extraction_kit.ledger import records
from extraction_kit.ledger.records import RunSize
from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.paths import Paths
from extraction_kit.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class RunBytes:
    """What one run takes, in bytes."""

    results: int
    checkpoints: int
    corpus_digest: str


@dataclass(frozen=True, kw_only=True, repr=False)
class DiskUse:
    """What a workspace takes of its disk, in bytes."""

    folder: Path
    free: int
    runs: Mapping[str, RunBytes] = field(default_factory=dict)
    """By run id; deleted runs are not among them."""
    corpora: Mapping[str, int] = field(default_factory=dict)
    """By digest; runs share them, and some may be used by no run."""
    deleted: int = 0
    """Results and checkpoints of deleted runs that are not purged yet."""
    indexes: int = 0
    """Indexes over many runs: the folder ``derived`` may be deleted at any time."""
    warning: str = ""
    """What is about to be full, and what to do; empty if nothing is."""

    def __repr__(self) -> str:
        """Return one line, and the warning."""
        results = sum(run.results for run in self.runs.values())
        checkpoints = sum(run.checkpoints for run in self.runs.values())
        indexes = f"indexes {size_text(self.indexes)}, " if self.indexes else ""
        line = (
            f"{self.folder}: results {size_text(results)}, checkpoints "
            f"{size_text(checkpoints)}, {len(self.corpora)} corpora "
            f"{size_text(sum(self.corpora.values()))}, {indexes}deleted "
            f"{size_text(self.deleted)}, free {size_text(self.free)}"
        )
        return f"{line}\n{self.warning}" if self.warning else line


def usage(bench: Workbench) -> DiskUse:
    """Return what runs, checkpoints and corpora take."""
    paths = bench.paths
    with bench.store.read() as connection:
        known = records.sizes(connection)
    kept = [run for run in known if not run.purged]
    with_checkpoints = set(_names(paths.checkpoints))
    sizes = {
        run.run_id: RunBytes(
            results=_results_bytes(bench, run),
            checkpoints=tree_bytes(paths.checkpoints_of(run.run_id))
            if run.run_id in with_checkpoints
            else 0,
            corpus_digest=run.corpus_digest,
        )
        for run in kept
    }
    gone = {run.run_id for run in kept if run.deleted}
    return DiskUse(
        folder=paths.shared,
        free=bench.free_bytes(),
        runs={run_id: size for run_id, size in sizes.items() if run_id not in gone},
        corpora={
            digest: tree_bytes(paths.corpora / digest)
            for digest in sorted({run.corpus_digest for run in kept} | corpora_there(paths))
        },
        deleted=sum(sizes[run_id].results + sizes[run_id].checkpoints for run_id in gone),
        indexes=tree_bytes(paths.derived),
        warning=warning(bench),
    )


def corpora_there(paths: Paths) -> set[str]:
    """Return the digests of the prepared corpora; with the ones that no run uses."""
    return {name for name in _names(paths.corpora) if not name.startswith(".")}


def _results_bytes(bench: Workbench, run: RunSize) -> int:
    if run.results_bytes is not None or run.state is not RunState.COMPLETED:
        return run.results_bytes or 0
    manifest = read_manifest(bench.paths.results_of(run.run_id))  # of an earlier release
    return 0 if manifest is None else bytes_of(manifest)


def warning(bench: Workbench, expected_bytes: int = 0) -> str:
    """Return in words that the disk will soon be full; empty if it will not.

    It will if less than twice ``Settings.min_free_bytes`` and what is expected is free: that
    of the runs which wait or compute, and `expected_bytes` of one to come. What is expected
    is known within a factor of 2 (:func:`extraction_kit.estimate.disk_bytes`).
    """
    free, low = bench.free_bytes(), bench.settings.min_free_bytes
    need = expected_bytes + sum(_expected(bench))
    if free >= 2 * (need + low):
        return ""
    return (
        f"{bench.paths.shared} has {size_text(free)} free. What runs, waits or is launched now "
        f"may take {size_text(need)}, give or take a factor of 2, and below {size_text(low)} "
        "nothing can be launched. Free some space: `extraction-kit purge` shows what deleted "
        "runs hold"
    )


_needs: dict[str, int] = {}  # by run: what decides it is part of the run's identity


def _expected(bench: Workbench) -> Iterator[int]:
    with bench.store.read() as connection:
        active = records.ids_in(connection, sorted(ACTIVE))
        new = [records.run(connection, one) for one in active if one not in _needs]
    for run in new:
        if run is not None:
            # A damaged record, or of another release: the run itself tells what is the matter.
            with suppress(ExtractionKitError, LookupError, TypeError, ValueError):
                training = bench.training(run.training_id)
                corpus = bench.recorded_corpus(run.corpus)
                _needs[run.run_id] = disk_bytes(training, corpus, bench.config_of(run))
    return (_needs.get(run_id, 0) for run_id in active)


def tree_bytes(folder: Path) -> int:
    """Return the size of all files below `folder`; 0 if there is none."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a checkpoint that was replaced meanwhile
                total += (Path(parent) / name).lstat().st_size
    return total


def _names(folder: Path) -> Iterator[str]:
    return (path.name for path in folder.iterdir()) if folder.is_dir() else iter(())


def size_text(n: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= factor:
            return f"{n / factor:,.1f} {unit}"
    return f"{n} B"
