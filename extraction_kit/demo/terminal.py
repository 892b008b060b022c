"""What a person sees while something takes time: a bar in a terminal, else lines."""

import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

_TICK_S = 0.5
_LINE_EVERY_S = 10.0
_SCALED_FROM = 10_000  # 45.2k instead of 45213
_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} {elapsed}{postfix}"


def is_terminal() -> bool:
    """Tell whether a person's terminal shows what is printed."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def shows_colors() -> bool:
    """Tell whether text may be coloured; see https://no-color.org."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def _columns() -> int:
    return shutil.get_terminal_size().columns - 1


class Bar:
    """A progress bar in a terminal, a line every 10 s elsewhere.

    A thread redraws it, so that its clock moves during steps that report nothing.

    Parameters
    ----------
    label : str
        What is being done.
    total : int
        How much there is to do.
    unit : str
        Written after the numbers, for example ``" tok"``.
    """

    def __init__(self, label: str, total: int, unit: str = "") -> None:
        self._label = label
        self._total = max(1, total)
        self._unit = unit
        self._done = 0
        self._note = ""
        self._began = self._told = time.monotonic()
        self._bar: Any = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        """Show it."""
        if is_terminal():
            from tqdm import tqdm  # noqa: PLC0415 - only where it is drawn

            self._bar = tqdm(
                total=self._total,
                desc=self._label,
                unit=self._unit,
                unit_scale=self._total >= _SCALED_FROM,
                bar_format=_FORMAT,
                nrows=2,  # tqdm hides bars in a terminal that says it has 0 rows
                ncols=_columns(),
                leave=False,
                file=sys.stdout,
            )
        else:
            print(f"{self._label} ...", flush=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._end.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    def show(self, n_done: int, note: str = "") -> None:
        """Take note of what is done; cheap, may be called often."""
        self._done, self._note = n_done, note

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.write(line, file=sys.stdout)

    def _keep(self) -> None:
        while not self._end.wait(_TICK_S):
            if self._bar is not None:
                self._draw()
            elif time.monotonic() - self._told >= _LINE_EVERY_S:
                self._told = time.monotonic()
                print(self._line(), flush=True)

    def _draw(self) -> None:
        self._bar.ncols = _columns()
        self._bar.n = min(self._done, self._total)
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.refresh()

    def _line(self) -> str:
        share = self._done / self._total
        note = f"  {self._note}" if self._note else ""
        return (
            f"{self._label}: {share:.0%}, {self._done:,}/{self._total:,}{self._unit}, "
            f"{self.elapsed_s:.0f} s{note}"
        )
