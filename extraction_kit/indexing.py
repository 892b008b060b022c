"""When the indexes over many runs are built, and by whom: the monitor, in a process of its own.

Never in a notebook, where memory and cores are the user's, nor in a worker, which has a GPU to
serve.
"""

import logging
import os
import subprocess
import sys

from extraction_kit import embedded
from extraction_kit.catalog import indexes
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.ledger import bulk
from extraction_kit.workbench import Workbench

log = logging.getLogger(__name__)

_STOP_S = 10.0


def _results(bench: Workbench) -> dict[str, str]:
    with bench.store.read() as connection:
        return bulk.result_digests(connection, STATISTICS_FORMAT)


def is_due(bench: Workbench) -> bool:
    """Return whether there are more than ``Settings.index_above`` runs, and new ones."""
    index = indexes.read_index(bench.paths.derived)
    return indexes.is_due(index, _results(bench), above=bench.settings.index_above)


def build(bench: Workbench, *, now: bool = False) -> str:
    """Build the indexes if it is time; return what was done, in words.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    now : bool
        However few runs there are.

    Raises
    ------
    WorkspaceUnusable
        The disk is full or not writable; the indexes are as they were.
    """
    lock = embedded.take_lock(bench.paths.run / "index.lock")
    if lock is None:
        return "another process builds the indexes"
    try:
        if not (now or is_due(bench)):
            return (
                "nothing to do: indexes are built above "
                f"{bench.settings.index_above} completed runs (Settings.index_above)"
            )
        results = _results(bench)
        folders = {run_id: bench.paths.results_of(run_id) for run_id in results}
        index = indexes.build(bench.paths.derived, results, folders)
    finally:
        os.close(lock)
    n_runs = sum(len(segment.runs) for segment in index.segments)
    left_out = f"; {len(index.left_out)} damaged ones left out" if index.left_out else ""
    covered = "1 run is" if n_runs == 1 else f"{n_runs} runs are"
    return f"{covered} in the indexes{left_out}"


class Builder:
    """Starts a build when it is time, in a process that ends with this one.

    Parameters
    ----------
    bench : Workbench
        The workspace.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Start a build if it is time and none goes on."""
        if self._process is not None and self._process.poll() is None:
            return
        if is_due(self._bench):
            self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        home, settings = self._bench.paths.home, self._bench.settings
        path = self._bench.paths.logs / "index.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "extraction_kit", "--workspace", home, "index"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **settings.to_environment()},
            )

    def stop(self) -> None:
        """End a build that goes on; what it has done is kept or removed by the next one."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
