"""A folder through which a test holds other processes at a place, and reads what they did.

No part of it is in the product: :mod:`tests.acceptance.matrix.held` wraps the product's
functions in a process of the tests' own.
"""

import json
import os
import threading
import time
from pathlib import Path

N_BATCHES = 12
"""Batches of the run that every cell computes."""
CHECKPOINTS = (4, 8)
"""After how many batches a checkpoint is due; a last one is written when all are computed."""
MIDDLE = 6
"""After how many batches a run is held in its middle: two were computed since a checkpoint."""


class Script:
    """What holds where, what arrived there, and every batch that was computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    # --- in the process that is held ---

    def note(self, what, **facts):
        """Append one line; a line is one write, so lines of several processes never mix."""
        line = (
            json.dumps({"what": what, "pid": os.getpid(), "at": time.monotonic(), **facts})
            + "\n"
        )
        log = os.open(self.folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(log, line.encode())
        finally:
            os.close(log)

    def pause(self, place, attempt=0):
        """Note the arrival; wait here while `place` is held."""
        self.note("reached", place=place, attempt=attempt)
        hold = self._hold(place)
        if not hold.exists():
            return
        arrival = self.folder / f"at-{place}"
        arrival.with_suffix(".new").write_text(str(os.getpid()))
        arrival.with_suffix(".new").rename(arrival)
        clock = self.folder / f"clock-{os.getpid()}"
        mine = clock.with_suffix(
            f".{threading.get_ident()}"
        )  # two threads may wait at once
        while hold.exists():
            mine.write_text(repr(time.time()))
            mine.rename(clock)
            time.sleep(0.01)

    def holds(self, place):
        """Tell whether `place` is held now."""
        return self._hold(place).exists()

    def clock_offset_s(self):
        """Return by how much the wall clock of the held processes was moved."""
        return self._offset_s("clock.txt")

    def slept_s(self):
        """Return for how long the machine of the held processes was suspended."""
        return self._offset_s("slept.txt")

    def _offset_s(self, name):
        try:
            return float((self.folder / name).read_text())
        except FileNotFoundError:
            return 0.0

    # --- in the test ---

    def move_clock(self, seconds):
        """Let the wall clock of the held processes jump; monotonic ones stay as they are."""
        self._move("clock.txt", seconds)

    def sleep(self, seconds):
        """Be a machine that was suspended: wall clock and time since boot have gone on."""
        self._move("slept.txt", seconds)
        self._move("clock.txt", seconds)

    def _move(self, name, seconds):
        moved = self.folder / name
        moved.with_suffix(".new").write_text(repr(float(seconds)))
        moved.with_suffix(".new").rename(moved)

    def hold(self, *places):
        """Hold whoever comes to one of `places`."""
        for place in places:
            self._hold(place).touch()

    def release(self, place="*"):
        """Let everybody go on, or only who waits at `place`."""
        for hold in self.folder.glob(f"hold-{place}"):
            hold.unlink()

    def pid_at(self, place):
        """Return the pid of the process that waits at `place`, None if there is none."""
        try:
            return int((self.folder / f"at-{place}").read_text())
        except FileNotFoundError:
            return None

    def clock_of(self, pid):
        """Return what a held process believes the Unix time to be."""
        return float((self.folder / f"clock-{pid}").read_text())

    def lines(self, what=None):
        """Return the lines of the log (of one kind), in the order in which they happened."""
        try:
            text = (self.folder / "log").read_text()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in text.splitlines()]
        return [line for line in found if what in (None, line["what"])]

    def _hold(self, place):
        return self.folder / f"hold-{place}"
