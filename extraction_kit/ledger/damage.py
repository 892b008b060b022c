"""Tell a damaged SQLite ledger from one that is busy, new or missing, and put it aside."""

import sqlite3
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

from extraction_kit.ledger.schema import attempts, events, runs, trainings

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_NEEDED = {
    "alembic_version",
    *(table.name for table in (trainings, runs, attempts, events)),
}
_SIDE_FILES = ("-journal", "-wal", "-shm")


def damage_of(path: Path, *, busy_timeout_s: float = 30.0) -> str | None:
    """Return what is wrong with the SQLite ledger at `path`; None if it is sound or absent.

    A ledger that is locked, unreadable or of another release is not damaged: opening it
    says what is the matter then.
    """
    if not path.exists():
        return None
    uri = f"{path.absolute().as_uri()}?mode=rw"  # not ro: a crash's journal is rolled back
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=busy_timeout_s)) as connection:
            # A cell that breaks a rule of the schema is mended by row, the file is sound.
            connection.execute("PRAGMA ignore_check_constraints = ON")
            report = [line for (line,) in connection.execute("PRAGMA integrity_check")]
            names = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
            missing = _NEEDED - {name for (name,) in names}
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        return str(error) if code in _DAMAGED else None
    torn = [
        line for line in report if line != "ok" and not line.startswith("NULL value in")
    ]
    if torn:
        return " ".join(torn[0].split())
    if missing and missing != _NEEDED:  # all of them: an empty ledger is only new
        return f"without table {', '.join(sorted(missing))}"
    return None


def move_aside(path: Path, *, at: datetime) -> Path:
    """Rename a damaged SQLite ledger with its side files; return the unused name it got."""
    stem = f"{path.name}.damaged-{at:%Y%m%d-%H%M%S}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
    aside = next(one for name in names if not (one := path.with_name(name)).exists())
    for suffix in _SIDE_FILES:  # first: a journal must never meet another database
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return path.rename(aside)
