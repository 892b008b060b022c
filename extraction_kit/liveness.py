"""Signs of life: who a process is, what it last said, and since when nothing changed.

Three kinds of evidence, none of them a wall clock:

* a process identity (host, boot, PID namespace, pid, start time) that can be proven gone,
* a *beat* that a working process replaces, whose number grows,
* observations: since when, on this observer's own monotonic clock, a value is unchanged.
"""

import json
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self

from extraction_kit.atomic import write_json
from extraction_kit.views import Preview

_MINUTES_FROM_S, _HOURS_FROM_S = 120, 7200


def lasting(seconds: float) -> str:
    """Return a length of time in words: ``12 s``, ``5 min``, ``3 h``."""
    if seconds < _MINUTES_FROM_S:
        return f"{seconds:.0f} s"
    if seconds < _HOURS_FROM_S:
        return f"{seconds / 60:.0f} min"
    return f"{round(seconds / 3600, 1):g} h"


# --- processes --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process, named so that a recycled pid is never mistaken for it."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: str

    @classmethod
    def of_this_process(cls) -> Self:
        """Return the identity of the calling process."""
        return cls(
            host=platform.node(),
            boot_id=boot_id(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            started=start_of(os.getpid()) or "",
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build it from a ledger row; further keys are passed over."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def gone(self) -> bool | None:
        """Tell whether the process is provably gone.

        Returns
        -------
        bool or None
            True: it is gone (other boot of this host, or no such pid with this start time,
            or a zombie). False: it is there. None: it cannot be told from here, because it
            ran on another host or in another PID namespace.
        """
        if self.host != platform.node():
            return None
        if self.boot_id != boot_id():
            return True
        if self.pid_namespace != _pid_namespace():
            return None
        return start_of(self.pid) != self.started

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process.

        Returns
        -------
        bool
            True if it was sent; False if the process is gone, or is not of this host and
            PID namespace, or is somebody else's.
        """
        if self.gone() is not False:
            return False
        with suppress(OSError):
            if not hasattr(os, "pidfd_open"):  # macOS
                os.kill(self.pid, number)
                return True
            # The handle stays with the process, even if its pid is given to another one.
            handle = os.pidfd_open(self.pid)
            try:
                if self.gone() is False:
                    signal.pidfd_send_signal(handle, number)
                    return True
            finally:
                os.close(handle)
        return False


def boot_id() -> str:
    """Return what identifies this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return _output_of("sysctl", "-n", "kern.boottime")


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def start_of(pid: int) -> str | None:
    """Return the start time of a live process; None if there is none or it is a zombie.

    A process whose first thread has ended lives as long as another one: until then it holds
    its memory and its locks.
    """
    if not Path("/proc/self/stat").exists():  # macOS
        return _output_of("ps", "-o", "lstart=", "-p", str(pid)) or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, started = _state_and_start(stat)
    if state in _DEAD and all(state in _DEAD for state in _threads_of(pid)):
        return None
    return started


_DEAD = frozenset("ZX")


def _state_and_start(stat: str) -> tuple[str, str]:
    # The command name is in parentheses and may hold spaces; state and start follow it.
    after_name = stat.rpartition(")")[2].split()
    return after_name[0], after_name[19]


def _threads_of(pid: int) -> Iterator[str]:
    with suppress(OSError):  # the process, or a thread of it, may vanish at any moment
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                stat = (thread / "stat").read_text(encoding="utf-8", errors="replace")
                yield _state_and_start(stat)[0]


def _output_of(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed commands
    return result.stdout.strip()


# --- beats ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a working process last said of itself."""

    number: int
    phase: str = "starting"
    n_tokens_done: int = 0
    at: float = 0.0  # Unix time, for display only
    progress_at: float = 0.0  # Unix time of the last progress, for display only
    tokens_per_s: float | None = None
    l0: float | None = None
    fvu: float | None = None
    n_dead: int | None = None
    preview: Preview | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build it from plain values; further keys are passed over."""
        known = cls.__dataclass_fields__
        mine = {name: value for name, value in values.items() if name in known}
        return cls(**mine | {"preview": Preview.from_dict(mine.get("preview"))})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Beats(Protocol):
    """Where working processes leave their beats, and observers find them."""

    def write(self, run_id: str, attempt: int, beat: Beat) -> None:
        """Replace the beat of one attempt."""

    def read(self, run_id: str, attempt: int) -> Beat | None:
        """Return the last beat, or None if there is none that can be read."""

    def forget(self, run_id: str, attempt: int) -> None:
        """Remove the beat of an attempt that has ended."""


class BeatFiles:
    """Beats as files of one machine.

    Parameters
    ----------
    folder : Path
        Where they are, one file per attempt.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, run_id: str, attempt: int) -> Path:
        return self._folder / self._name(run_id, attempt)

    def _name(self, run_id: str, attempt: int) -> str:
        return f"{run_id}-a{attempt}.json"

    def write(self, run_id: str, attempt: int, beat: Beat) -> None:
        """Replace the file; not forced to disk, a lost beat costs nothing."""
        write_json(self._path(run_id, attempt), beat.to_dict(), durable=False)

    def read(self, run_id: str, attempt: int) -> Beat | None:
        """Return the last beat, or None if there is none that can be read."""
        try:
            text = self._path(run_id, attempt).read_text(encoding="utf-8")
            return Beat.from_dict(json.loads(text))
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def stamp(self, run_id: str, attempt: int) -> tuple[int, int] | None:
        """Return what every new beat changes, without reading it; None if there is none."""
        try:  # asked of hundreds of runs several times per second: no Path is made
            found = os.stat(f"{self._folder}/{self._name(run_id, attempt)}")  # noqa: PTH116
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def forget(self, run_id: str, attempt: int) -> None:
        """Remove the file of an attempt that has ended."""
        self._path(run_id, attempt).unlink(missing_ok=True)


# --- observations -----------------------------------------------------------------------


class Observations:
    """Since when, on this observer's monotonic clock, values are unchanged.

    Persisted per boot (a monotonic clock means nothing across boots), so that an observer
    that runs for a moment every minute can tell silence too. Writers may overwrite each
    other: a lost observation only delays a finding.

    Time counts only while somebody looks: of the time between two looks at most
    `longest_gap_s` is added. Whoever was frozen together with what he observes (a paused
    container or virtual machine) does not take his own absence for the other's silence.

    Parameters
    ----------
    folder : Path
        Where the file of this boot is kept.
    longest_gap_s : float
        Seconds between two looks beyond which nothing is known.
    clock : callable
        Monotonic seconds; ``time.monotonic`` does not count suspended time on Linux, so a
        laptop that slept makes nobody look silent.
    """

    def __init__(
        self,
        folder: Path,
        *,
        longest_gap_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._longest_gap_s = longest_gap_s
        self._clock = clock
        # key -> (value, seconds for which it was seen unchanged, when it was looked at last)
        self._seen: dict[str, tuple[str, float, float]] = {}

    @property
    def _path(self) -> Path:
        return self._folder / f"observed-{boot_id()[:8]}.json"

    def load(self) -> Self:
        """Read what earlier observers of this boot saw."""
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._seen = {
                key: (str(value), float(unchanged_s), float(at))
                for key, (value, unchanged_s, at) in raw.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            self._seen = {}
        return self

    def unchanged_s(self, key: str, value: object) -> float:
        """Note that `key` has `value` now; return for how many seconds that is so."""
        now, text = self._clock(), str(value)
        known, unchanged_s, seen_at = self._seen.get(key, ("", 0.0, now))
        if known == text and seen_at <= now:
            unchanged_s += min(now - seen_at, self._longest_gap_s)
        else:
            unchanged_s = 0.0
        self._seen[key] = (text, unchanged_s, now)
        return unchanged_s

    def known_s(self, key: str, value: object) -> float:
        """Return for how long `key` was seen to have `value`; note nothing."""
        known, unchanged_s, _ = self._seen.get(key, ("", 0.0, 0.0))
        return unchanged_s if known == str(value) else 0.0

    def save(self, *, keep: set[str]) -> None:
        """Write the observations whose key is in `keep`."""
        kept = {key: seen for key, seen in self._seen.items() if key in keep}
        if kept or self._seen:
            self._seen = kept
            write_json(self._path, {k: list(v) for k, v in kept.items()}, durable=False)
