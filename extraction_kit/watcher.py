"""The eyes of a workspace's handles and widgets: how a run stands, and what it has found."""

import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from extraction_kit import (
    cataloguing,
    comparison,
    deletion,
    labelling,
    refusals,
    service,
    status,
    wishes,
)
from extraction_kit.catalog import reading
from extraction_kit.catalog.comparing import Differences, differences
from extraction_kit.catalog.listing import Named
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.catalog.relations import literal
from extraction_kit.corpora import Corpus, Progress
from extraction_kit.errors import RunFailed, StillActive
from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.overview import Overview
from extraction_kit.reader import ResultReader
from extraction_kit.service import Launched
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets.browsed import Browsed
from extraction_kit.wishes import Prospect, Wish
from extraction_kit.workbench import Workbench

if TYPE_CHECKING:
    from extraction_kit.catalog.session import Session
    from extraction_kit.widgets.browser import FeatureBrowser

_RECONCILE_EVERY_S = 2.0


class Watcher:
    """Reads runs for handles and cards; looks after the evidence now and then.

    One per workspace; every method may be called from any thread.
    """

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self._reconciled_at = float("-inf")
        self._session: Session | None = None
        self._lock = threading.Lock()
        self.overview = Overview(bench)
        """All runs at the price of what changed, for lists of them."""

    @property
    def session(self) -> "Session":
        """SQL over the catalog; made when it is first asked for."""
        with self._lock:
            if self._session is None:
                from extraction_kit.catalog.session import Session  # noqa: PLC0415 - duckdb

                bench = self.bench
                self._session = Session(
                    lambda: cataloguing.catalog_rows(bench),
                    lambda: status.cursor(bench),
                    lambda since: cataloguing.catalog_rows(bench, since),
                )
            return self._session

    def view(self, run_id: str) -> RunView:
        """Return the run as it stands, evidence looked at within the last 2 s."""
        now = status.view(self.bench, run_id)
        if now.state not in ACTIVE or not self._reconcile_if_due():
            return now
        return status.view(self.bench, run_id)

    def views(self, run_ids: Sequence[str] | None = None) -> list[RunView]:
        """Return several runs (None: all) as they stand."""
        found = status.views(self.bench, run_ids)
        if not any(one.state in ACTIVE for one in found) or not self._reconcile_if_due():
            return found
        return status.views(self.bench, run_ids)

    def _reconcile_if_due(self) -> bool:
        now = time.monotonic()
        if now - self._reconciled_at < _RECONCILE_EVERY_S:
            return False
        self._reconciled_at = now
        return bool(self.bench.reconcile())

    def cursor(self) -> int:
        """Return a number that grows with every change of the ledger."""
        return status.cursor(self.bench)

    def events(self, run_id: str) -> list[Happening]:
        """Return what happened to a run, oldest first."""
        return status.happenings(self.bench, run_id)

    def relaunch(self, run_id: str) -> RunView:
        """Launch the same content again; the refusal is raised.

        A run that waits to be accepted by the queue is sent again.
        """
        run = service.read_run(self.bench, run_id)
        if run.deleted_at is not None:  # its corpus may be gone
            raise refusals.deleted(run)
        content = service.content_of(
            self.bench,
            self.bench.training(run.training_id),
            corpus=self.bench.corpus_of(run),
            config=self.bench.config_of(run),
        )
        launched = service.launch(self.bench, content, generation=run.generation)
        if launched.refusal is not None:
            raise launched.refusal
        if run.state is RunState.REQUESTED:
            self.bench.send(run.target, run.job_id)
        return self.view(run_id)

    # --- what a form asks for: see `wishes` ---

    def trainings(self) -> list[dict[str, Any]]:
        """Return the registered trainings, for a form."""
        return wishes.trainings(self.bench)

    def corpora(self, training_id: str) -> list[dict[str, Any]]:
        """Return the corpora of a training's runs, for a form."""
        return wishes.corpora(self.bench, training_id)

    def foresee(self, wish: Wish, progress: Progress) -> Prospect:
        """Say what a launch would come to."""
        return wishes.foresee(self.bench, wish, progress=progress)

    def launch(self, wish: Wish, progress: Progress) -> Launched:
        """Launch what a form asks for."""
        return wishes.launch(self.bench, wish, progress=progress)

    def differences(self, a: str, b: str, n: int) -> Differences:
        """Return in what two completed runs differ most."""
        folders = (RecordedResult(self, one).results_folder for one in (a, b))
        found = comparison.compare(*folders, match="auto", cache=self.bench.paths.cache)
        return differences(found, n)

    def browser(self, run_id: str, other: str | None = None) -> "FeatureBrowser":
        """Return the feature browser of a completed run, with another one beside it."""
        beside = None if other is None else RecordedResult(self, other)
        return RecordedResult(self, run_id).browse(compare=beside)

    def cancel(self, run_id: str) -> RunView:
        """Cancel a run."""
        service.cancel(self.bench, run_id)
        return self.view(run_id)

    def resume(self, run_id: str, *, force: bool = False) -> RunView:
        """Resume a run."""
        service.resume(self.bench, run_id, force=force)
        return self.view(run_id)

    def delete(self, run_id: str) -> None:
        """Delete a run that has ended."""
        if deletion.delete(self.bench, run_id):
            cataloguing.refresh_snapshot(self.bench)

    def restore(self, run_id: str) -> None:
        """Undo the deletion of a run."""
        if deletion.restore(self.bench, run_id):
            cataloguing.refresh_snapshot(self.bench)

    def highlights(self, run_id: str, n: int) -> list[dict[str, Any]]:
        """Return some features of a completed run with their best example.

        They are typical ones: evenly spread over the density of the features that fire on
        at least as many contexts as a feature keeps examples, found once per result.
        """
        run = self.view(run_id)
        if run.state is not RunState.COMPLETED or run.deleted_at is not None:
            return []
        result = RecordedResult(self, run_id)
        found = []
        for row in _typical_features(result.results_folder, n):
            windows = result.windows(row["feature"], k=1)
            if windows:
                best = windows[0]
                found.append(row | {"tokens": best.tokens, "acts": best.acts})
        return found


def _typical_features(folder: Path, n: int) -> list[dict[str, Any]]:
    ranked = reading.features(folder).filter(
        "NOT dead AND n_contexts >= 5 AND density < 0.1"
    )
    columns = "feature, density, max_act"
    rows = ranked.order("density DESC, feature").project(columns).fetchall()
    if not rows:
        rows = reading.features(folder).filter("NOT dead").project(columns).fetchall()
    picked = [rows[len(rows) * (2 * i + 1) // (2 * n)] for i in range(min(n, len(rows)))]
    return [
        {"feature": feature, "density": density, "max_act": max_act}
        for feature, density, max_act in picked
    ]


class RecordedResult(ResultReader):
    """What a run of a workspace has found: see `ResultReader`.

    Parameters
    ----------
    watcher : Watcher
        Of the workspace.
    run_id : str
        Whose result; it is read when something is asked for.
    """

    def __init__(self, watcher: Watcher, run_id: str) -> None:
        self._watcher = watcher
        self.run_id = run_id

    @property
    def view(self) -> RunView:
        """Everything known of the run at this moment."""
        return self._watcher.view(self.run_id)

    @property
    def corpus(self) -> Corpus:
        """What it reads: ``ws.launch(..., corpus=run.corpus)`` takes the same texts again."""
        bench = self._watcher.bench
        return bench.corpus_of(service.read_run(bench, self.run_id))

    def _results(self) -> Path:
        run = self.view
        if run.deleted_at is not None:
            raise refusals.deleted(service.read_run(self._watcher.bench, self.run_id))
        if run.state is RunState.COMPLETED:
            return self._watcher.bench.paths.results_of(self.run_id)
        raise (StillActive if run.state in ACTIVE else RunFailed)(
            run_id=self.run_id,
            state=str(run.state),
            because=f"run {self.run_id} has no results yet: it is {run.state} "
            f"({run.progress:.0%}). Next: {run.advice}",
        )

    def _read_windows(
        self, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        corpus = self.corpus
        return reading.example_windows(
            self._watcher.bench.paths.results_of(self.run_id),
            feature,
            contexts=corpus.contexts,
            vocab=corpus.vocab,
            k=k,
            group=group,
        )

    def _vocab(self) -> Path:
        return self.corpus.vocab

    def _contexts(self) -> Path:
        return self.corpus.contexts

    def _cache(self) -> Path:
        return self._watcher.bench.paths.cache

    def _browsed(self) -> Browsed:
        folder, view, corpus = self._results(), self.view, self.corpus
        bench, mine = self._watcher.bench, f"run_id = {literal(self.run_id)}"
        return Browsed(
            title=view.training_id,
            call="run.browse",
            about=(view.model, view.hook_name, f"generation {view.generation}"),
            key=self.run_id,
            folder=folder,
            corpus=corpus,
            names={
                "features": Named("features", mine),
                "examples": Named("examples", mine),
                "vocab": Named("vocab", f"tokenizer_digest = {literal(corpus.vocab.stem)}"),
            },
            ask=self._watcher.session.sql,
            label=partial(
                labelling.label, bench, view.training_id, source="feature browser"
            ),
        )
