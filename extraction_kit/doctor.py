"""What is wrong with this machine for extractions, and what to do about each finding."""

import platform
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from extraction_kit import disk, embedded
from extraction_kit.config import Settings
from extraction_kit.errors import ExtractionKitError
from extraction_kit.ledger.store import SAFE_WAL
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench


class Grade(StrEnum):
    """How a check came out."""

    GOOD = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: what is so, and what to do if it is not good."""

    subject: str
    grade: Grade
    text: str

    @property
    def is_problem(self) -> bool:
        """Whether an extraction cannot run like this."""
        return self.grade is Grade.PROBLEM

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.grade:<8}{self.subject:<10}{self.text}"


def examine(home: Path) -> list[Finding]:
    """Check python, torch, workspace, ledger, server, worker and disk; start nothing.

    Parameters
    ----------
    home : Path
        The workspace; made if it does not exist.
    """
    findings = [_python(), _torch()]
    try:
        bench = Workbench.open(home, Settings.from_environment())
    except ExtractionKitError as error:
        return [
            *findings,
            Finding(subject="workspace", grade=Grade.PROBLEM, text=str(error)),
        ]
    findings.append(Finding(subject="workspace", grade=Grade.GOOD, text=str(home)))
    checks: tuple[Callable[[Workbench], Iterator[Finding]], ...] = (
        _ledger,
        _server,
        _worker,
        _disk,
    )
    return findings + [finding for check in checks for finding in check(bench)]


def _python() -> Finding:
    text = f"{platform.python_version()} at {sys.executable}, extraction_kit {__version__}"
    return Finding(subject="python", grade=Grade.GOOD, text=text)


def _torch() -> Finding:
    try:
        found = f"{version('torch')}, transformers {version('transformers')}"
    except PackageNotFoundError as error:
        text = f"{error.name} is not installed. Type: pip install {error.name}"
        return Finding(subject="torch", grade=Grade.PROBLEM, text=text)
    return Finding(subject="torch", grade=Grade.GOOD, text=found)


def _ledger(bench: Workbench) -> Iterator[Finding]:
    text = f"{bench.store.name}, schema {bench.store.version()}"
    if not bench.store.is_sqlite or sqlite3.sqlite_version_info >= SAFE_WAL:
        yield Finding(subject="ledger", grade=Grade.GOOD, text=text)
        return
    wanted = ".".join(map(str, SAFE_WAL))
    note = f"{text}; SQLite {sqlite3.sqlite_version} is below {wanted}: rollback journal, no WAL"
    yield Finding(subject="ledger", grade=Grade.NOTE, text=note)


def _server(bench: Workbench) -> Iterator[Finding]:
    if not bench.uses_own_server and not embedded.server_answers(bench.paths):
        try:
            binary = embedded.server_binary(bench.paths)
        except ExtractionKitError as error:
            yield Finding(subject="server", grade=Grade.PROBLEM, text=str(error))
            return
        text = f"not running ({binary}); a launch starts it, or type `extraction-kit up`"
        yield Finding(subject="server", grade=Grade.NOTE, text=text)
        return
    try:
        report = bench.queue.report()
    except ExtractionKitError as error:
        yield Finding(subject="server", grade=Grade.PROBLEM, text=str(error))
        return
    text = f"answers, version {report.version}, {report.n_queued} waiting"
    yield Finding(subject="server", grade=Grade.GOOD, text=text)
    for problem in report.problems:
        yield Finding(subject="server", grade=Grade.PROBLEM, text=problem)
    for warning in report.warnings:
        yield Finding(subject="server", grade=Grade.NOTE, text=warning)


def _worker(bench: Workbench) -> Iterator[Finding]:
    pid = embedded.worker_pid(bench.paths)
    if pid is not None:
        running = embedded.worker_version(bench.paths)
        text = f"alive, pid {pid}, version {running}"
        other = running != __version__
        hint = (
            f"; this is {__version__}: it is replaced at the next launch" if other else ""
        )
        grade = Grade.NOTE if other else Grade.GOOD
        yield Finding(subject="worker", grade=grade, text=text + hint)
        return
    text = "not running; a launch starts it, or type `extraction-kit up`"
    yield Finding(subject="worker", grade=Grade.NOTE, text=text)


def _disk(bench: Workbench) -> Iterator[Finding]:
    free = bench.free_bytes()
    text = f"{free / 2**30:.1f} GiB free at {bench.paths.shared}"
    if free < bench.settings.min_free_bytes:
        need = bench.settings.min_free_bytes / 2**20
        text += f"; a launch needs {need:.0f} MiB: free some space"
        yield Finding(subject="disk", grade=Grade.PROBLEM, text=text)
        return
    warning = disk.warning(bench)
    grade = Grade.NOTE if warning else Grade.GOOD
    yield Finding(subject="disk", grade=grade, text=warning or text)
