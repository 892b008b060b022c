"""Freeze a process (SIGSTOP), but not within its milliseconds of writing to a SQLite ledger.

Whoever is frozen there keeps the file locked for all until it thaws or is killed: others wait
and say `LedgerBusy`, nothing can be decided. That is told in the README, and no test's subject.
PostgreSQL ends such a transaction by itself.
"""

import os
import signal
from pathlib import Path

from extraction_kit.errors import LedgerBusy
from extraction_kit.ledger.store import Store
from tests.waiting import until

_PATIENCE_S = 0.5
"""How long a writer that is not frozen may keep the lock."""


def freeze(pid, bench):
    """Freeze a process of a workspace where it leaves the ledger to others."""

    def frozen_outside_a_write():
        os.kill(pid, signal.SIGSTOP)
        until(lambda: is_frozen(pid), f"process {pid} to freeze")
        if _ledger_is_free(bench):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    until(frozen_outside_a_write, f"process {pid} to be outside of a write")


def is_frozen(pid):
    """Tell whether a process is stopped (Linux)."""
    return state_in(Path(f"/proc/{pid}/stat")) == "T"


def state_in(stat):
    """Return the letter of a process's state."""
    return stat.read_text(errors="replace").rpartition(")")[2].split()[0]


def _ledger_is_free(bench):
    if not bench.store.is_sqlite:
        return True
    other = Store.at(bench.paths.ledger, busy_timeout_s=_PATIENCE_S)
    try:
        with other.write():
            return True
    except LedgerBusy:
        return False
