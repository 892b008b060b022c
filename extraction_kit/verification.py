"""Read every byte of what was published, and say what is not as it was written.

Nothing is changed but the ledger's events: a damaged run is left out of the views from then
on (column ``damage`` of ``runs``), and taken in again once it is found sound.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from extraction_kit.catalog.publish import MANIFEST, problem_of, read_manifest
from extraction_kit.corpora import checking
from extraction_kit.ledger import events, records
from extraction_kit.ledger.records import RunRecord
from extraction_kit.lifecycle import RunState
from extraction_kit.status import DAMAGED, SOUND_AGAIN, damage_by_run
from extraction_kit.workbench import Workbench

Progress = Callable[[int, int, str], None]
"""Called with bytes read, bytes in all, and what is being read."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What is wrong with one run, corpus or vocabulary, and what to do."""

    subject: str
    problems: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        """Return one line for each problem, and the advice."""
        lines = [f"DAMAGED     {self.subject}: {problem}" for problem in self.problems]
        return "\n".join([*lines, f"            {self.advice}"])


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification found; prints as text."""

    home: Path
    n_results: int
    n_corpora: int
    n_bytes: int
    """Bytes that were read."""
    damaged: tuple[Damage, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged

    def __str__(self) -> str:
        """Return all of it."""
        results = f"{self.n_results:,} result" + ("" if self.n_results == 1 else "s")
        corpora = f"{self.n_corpora:,} " + ("corpus" if self.n_corpora == 1 else "corpora")
        read = f"{results}, {corpora}, {self.n_bytes / 2**20:,.1f} MiB read"
        verdict = (
            "all of it is as it was published"
            if self.is_sound
            else f"{len(self.damaged):,} damaged or missing, the others are sound"
        )
        return "\n".join([*map(str, self.damaged), f"{self.home}: {read}; {verdict}"])

    __repr__ = __str__


def verify(bench: Workbench, progress: Progress | None = None) -> Verification:
    """Hash every file of every published result, and the corpora and vocabularies.

    Results are compared with the sha256, size and row counts of their manifests, the tokens
    of a corpus with its digest, and a vocabulary with the sha256 that its corpora recorded.
    Deleted runs are read too, since they can be restored; purged ones have no files. Takes
    about 1 s per GB.
    """
    with bench.store.read() as connection:
        found = records.all_runs(connection) + records.deleted_runs(connection)
    completed = {run.run_id: run for run in found if run.state is RunState.COMPLETED}
    folders = {
        run_id: bench.paths.results_of(run_id)
        for run_id, run in completed.items()
        if run.purged_at is None
    }
    folders |= _others(bench.paths.results, known=completed)
    corpora = _below(bench.paths.corpora)
    reading = _Reading(progress, sum(map(_size, [*folders.values(), *corpora])))
    damaged, known = [], damage_by_run(bench)
    for run_id, folder in sorted(folders.items()):
        run = completed.get(run_id)
        problems = tuple(_problems(folder, reading))
        if run is not None:
            _note(bench, run, "; ".join(problems), known=known.get(run_id, ""))
        if problems:
            advice = _advice(run)
            damaged.append(
                Damage(subject=f"run {run_id}", problems=problems, advice=advice)
            )
    for folder in corpora:
        reading.what = f"corpus {folder.name[:12]}"
        problems = tuple(checking.problems_of(folder, reading.done))
        if problems:
            damaged.append(
                Damage(
                    subject=f"corpus {folder.name[:12]}",
                    problems=problems,
                    advice="Move what is damaged away and prepare the same texts again: "
                    "ws.corpus(...). Until then examples of its runs have no text",
                )
            )
    return Verification(
        home=bench.paths.home,
        n_results=len(folders),
        n_corpora=len(corpora),
        n_bytes=reading.n_bytes,
        damaged=tuple(damaged),
    )


@dataclass
class _Reading:
    """How much is read, told to who wants to know."""

    progress: Progress | None
    total: int
    n_bytes: int = 0
    what: str = field(default="")

    def done(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes
        if self.progress is not None:
            self.progress(self.n_bytes, max(self.total, self.n_bytes), self.what)


def _problems(folder: Path, reading: _Reading) -> Iterator[str]:
    reading.what = folder.name
    manifest = read_manifest(folder)
    if manifest is None:
        is_there = folder.is_dir()
        yield f"{folder / MANIFEST if is_there else folder} is missing" + (
            " or torn" if is_there else ""
        )
        return
    for name, expected in manifest["files"].items():
        problem = problem_of(folder / name, expected)
        reading.done(expected["bytes"])
        if problem:
            yield problem


def _advice(run: RunRecord | None) -> str:
    if run is None:
        return (
            "The ledger has no such completed run: type `extraction-kit repair`, or move the "
            "folder away"
        )
    return (
        "Put the folder back from a backup and verify again. Without one, compute it anew: "
        f"launch the same content with generation={run.generation + 1}"
    )


def _note(bench: Workbench, run: RunRecord, text: str, *, known: str) -> None:
    """Record what is new: damage, other damage, or that there is none any more."""
    if text == known:
        return
    by = bench.mover()
    with bench.store.write() as connection:
        events.record(
            connection,
            run.run_id,
            attempt=run.attempt,
            at=by.at,
            kind=DAMAGED if text else SOUND_AGAIN,
            actor=by.label,
            text=text or "its files are as they were published",
        )


def _others(results: Path, *, known: Container[str]) -> dict[str, Path]:
    """Return the folders of results that the ledger does not know."""
    runs = {one.name.removeprefix("run_id="): one for one in results.glob("run_id=*")}
    return {run_id: folder for run_id, folder in runs.items() if run_id not in known}


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(one for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet") if path.is_file())
