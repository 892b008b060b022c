"""Where everything lives: one directory, the workspace."""

import os
from dataclasses import dataclass
from pathlib import Path

from extraction_kit.config import Settings

WORKSPACE_NAME = ".extraction_kit"


def find_workspace(start: Path | None = None) -> Path:
    """Return the workspace directory that applies at `start` (default: here).

    ``EXTRACTION_KIT_HOME`` wins; else the nearest ``.extraction_kit`` in `start` or its
    parents; else ``.extraction_kit`` in `start`, which need not exist yet.
    """
    home = os.environ.get("EXTRACTION_KIT_HOME", "").strip()
    if home:
        return Path(home).expanduser().absolute()
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        if (folder / WORKSPACE_NAME).is_dir():
            return folder / WORKSPACE_NAME
    return start / WORKSPACE_NAME


@dataclass(frozen=True)
class Paths:
    """The tree of a workspace; properties only, nothing is created by asking.

    Parameters
    ----------
    home : Path
        What belongs to this machine: sockets, locks, ledger, beats, caches.
    shared : Path
        What several machines may share; equal to `home` unless ``Settings.shared`` is set.
    """

    home: Path
    shared: Path

    @classmethod
    def of(cls, home: Path, settings: Settings) -> "Paths":
        """Return the tree for `home` under `settings`."""
        home = Path(home).expanduser().absolute()
        return cls(home=home, shared=settings.shared or home)

    # --- this machine ---
    @property
    def run(self) -> Path:
        """Socket, flocks, pids and logs of local processes."""
        return self.home / "run"

    @property
    def server(self) -> Path:
        """Data of the embedded server."""
        return self.home / "server"

    @property
    def logs(self) -> Path:
        """Logs of server and workers, one file each."""
        return self.home / "run" / "logs"

    @property
    def ledger(self) -> Path:
        """SQLite ledger."""
        return self.home / "ledger.sqlite"

    @property
    def beats(self) -> Path:
        """Beat files of working processes, one per attempt."""
        return self.home / "beats"

    @property
    def cache(self) -> Path:
        """Digests and other things that can be made again."""
        return self.home / "cache"

    # --- shared ---
    @property
    def trainings(self) -> Path:
        """Registered trainings."""
        return self.shared / "trainings"

    @property
    def corpora(self) -> Path:
        """Prepared corpora, by digest."""
        return self.shared / "corpora"

    @property
    def vocab(self) -> Path:
        """Token texts, one file per tokenizer."""
        return self.shared / "vocab"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of unfinished runs."""
        return self.shared / "checkpoints"

    @property
    def results(self) -> Path:
        """Published results, one directory per run."""
        return self.shared / "results"

    @property
    def staging(self) -> Path:
        """Results being written; same file system as `results`."""
        return self.results / ".staging"

    @property
    def catalog(self) -> Path:
        """Catalog snapshot."""
        return self.shared / "catalog.duckdb"

    @property
    def catalog_card(self) -> Path:
        """What is known of the catalog snapshot: it can be told without opening it."""
        return self.shared / ".catalog.json"

    @property
    def derived(self) -> Path:
        """Indexes over many runs; they may be deleted at any time."""
        return self.shared / "derived"

    def checkpoints_of(self, run_id: str, attempt: int | None = None) -> Path:
        """Return the checkpoint folder of a run, or of one attempt at it."""
        folder = self.checkpoints / run_id
        return folder if attempt is None else folder / f"a{attempt}"

    def results_of(self, run_id: str) -> Path:
        """Return where the results of a run are, or will be."""
        return self.results / f"run_id={run_id}"

    def tombstone_of(self, run_id: str) -> Path:
        """Return the file that says beside the results that a run was deleted."""
        return self.results / ".deleted" / f"{run_id}.json"

    def staging_of(self, run_id: str, attempt: int) -> Path:
        """Return where one attempt stages its results."""
        return self.staging / f"{run_id}-a{attempt}"
