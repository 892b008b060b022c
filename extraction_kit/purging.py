"""Removing files that are no longer wanted, and old enough: shown first, done when asked.

They are those of deleted runs, and corpora that no run uses: of such runs, or prepared for a
forecast that was followed by no launch.

The ledger says that a run is purged before its first file goes, so that nothing restores it
half. A purge that dies in between is finished by the next one.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from extraction_kit.atomic import remove_folder
from extraction_kit.corpora.corpus import asked_for
from extraction_kit.disk import corpora_there, size_text, tree_bytes
from extraction_kit.errors import BadSettings
from extraction_kit.ledger import records, tombstones
from extraction_kit.ledger.records import RunRecord
from extraction_kit.workbench import Workbench

OLDER_THAN = "30d"
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


@dataclass(frozen=True, kw_only=True)
class Doomed:
    """A deleted run whose files are to go, or have gone."""

    run_id: str
    training_id: str
    generation: int
    deleted_at: datetime
    n_bytes: int

    def __str__(self) -> str:
        """Return one line."""
        return (
            f"{self.run_id}  {self.training_id} g{self.generation}, deleted "
            f"{self.deleted_at:%Y-%m-%d %H:%M} UTC: {size_text(self.n_bytes)}"
        )


@dataclass(frozen=True, kw_only=True)
class Purge:
    """What a purge will remove, or removed: shown as text, done only when asked."""

    home: Path
    older_than: timedelta
    runs: tuple[Doomed, ...]
    corpora: Mapping[str, int]  # digest to bytes; no run uses them any more
    leftovers: tuple[Path, ...]  # of earlier purges, or of a process that ended late
    kept: tuple[Doomed, ...]  # deleted less long ago
    young_corpora: Mapping[str, int] = field(default_factory=dict)  # as yet
    problems: tuple[str, ...] = ()
    applied: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether there is something to remove."""
        return not self.applied and bool(self.runs or self.corpora or self.leftovers)

    @property
    def n_bytes(self) -> int:
        """Bytes of all of it; leftovers are not counted."""
        return sum(run.n_bytes for run in self.runs) + sum(self.corpora.values())

    def __str__(self) -> str:
        """Return all of it, one line each."""
        verb = "purged" if self.applied else "to purge"
        lines = [f"workspace   {self.home}"]
        lines += [f"{verb:<12}{run}" for run in self.runs]
        lines += [
            f"{verb:<12}corpus {digest[:16]}, which no run uses: {size_text(n_bytes)}"
            for digest, n_bytes in self.corpora.items()
        ]
        lines += [f"{verb:<12}{path}, left over" for path in self.leftovers]
        lines += [f"kept        {run}" for run in self.kept]
        lines += [
            f"kept        corpus {digest[:16]}, which no run uses, asked for less than "
            f"{_words(self.older_than)} ago: {size_text(n_bytes)}"
            for digest, n_bytes in self.young_corpora.items()
        ]
        lines += [f"PROBLEM     {problem}" for problem in self.problems]
        if self.runs or self.corpora or self.leftovers:
            frees = "freed" if self.applied else "frees"
            lines.append(
                f"{frees} {size_text(self.n_bytes)}; purged runs cannot be restored"
            )
        else:
            lines.append(
                f"nothing to purge: no run was deleted more than {_words(self.older_than)} ago, "
                "and no corpus without a run is as old"
            )
        return "\n".join(lines)

    __repr__ = __str__


def age_of(older_than: str | timedelta) -> timedelta:
    """Return an age in words (``30d``, ``12h``, ``90m``) as a `timedelta`.

    Raises
    ------
    BadSettings
        It is neither, or negative.
    """
    if isinstance(older_than, timedelta) and older_than >= timedelta(0):
        return older_than
    found = re.fullmatch(r"(\d{1,6})([dhm])", str(older_than).strip())
    if found is None:
        raise BadSettings(
            f"older_than={older_than!r}: a number of days, hours or minutes such as 30d, 12h or "
            "90m is allowed; 0d purges all deleted runs"
        )
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _words(age: timedelta) -> str:
    return f"{age.days} d" if age.days else f"{age.seconds // 60} min"


def plan(bench: Workbench, older_than: str | timedelta = OLDER_THAN) -> Purge:
    """Return what a purge would remove; change nothing."""
    age = age_of(older_than)
    with bench.store.read() as connection:
        deleted = records.deleted_runs(connection)
    before = bench.now() - age
    runs = [run for run in deleted if run.purged_at is None]
    doomed = [run for run in runs if _deleted_at(run) <= before]
    kept = [run for run in runs if _deleted_at(run) > before]
    purged = [run for run in deleted if run.purged_at is not None]
    with bench.store.read() as connection:
        used = tombstones.corpora_in_use(connection, but={run.run_id for run in doomed})
    corpora, young = _unused(bench, [*doomed, *purged], used, before=before.timestamp())
    return Purge(
        home=bench.paths.home,
        older_than=age,
        runs=tuple(_doomed(bench, run) for run in doomed),
        corpora=corpora,
        leftovers=tuple(_leftovers(bench, purged)),
        kept=tuple(_doomed(bench, run) for run in kept),
        young_corpora=young,
    )


def purge(bench: Workbench, older_than: str | timedelta = OLDER_THAN) -> Purge:
    """Do what :func:`plan` shows; return what was removed, and what could not be."""
    planned = plan(bench, older_than)
    by = bench.mover()
    gone = []
    for one in planned.runs:
        with bench.store.write() as connection:
            run = records.run(connection, one.run_id)
            given_up = run is not None and tombstones.give_up(
                connection, run.target, before=by.at - planned.older_than, by=by
            )
        if run is not None and given_up:  # else somebody restored or purged it meanwhile
            _remove(_files(bench, run))
            gone.append(one)
    _remove(planned.leftovers)
    corpora = _remove_corpora(bench, planned.corpora)
    with bench.store.read() as connection:
        deleted = records.deleted_runs(connection)
    left = _leftovers(bench, [run for run in deleted if run.purged_at is not None])
    problems = tuple(
        f"{path} could not be removed: look at its permissions, then purge again"
        for path in left
    )
    return replace(
        planned, runs=tuple(gone), corpora=corpora, problems=problems, applied=True
    )


def _deleted_at(run: RunRecord) -> datetime:
    assert run.deleted_at is not None  # noqa: S101 - for the type checker
    return run.deleted_at


def _doomed(bench: Workbench, run: RunRecord) -> Doomed:
    return Doomed(
        run_id=run.run_id,
        training_id=run.training_id,
        generation=run.generation,
        deleted_at=_deleted_at(run),
        n_bytes=sum(_bytes(path) for path in _files(bench, run)),
    )


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else tree_bytes(path)


def _files(bench: Workbench, run: RunRecord) -> Iterator[Path]:
    """Yield what there is of a run: results, what was staged, checkpoints, its mark."""
    paths = bench.paths
    staged = (paths.staging_of(run.run_id, number + 1) for number in range(run.attempt))
    possible = (
        paths.results_of(run.run_id),
        *staged,
        paths.checkpoints_of(run.run_id),
        paths.tombstone_of(run.run_id),
    )
    return (path for path in possible if path.exists())


def _leftovers(bench: Workbench, purged: list[RunRecord]) -> Iterator[Path]:
    paths = bench.paths
    for folder in (paths.results, paths.staging, paths.checkpoints, paths.corpora):
        yield from sorted(folder.glob(_hidden("*")))
    for run in purged:
        yield from _files(bench, run)


def _unused(
    bench: Workbench, runs: list[RunRecord], used: set[str], *, before: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Return the bytes of corpora that no run uses: those to remove, those asked for since.

    With its last run a corpus goes too; without a run it stays until it is as old.
    """
    of_runs, corpora = {run.corpus_digest for run in runs}, bench.paths.corpora
    old: dict[str, int] = {}
    young: dict[str, int] = {}
    for digest in corpora_there(bench.paths) - used:
        to_go = digest in of_runs or asked_for(corpora / digest) <= before
        (old if to_go else young)[digest] = tree_bytes(corpora / digest)
    return dict(sorted(old.items())), dict(sorted(young.items()))


def _remove_corpora(bench: Workbench, corpora: Mapping[str, int]) -> Mapping[str, int]:
    """Remove those that still nobody uses: no launch can begin while the lock is held."""
    hidden: dict[str, Path] = {}
    with bench.store.write() as connection:
        used = tombstones.corpora_in_use(connection)
        for digest in corpora.keys() - used:
            hidden[digest] = _hide(bench.paths.corpora / digest)
    for folder in hidden.values():
        remove_folder(folder)
    return {digest: n for digest, n in corpora.items() if digest in hidden}


def _remove(paths: Iterator[Path] | tuple[Path, ...]) -> None:
    for path in paths:
        if path.is_file():
            with suppress(OSError):  # not ours to remove: what is left is told afterwards
                path.unlink(missing_ok=True)
        else:  # at once for whoever looks, then file by file
            remove_folder(_hide(path))


def _hidden(name: str) -> str:
    return f".{name}.purged"


def _hide(folder: Path) -> Path:
    """Rename a folder out of every reader's sight; return its new name."""
    if folder.match(_hidden("*")):
        return folder
    hidden = folder.with_name(_hidden(folder.name))
    remove_folder(hidden)
    try:
        return folder.rename(hidden)
    except OSError:  # not ours to rename: what can be removed is
        return folder
