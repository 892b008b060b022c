"""Restore ledger rows of completed runs from their published results.

What is on disk as a whole, sound result is the truth about data; a ledger that lost or
contradicts it is brought in line. Nothing is computed and nothing is deleted: a damaged
ledger is renamed, a damaged result is reported. Idempotent, and safe beside a worker.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from extraction_kit.config import Settings
from extraction_kit.embedded import server_url, waiting_lock
from extraction_kit.errors import LedgerConflict, TrainingConflict, WorkspaceUnusable
from extraction_kit.jobqueue import JobQueue
from extraction_kit.ledger import restoring
from extraction_kit.ledger.damage import damage_of, move_aside
from extraction_kit.ledger.restoring import PublishedRun, Row, Seen, is_damaged
from extraction_kit.ledger.store import Store
from extraction_kit.lifecycle import RunState
from extraction_kit.paths import Paths
from extraction_kit.published import Unfit, read_published
from extraction_kit.workbench import Workbench

_ROUNDS = 3  # others may change the ledger between a look and a write; not for ever


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run whose ledger rows are to be restored, and why."""

    published: PublishedRun
    seen: Seen
    why: str

    def __str__(self) -> str:
        """Return one line."""
        facts = self.published.facts
        name = f"{facts['training_id']} g{facts['generation']}"
        return f"{self.published.run_id}  {name}: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a repair cannot mend, and what a person can do about it."""

    subject: str
    text: str

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair will do, or did: shown as text, applied only when asked."""

    home: Path
    ledger: str  # what happens to the ledger as a whole; empty if it is sound
    steps: tuple[Step, ...]
    problems: tuple[Problem, ...]
    n_sound: int  # results that the ledger agrees with
    applied: bool = False

    @property
    def is_needed(self) -> bool:
        """Whether there is something to do."""
        return not self.applied and bool(self.steps or self.ledger)

    @property
    def is_sound(self) -> bool:
        """Whether ledger and results agree and nothing is left for a person."""
        return not self.is_needed and not self.problems

    def __str__(self) -> str:
        """Return all of it, one line each."""
        verb = "restored" if self.applied else "to restore"
        lines = [f"workspace   {self.home}"]
        lines += [f"ledger      {self.ledger}"] if self.ledger else []
        lines += [f"{verb:<12}{step}" for step in self.steps]
        lines += [f"PROBLEM     {problem}" for problem in self.problems]
        if self.n_sound:
            lines.append(f"sound       {_count(self.n_sound, 'completed run')}")
        if not (self.steps or self.ledger or self.problems):
            lines.append("nothing to repair: ledger and results agree")
        return "\n".join(lines)

    __repr__ = __str__


def plan(home: Path, settings: Settings | None = None) -> Repair:
    """Return what a repair of the workspace at `home` would do; change nothing.

    Reads every byte of every result: about 1 s per GB.

    Raises
    ------
    WorkspaceUnusable
        There is no workspace at `home`, or its ledger is of a newer release.
    """
    settings = settings or Settings.from_environment()
    paths = _existing(home, settings)
    whole = _ledger_to_build(paths, settings)
    bench = _unopened(paths, settings) if whole else Workbench.open(home, settings)
    store = None if whole else bench.store
    return _compare(_Results.of(bench), store, paths=paths, ledger=whole)


def repair(home: Path, settings: Settings | None = None) -> Repair:
    """Do what :func:`plan` shows; return what was done and what is left for a person.

    Raises
    ------
    WorkspaceUnusable, LedgerBusy
        As the message says; what was restored until then stays restored.
    """
    settings = settings or Settings.from_environment()
    paths = _existing(home, settings)
    whole = _put_aside_if_damaged(paths, settings)
    bench = Workbench.open(home, settings)
    results = _Results.of(bench)
    done: dict[str, Step] = {}
    refused: dict[str, str] = {}
    now = _compare(results, bench.store, paths=paths, ledger=whole)
    for _ in range(_ROUNDS):
        for step in now.steps:
            run_id = step.published.run_id
            try:
                if _restored(bench, step):
                    done[run_id] = step
            except (LedgerConflict, TrainingConflict) as error:
                refused[run_id] = str(error)
        now = _compare(results, bench.store, paths=paths, ledger=whole)
        if not now.steps:
            break
    return replace(
        now,
        steps=tuple(done.values()),
        problems=(*now.problems, *(_refusal(step, refused) for step in now.steps)),
        n_sound=max(0, now.n_sound - len(done)),
        applied=True,
    )


def _restored(bench: Workbench, step: Step) -> bool:
    with bench.store.write() as connection:
        return restoring.restore(
            connection, step.published, seen=step.seen, by=bench.mover()
        )


def _refusal(step: Step, refused: Mapping[str, str]) -> Problem:
    because = refused.get(step.published.run_id, "it kept changing meanwhile")
    return Problem(
        subject=step.published.run_id,
        text=f"not restored, the ledger refuses ({because}). Another of its rows claims the "
        "identity or the job of this run: `extraction-kit status` lists them all",
    )


# --- the ledger as a whole ------------------------------------------------------------------


def _existing(home: Path, settings: Settings) -> Paths:
    """Return the tree at `home`; a mistyped one must not become a new, empty workspace."""
    paths = Paths.of(home, settings)
    traces = (paths.ledger, paths.results, paths.checkpoints)
    named = settings.ledger_url is not None
    if paths.home.is_dir() and (named or any(trace.exists() for trace in traces)):
        return paths
    raise WorkspaceUnusable(
        f"{paths.home} is no workspace: it has neither a ledger.sqlite nor results. Type "
        "extraction-kit --workspace DIR repair with the directory that holds them, usually "
        "named .extraction_kit"
    )


def _unopened(paths: Paths, settings: Settings) -> Workbench:
    """Return the workbench of a ledger that is not to be touched yet."""
    store, queue = Store.at(paths.ledger), JobQueue(server_url(paths))
    return Workbench(paths=paths, settings=settings, store=store, queue=queue)


def _ledger_to_build(paths: Paths, settings: Settings) -> str:
    """Say what happens to a ledger file that is missing or damaged; empty if it is sound."""
    if settings.ledger_url is not None:
        return ""
    if not paths.ledger.exists():
        return f"{paths.ledger} is missing: a new one is built. {_lost(paths)}"
    damage = damage_of(paths.ledger)
    if damage is None:
        return ""
    return (
        f"{paths.ledger} is damaged ({damage}): it is kept beside as "
        f"{paths.ledger.name}.damaged-<date>, and a new one is built. {_lost(paths)}"
    )


def _put_aside_if_damaged(paths: Paths, settings: Settings) -> str:
    with waiting_lock(paths.run / "repair.lock"):  # of two repairs one moves it
        whole = _ledger_to_build(paths, settings)
        if whole and paths.ledger.exists():
            aside = move_aside(paths.ledger, at=datetime.now().astimezone())
            whole = (
                f"the damaged one is kept as {aside}, a new one was built. {_lost(paths)}"
            )
        elif whole:
            whole = f"{paths.ledger} was missing, a new one was built. {_lost(paths)}"
        if whole:
            Store.at(paths.ledger).prepare()
    return whole


def _lost(paths: Paths) -> str:
    unfinished = [
        folder.name
        for folder in _folders(paths.checkpoints)
        if not paths.results_of(folder.name).exists()
    ]
    kept = f" ({', '.join(unfinished)} left checkpoints)" if unfinished else ""
    return (
        "Results know completed runs only: runs that were not completed, events and refusals "
        "cannot be restored, nor trainings without a result. Register and launch those "
        f"again; what has a checkpoint continues from it{kept}. Labels were in the ledger only: "
        "ws.import_labels(...) reads back a CSV that ws.export_labels(...) wrote. Deleted runs "
        "stay deleted; that a run was purged is not known any more"
    )


# --- results against ledger -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Results:
    """All that lies in the results folder, read and verified once."""

    sound: Mapping[str, PublishedRun]
    unfit: Mapping[str, Unfit]  # by the run that the folder is named for, else by its name

    @classmethod
    def of(cls, bench: Workbench) -> "_Results":
        sound: dict[str, PublishedRun] = {}
        unfit: dict[str, Unfit] = {}
        for folder in _folders(bench.paths.results):
            found = read_published(bench, folder)
            if isinstance(found, Unfit):
                unfit[found.run_id or folder.name] = found
            else:
                sound[found.run_id] = found
        return cls(sound=sound, unfit=unfit)

    def oldest_first(self) -> list[PublishedRun]:
        return sorted(
            self.sound.values(), key=lambda one: (one.facts["created_at"], one.run_id)
        )


def _folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    visible = (one for one in parent.iterdir() if not one.name.startswith("."))
    return sorted(one for one in visible if one.is_dir())


def _compare(
    results: _Results, store: Store | None, *, paths: Paths, ledger: str
) -> Repair:
    known: dict[str, Seen] = {}
    trainings: dict[str, Row] = {}
    if store is not None:
        with store.read() as connection:
            known = restoring.look(connection)
            trainings = restoring.registered(connection)
    foreign = _of_other_trainings(results, trainings)
    ours = [one for one in results.oldest_first() if one.run_id not in foreign]
    steps = []
    for published in ours:
        registered = trainings.get(published.training["training_id"])
        seen = replace(known.get(published.run_id, Seen()), training=registered)
        placed = _placed(published, seen)
        why = restoring.contradiction(placed, seen)
        if why:
            steps.append(Step(published=placed, seen=seen, why=why))
    unfit = (
        Problem(subject=one.subject, text=one.text)
        for run_id, one in results.unfit.items()
        if not restoring.is_deleted(known.get(run_id, Seen()))
        and not (run_id and paths.tombstone_of(run_id).exists())
    )
    return Repair(
        home=paths.home,
        ledger=ledger,
        steps=tuple(steps),
        problems=(*unfit, *foreign.values(), *_without_result(known, results, paths)),
        n_sound=len(ours) - len(steps),
    )


def _placed(published: PublishedRun, seen: Seen) -> PublishedRun:
    """Leave the recorded folder if it is the same one under another name."""
    recorded = None if seen.run is None else seen.run["results_dir"]
    with suppress(OSError):
        if recorded and Path(recorded).samefile(published.facts["results_dir"]):
            return replace(published, facts={**published.facts, "results_dir": recorded})
    return published


def _of_other_trainings(
    results: _Results, trainings: Mapping[str, Row]
) -> dict[str, Problem]:
    """Return the results whose training id stands for other content now."""
    holders = {name: row for name, row in trainings.items() if not is_damaged(row)}
    foreign = {}
    for published in results.oldest_first():
        row = published.training
        holder = holders.setdefault(row["training_id"], row)
        if holder["digest"] != row["digest"]:
            foreign[published.run_id] = Problem(
                subject=published.run_id,
                text=f"its result is of training {row['training_id']!r} with digest "
                f"{row['digest'][:12]}, but that id stands for digest {holder['digest'][:12]}: "
                "not restored, a training never changes under its id. Its files can be read "
                f"directly in {published.facts['results_dir']}",
            )
    return foreign


def _without_result(
    known: Mapping[str, Seen], results: _Results, paths: Paths
) -> Iterator[Problem]:
    """Yield the completed runs whose result is gone; what is damaged is reported as such."""
    for run_id, seen in sorted(known.items()):
        run = seen.run
        is_completed = run is not None and run["state"] == RunState.COMPLETED
        if run is None or not is_completed or restoring.is_deleted(seen):
            continue
        if run_id not in results.sound and run_id not in results.unfit:
            yield Problem(
                subject=run_id,
                text=f"the ledger says completed, but {paths.results_of(run_id)} is missing. "
                "Put it back from a backup, or check EXTRACTION_KIT_SHARED and --workspace; "
                "without the files, only computing it anew helps: launch it with "
                f"generation={run['generation'] + 1}",
            )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
