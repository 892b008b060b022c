"""Signs of life: who a process is, what it last said, and since when nothing changed.

Three kinds of evidence, none of them a wall clock:

* a process identity (host, boot, PID namespace, pid, start time) that can be proven gone,
* a *beat file* that a working process replaces, whose number grows,
* observations: since when, on this observer's own monotonic clock, a value is unchanged.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from extraction_kit.atomic import write_json

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
    """Return the start time of a live process; None if there is none or it is a zombie."""
    if not Path("/proc/self/stat").exists():  # macOS
        return _output_of("ps", "-o", "lstart=", "-p", str(pid)) or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name is in parentheses and may hold spaces; state and start follow it.
    after_name = stat.rpartition(")")[2].split()
    state, started = after_name[0], after_name[19]
    return None if state in {"Z", "X"} else started


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

    def write(self, path: Path) -> None:
        """Replace the beat file; not forced to disk, a lost beat costs nothing."""
        write_json(path, asdict(self), durable=False)


def read_beat(path: Path) -> Beat | None:
    """Return the last beat, or None if there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(Beat)}
        return Beat(**{name: value for name, value in values.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


# --- observations -----------------------------------------------------------------------


class Observations:
    """Since when, on this observer's monotonic clock, values are unchanged.

    Persisted per boot (a monotonic clock means nothing across boots), so that an observer
    that runs for a moment every minute can tell silence too. Writers may overwrite each
    other: a lost observation only delays a finding.

    Parameters
    ----------
    folder : Path
        Where the file of this boot is kept.
    clock : callable
        Monotonic seconds; ``time.monotonic`` does not count suspended time on Linux, so a
        laptop that slept makes nobody look silent.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._changed = False

    @property
    def _path(self) -> Path:
        return self._folder / f"observed-{boot_id()[:8]}.json"

    def load(self) -> Self:
        """Read what earlier observers of this boot saw."""
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._seen = {key: (str(value), float(at)) for key, (value, at) in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._seen = {}
        self._changed = False
        return self

    def unchanged_s(self, key: str, value: object) -> float:
        """Note that `key` has `value` now; return for how many seconds that is so."""
        now, text = self._clock(), str(value)
        known = self._seen.get(key)
        if known is None or known[0] != text or known[1] > now:
            self._seen[key] = (text, now)
            self._changed = True
            return 0.0
        return now - known[1]

    def save(self, *, keep: set[str]) -> None:
        """Write the observations whose key is in `keep`, if anything changed."""
        kept = {key: value for key, value in self._seen.items() if key in keep}
        if self._changed or len(kept) != len(self._seen):
            self._seen = kept
            write_json(self._path, {k: list(v) for k, v in kept.items()}, durable=False)
            self._changed = False
