"""A real PostgreSQL server of the tests' own, and a fresh database on it for each test."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_FOLDERS = ("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql*/bin")


def binaries() -> Path | None:
    """Return the folder of initdb and pg_ctl, the newest version first; None if absent."""
    found = [path for pattern in _FOLDERS for path in Path("/").glob(pattern[1:])]
    found = [path for path in sorted(found, reverse=True) if (path / "initdb").exists()]
    if found:
        return found[0]
    on_path = shutil.which("initdb")
    return None if on_path is None else Path(on_path).parent


@contextmanager
def server() -> Iterator[str]:
    """Run a server on a unix socket; yield the URL of its maintenance database.

    PostgreSQL refuses to run as root: then it runs as the user ``postgres``.
    """
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="xk-pg-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        options = {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid}
        # To a file: with a pipe the server, which inherits it, would never let go.
        with (folder / "log").open("ab") as log:
            subprocess.run(
                command,
                check=True,
                cwd=folder,
                stdout=log,
                stderr=log,
                timeout=120,
                **options,
            )

    try:
        call(
            "initdb", "-D", str(data), "-U", "xk", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=200"
        call(
            "pg_ctl", "-D", str(data), "-w", "-o", options, "-l", str(data / "log"), "start"
        )
        yield f"postgresql://xk@/postgres?host={folder}"
    finally:
        with suppress(subprocess.CalledProcessError):
            call("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


def fresh_database(maintenance_url: str) -> str:
    """Make an empty database; return its URL."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is tested

    name = f"xk_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(maintenance_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return maintenance_url.replace("/postgres?", f"/{name}?")
