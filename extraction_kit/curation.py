"""What people say of features, throw away and have back: a part of the workspace."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from extraction_kit import cataloguing, disk, labelling, purging
from extraction_kit.labelling import KEPT, Kept
from extraction_kit.run import Run
from extraction_kit.watcher import Watcher
from extraction_kit.workbench import Workbench

if TYPE_CHECKING:
    import duckdb


class Curated(ABC):
    """Labels, deleted runs and the space they take."""

    _bench: Workbench
    _watcher: Watcher

    @abstractmethod
    def sql(
        self, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> "duckdb.DuckDBPyRelation":
        """Ask the catalog."""

    # --- labels ---

    def label(
        self,
        training_id: str,
        feature: SupportsIndex,
        *,
        name: str | Kept | None = KEPT,
        description: str | Kept | None = KEPT,
        source: str | None = None,
    ) -> None:
        """Name or describe a feature; every run and training of the same SAE shows it.

        Each change is kept with its time and author, see ``ws.labels(..., history=True)``;
        the newest one counts. Saying the same again changes nothing.

        Parameters
        ----------
        training_id : str
            A training with this SAE.
        feature : int
            Index of the feature.
        name : str, optional
            One line of up to 200 characters; None takes it away, left out it stays.
        description : str, optional
            Up to 20,000 characters; None takes it away, left out it stays.
        source : str, optional
            Who or what says so, for example a program that explains features.

        Raises
        ------
        UnknownTraining, UnknownFeature, BadLabel
            The message says what is allowed.
        """
        labelling.label(
            self._bench,
            training_id,
            feature,
            name=name,
            description=description,
            source=source,
        )

    def unlabel(self, training_id: str, feature: SupportsIndex) -> None:
        """Take name and description of a feature away; the history keeps them."""
        labelling.label(self._bench, training_id, feature, name=None, description=None)

    def labels(
        self, training_id: str, *, history: bool = False
    ) -> "duckdb.DuckDBPyRelation":
        """Return the labels of a training's SAE as a relation, by feature.

        Parameters
        ----------
        training_id : str
            A training with this SAE.
        history : bool
            Every change instead, oldest first; one without name and description is a removal.
        """
        digest = self._bench.training(training_id).sae.digest
        table, order = ("label_history", "seq") if history else ("labels", "feature")
        query = f"SELECT * EXCLUDE sae_digest FROM {table} WHERE sae_digest = $digest"  # noqa: S608 - our own names
        return self.sql(f"{query} ORDER BY {order}", {"digest": digest})

    def export_labels(self, training_id: str, path: Path | str) -> int:
        """Write the labels of a training's SAE as CSV; return how many."""
        return labelling.export(self._bench, training_id, path)

    def import_labels(self, training_id: str, path: Path | str) -> int:
        """Read labels from a CSV, all rows or none; return how many changed.

        Columns: ``feature``, ``name`` or ``description`` or both, perhaps ``source``.
        Features that are not in the file keep their labels.

        Raises
        ------
        UnknownTraining, BadLabel
            The message names row, value and what is allowed; nothing was imported.
        """
        return labelling.import_(self._bench, training_id, path)

    # --- deleted runs, disk ---

    def restore(self, run_id: str) -> Run:
        """Undo ``run.delete()``; its files must not be purged yet.

        Raises
        ------
        RunDeleted
            They are.
        """
        self._watcher.restore(run_id)
        return Run(self._watcher, run_id)

    def purge(
        self, *, older_than: str | timedelta = purging.OLDER_THAN, apply: bool = False
    ) -> purging.Purge:
        """Show which files of deleted runs can go and what that frees, or remove them.

        Parameters
        ----------
        older_than : str or timedelta
            Runs deleted at least so long ago: ``30d``, ``12h``, ``90m``.
        apply : bool
            Do what would be shown. Nothing brings purged runs back.
        """
        if not apply:
            return purging.plan(self._bench, older_than)
        purged = purging.purge(self._bench, older_than)
        cataloguing.refresh_snapshot(self._bench)
        return purged

    def disk(self) -> disk.DiskUse:
        """Return what runs and corpora take, what is free, and a warning before it is full."""
        return disk.usage(self._bench)
