"""The handle of a run: what a notebook holds after a launch."""

import asyncio
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from extraction_kit import (
    cataloguing,
    comparison,
    deletion,
    labelling,
    refusals,
    service,
    status,
    widgets,
    wishes,
)
from extraction_kit.catalog import reading
from extraction_kit.catalog.comparing import Differences, differences
from extraction_kit.catalog.listing import Named
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.catalog.relations import literal
from extraction_kit.corpora import Corpus, Progress
from extraction_kit.errors import (
    RunFailed,
    RunRefused,
    WaitTimeout,
)
from extraction_kit.lifecycle import ACTIVE, ENDED, RunState
from extraction_kit.overview import Overview
from extraction_kit.reader import ResultReader
from extraction_kit.service import Launched
from extraction_kit.status import Explanation
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets.browsed import Browsed
from extraction_kit.wishes import Prospect, Wish
from extraction_kit.workbench import Workbench

if TYPE_CHECKING:
    from extraction_kit.catalog.session import Session
    from extraction_kit.widgets.browser import FeatureBrowser

_POLL_S = 0.25
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
        folders = (Run(self, one).results_folder for one in (a, b))
        found = comparison.compare(*folders, match="auto", cache=self.bench.paths.cache)
        return differences(found, n)

    def browser(self, run_id: str, other: str | None = None) -> "FeatureBrowser":
        """Return the feature browser of a completed run, with another one beside it."""
        return Run(self, run_id).browse(compare=None if other is None else Run(self, other))

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
        features = _typical_features(self.bench.paths.results_of(run_id), n)
        found = []
        for row in features:
            windows = self.windows(run_id, row["feature"], k=1, group="top")
            if windows:
                best = windows[0]
                found.append(row | {"tokens": best.tokens, "acts": best.acts})
        return found

    def browsed(self, run_id: str) -> Browsed:
        """Return what the feature browser reads of a completed run."""
        run, view = service.read_run(self.bench, run_id), self.view(run_id)
        corpus = self.bench.corpus_of(run)
        mine = f"run_id = {literal(run_id)}"
        return Browsed(
            title=run.training_id,
            call="run.browse",
            about=(view.model, view.hook_name, f"generation {run.generation}"),
            key=run_id,
            folder=self.bench.paths.results_of(run_id),
            corpus=corpus,
            names={
                "features": Named("features", mine),
                "examples": Named("examples", mine),
                "vocab": Named("vocab", f"tokenizer_digest = {literal(corpus.vocab.stem)}"),
            },
            ask=self.session.sql,
            label=partial(
                labelling.label, self.bench, run.training_id, source="feature browser"
            ),
        )

    def vocab_of(self, run_id: str) -> Path:
        """Return where the token texts of a run are."""
        return self.bench.corpus_of(service.read_run(self.bench, run_id)).vocab

    def contexts_of(self, run_id: str) -> Path:
        """Return where the token ids of a run's corpus are."""
        corpus = self.bench.corpus_of(service.read_run(self.bench, run_id))
        return corpus.path / "contexts.parquet"

    def windows(
        self, run_id: str, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        """Return decoded examples of one feature of a completed run."""
        run = service.read_run(self.bench, run_id)
        corpus = self.bench.corpus_of(run)
        return reading.example_windows(
            self.bench.paths.results_of(run_id),
            feature,
            contexts=corpus.path / "contexts.parquet",
            vocab=corpus.vocab,
            k=k,
            group=group,
        )


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


class Run(ResultReader):
    """A handle like that of ``concurrent.futures``: state, wait, result, cancel.

    Making one starts nothing and reads nothing. It stays good after a kernel restart: make
    it again with ``ws.run(run_id)`` or with the same ``launch`` call.
    """

    def __init__(
        self, watcher: Watcher, run_id: str, *, refusal: RunRefused | None = None
    ) -> None:
        self._watcher = watcher
        self.run_id = run_id
        self._watched_in: int | None = None
        self.refusal = refusal
        """Why the launch that gave this handle started nothing, or None."""

    # --- how it stands --------------------------------------------------------------------

    @property
    def view(self) -> RunView:
        """Everything known of the run at this moment."""
        return self._watcher.view(self.run_id)

    @property
    def state(self) -> RunState:
        """Where the run stands."""
        return self.view.state

    @property
    def progress(self) -> float:
        """Share of the tokens done, 0 to 1."""
        return self.view.progress

    @property
    def corpus(self) -> Corpus:
        """What it reads: ``ws.launch(..., corpus=run.corpus)`` takes the same texts again."""
        bench = self._watcher.bench
        return bench.corpus_of(service.read_run(bench, self.run_id))

    def done(self) -> bool:
        """Tell whether the run has ended: completed, failed, cancelled or interrupted."""
        return self.state in ENDED

    def explain(self) -> Explanation:
        """Tell why the run is in its state, event by event; print it."""
        return status.explain(self._watcher.bench, self.run_id)

    # --- waiting ----------------------------------------------------------------------------

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait until the run has ended, whatever its end; return the handle.

        Interrupting the cell stops the waiting, never the run: it says so and returns.

        Raises
        ------
        WaitTimeout
            The run did not end within `timeout_s` seconds; it goes on.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not self.done():
                self._check_deadline(deadline, timeout_s)
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            self._say_it_goes_on()
        return self

    def watch(self) -> Self:
        """Show the live card and wait, as :meth:`wait` does; return the handle.

        Where the handle is the value of the same cell, the card is not shown twice.
        """
        if not widgets.static_only():  # a static card shows the end, not the beginning
            self._watched_in = widgets.cell_number()
        if self._watched_in is not None:
            self.show()
        return self.wait()

    def __await__(self) -> Generator[Any, None, Self]:
        """Wait without blocking the kernel: ``await run``; clicks on the card work."""
        return self._wait_async().__await__()

    async def _wait_async(self) -> Self:
        try:
            while not self.done():  # noqa: ASYNC110 - the event happens in another process
                await asyncio.sleep(_POLL_S)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._say_it_goes_on()
        return self

    def _check_deadline(self, deadline: float | None, timeout_s: float | None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            run = self.view
            raise WaitTimeout(
                f"run {self.run_id} is {run.state} at {run.progress:.0%} after {timeout_s:g} s; "
                "it goes on. Wait again with run.wait(), or stop it with run.cancel()"
            )

    def _say_it_goes_on(self) -> None:
        run = self.view
        worker = "" if run.worker is None else f" on {run.worker}"
        print(  # noqa: T201 - the answer to a person's interrupt
            f"stopped watching; run {self.run_id} keeps {run.state}{worker}. "
            "run.cancel() stops it"
        )

    def result(self, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Wait for the end and return the published manifest: numbers and provenance.

        Raises
        ------
        RunFailed
            The run ended without a result; the message holds the worker's traceback.
        WaitTimeout
            As in :meth:`wait`.
        """
        run = self.wait(timeout_s).view
        if run.state is RunState.COMPLETED:
            return self._manifest()
        if run.state in ACTIVE:  # the wait was interrupted
            raise WaitTimeout(f"run {self.run_id} is {run.state}: type run.result() again")
        trace = f"\n{run.error_traceback}" if run.error_traceback else ""
        raise RunFailed(
            run_id=self.run_id,
            state=str(run.state),
            because=f"run {self.run_id} is {run.state}: {run.error or 'no result'}{trace}\n"
            f"{run.advice}",
        )

    # --- acting -----------------------------------------------------------------------------

    def cancel(self) -> Self:
        """Stop the run: at once if it waits, within one batch if it computes.

        Raises
        ------
        AlreadyCompleted, TooLateToCancel, NothingToCancel, RunDeleted
            There is nothing to stop.
        """
        self._watcher.cancel(self.run_id)
        return self

    def resume(self, *, force: bool = False) -> Self:
        """Continue a failed, cancelled, interrupted or stuck run from its last checkpoint.

        Parameters
        ----------
        force : bool
            Go on although the process of a stuck run cannot be seen from this machine.

        Raises
        ------
        AlreadyCompleted, StillActive, TrainingBusy, RunDeleted
            There is nothing to continue, or not now.
        """
        self._watcher.resume(self.run_id, force=force)
        self.refusal = None
        return self

    def delete(self) -> Self:
        """Delete the run: it leaves every list and view at once, its files go later.

        Until they are purged ``ws.restore(run_id)`` brings it back. Labels of its features
        stay. The same content is not launched again by itself.

        Raises
        ------
        StillActive
            It has not ended: cancel it first.
        """
        self._watcher.delete(self.run_id)
        return self

    # --- reading: see `ResultReader` ----------------------------------------------------------

    def _read_windows(
        self, feature: SupportsIndex, *, k: int, group: str
    ) -> list[ExampleWindow]:
        return self._watcher.windows(self.run_id, feature, k=k, group=group)

    def _vocab(self) -> Path:
        return self._watcher.vocab_of(self.run_id)

    def _contexts(self) -> Path:
        return self._watcher.contexts_of(self.run_id)

    def _cache(self) -> Path:
        return self._watcher.bench.paths.cache

    def _browsed(self) -> Browsed:
        self._results()
        return self._watcher.browsed(self.run_id)

    def _results(self) -> Path:
        run = self.view
        if run.deleted_at is not None:
            raise refusals.deleted(service.read_run(self._watcher.bench, self.run_id))
        if run.state is RunState.COMPLETED:
            return self._watcher.bench.paths.results_of(self.run_id)
        raise RunFailed(
            run_id=self.run_id,
            state=str(run.state),
            because=f"run {self.run_id} has no results yet: it is {run.state} "
            f"({run.progress:.0%}). Type {run.advice}",
        )

    # --- shown ------------------------------------------------------------------------------

    def show(self, *, freeze: bool | None = None) -> None:
        """Display the live card; see :func:`extraction_kit.widgets.show`."""
        reason = None if self.refusal is None else str(self.refusal)
        widgets.show(self._watcher, self.run_id, refusal=reason, freeze=freeze)

    def _ipython_display_(self) -> None:
        if self._watched_in is None or self._watched_in != widgets.cell_number():
            self.show()

    def __repr__(self) -> str:
        """Return one line: id, training, state and progress."""
        from extraction_kit.widgets import static  # noqa: PLC0415 - only when shown

        return static.plain(self.view)
