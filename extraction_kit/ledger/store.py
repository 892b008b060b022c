"""The connection to the ledger: transactions, migrations, and how their errors read.

No connection outlives a ``with`` block, so a process may fork at any time in between, and
a reader never keeps a lock. There is one writer at a time on both databases: SQLite by
``BEGIN IMMEDIATE``, PostgreSQL by an advisory lock that lasts as long as the transaction.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection as Connection  # noqa: PLC0414 - named by who imports only us
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    InternalError,
    OperationalError,
)
from sqlalchemy.pool import NullPool

from extraction_kit.atomic import unusable
from extraction_kit.config import masked
from extraction_kit.errors import BadSettings, LedgerBusy, LedgerConflict, WorkspaceUnusable

HEAD = "0003"
"""The newest migration; a test compares it with the folder."""

SAFE_WAL = (3, 51, 3)
"""SQLite below this has a bug that can corrupt a WAL database (sqlite.org/wal.html)."""

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_MIGRATIONS = Path(__file__).parent / "migrations"


class Store:
    """One ledger database.

    Parameters
    ----------
    url : str
        SQLAlchemy URL; SQLite or PostgreSQL (``postgresql://user:password@host/name``).
    busy_timeout_s : float
        How long a writer waits for another one before `LedgerBusy`.
    frozen_after_s : float
        How long a PostgreSQL transaction may stand still before the server rolls it back:
        a process that freezes inside one does not lock the others out for ever.

    Raises
    ------
    BadSettings
        The URL cannot be read, or names a database that the ledger does not know.
    """

    def __init__(
        self, url: str, *, busy_timeout_s: float = 30.0, frozen_after_s: float = 20.0
    ) -> None:
        self.name = str(masked(url))  # for messages: without the password
        self._busy_timeout_s = busy_timeout_s
        self._frozen_after_s = frozen_after_s
        self._engine = _engine_of(url)
        self.is_sqlite = self._engine.dialect.name == "sqlite"
        prepare = self._prepare_sqlite if self.is_sqlite else self._prepare_postgresql
        event.listen(self._engine, "connect", prepare)
        event.listen(self._engine, "begin", _begin_writing)

    @classmethod
    def at(cls, path: Path, **options: Any) -> "Store":  # noqa: ANN401 - passed on
        """Open the SQLite ledger at `path`."""
        return cls(f"sqlite:///{path}", **options)

    def _prepare_sqlite(self, connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout = {int(self._busy_timeout_s * 1000)}",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    def _prepare_postgresql(self, connection: Any, _record: object) -> None:  # noqa: ANN401 - psycopg's
        limits_s = {
            "lock_timeout": self._busy_timeout_s,
            "statement_timeout": self._busy_timeout_s + 30,  # a lock is waited for in one
            "idle_in_transaction_session_timeout": self._frozen_after_s,
        }
        connection.autocommit = True
        for name, limit_s in limits_s.items():
            connection.execute(f"SET {name} = {int(limit_s * 1000)}")
        connection.autocommit = False

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open one transaction that takes the write lock at once."""
        with self._named_errors(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a connection for reading; each statement sees the newest commit."""
        with (
            self._named_errors(),
            self._engine.connect().execution_options(
                isolation_level="AUTOCOMMIT"
            ) as reader,
        ):
            yield reader

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise LedgerConflict(f"another process was faster: {error.orig}") from error
        except DatabaseError as error:
            raise self._named(error) from error.orig

    def _named(self, error: DatabaseError) -> Exception:
        words = str(error.orig)
        if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            return WorkspaceUnusable(
                f"the ledger {self.name} is damaged ({words}). Type: extraction-kit repair; it "
                "is put aside, and built anew from the published results"
            )
        if not isinstance(error, (OperationalError, InternalError)):
            return error  # a mistake of ours: it keeps its name
        if any(word in words for word in ("locked", "busy", "lock timeout")):
            return LedgerBusy(
                f"the ledger {self.name} stayed locked for {self._busy_timeout_s:g} s by another "
                "program: close whatever has it open for writing, then do the same again"
            )
        return WorkspaceUnusable(
            f"the ledger {self.name} cannot be used ({words.strip()}): check that "
            + (
                "its folder exists, is writable and has free space"
                if self.is_sqlite
                else "the server runs and EXTRACTION_KIT_LEDGER_URL is right"
            )
            + "; `extraction-kit doctor` looks at each of these"
        )

    # --- schema ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Create or migrate the schema; cheap when there is nothing to do.

        Raises
        ------
        WorkspaceUnusable
            The folder is not writable, or the ledger was made by a newer extraction_kit.
        """
        if self.is_sqlite:
            self._make_folder()
        if self.version() == HEAD:
            return
        with self.write() as connection:  # the lock: whoever comes second finds it done
            if _version_of(connection) != HEAD:
                self._migrate(connection, HEAD)
        if self.is_sqlite:
            self._choose_journal()

    def version(self) -> str | None:
        """Return the migration that the database is at, None if it is empty."""
        with self.read() as connection:
            return _version_of(connection)

    def _make_folder(self) -> None:
        folder = Path(str(self._engine.url.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable(folder, error) from error

    def _migrate(self, connection: Connection, revision: str) -> None:
        # Alembic costs 0.1 s of import: only when there is something to migrate.
        from alembic import command  # noqa: PLC0415
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            found = _version_of(connection)
            raise WorkspaceUnusable(
                f"the ledger {self.name} is at version {found}, this extraction_kit knows up to "
                f"{HEAD}: it was used by a newer release. Type: pip install -U extraction_kit"
            ) from error

    def _choose_journal(self) -> None:
        mode = "WAL" if sqlite3.sqlite_version_info >= SAFE_WAL else "DELETE"
        with self.read() as connection:
            connection.execute(text(f"PRAGMA journal_mode = {mode}"))


_DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def _engine_of(url: str) -> Engine:
    try:
        parsed = make_url(url)
        driver = _DRIVERS[parsed.drivername]
    except (ArgumentError, KeyError) as error:
        raise BadSettings(
            f"ledger_url={masked(url)!r} cannot be used: sqlite:///path or "
            "postgresql://user:password@host/name is allowed"
        ) from error
    try:
        return create_engine(parsed.set(drivername=driver), poolclass=NullPool)
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"ledger_url={masked(url)!r} needs the package {error.name}. "
            "Type: pip install 'extraction_kit[postgres]'"
        ) from error


_WRITERS_LOCK = 0x78_6B_6C  # one number for all ledgers of a database; writes are rare


def _begin_writing(connection: Connection) -> None:
    # A read runs in autocommit: BEGIN would hold a lock between its statements.
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")


def _version_of(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])
