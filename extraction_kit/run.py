"""The handle of a run: what a notebook holds after a launch."""

import asyncio
import time
from collections.abc import Generator, Mapping
from typing import Any, Self, SupportsIndex

from extraction_kit import labelling, status, widgets
from extraction_kit.errors import RunFailed, RunRefused, WaitTimeout
from extraction_kit.labelling import KEPT, Kept
from extraction_kit.lifecycle import ACTIVE, ENDED, RunState
from extraction_kit.status import Explanation
from extraction_kit.watcher import RecordedResult, Watcher

_POLL_S = 0.25


class Run(RecordedResult):
    """A handle like that of ``concurrent.futures``: state, wait, result, cancel.

    Making one starts nothing and reads nothing. It stays good after a kernel restart: make
    it again with ``ws.run(run_id)`` or with the same ``launch`` call.
    """

    def __init__(
        self, watcher: Watcher, run_id: str, *, refusal: RunRefused | None = None
    ) -> None:
        super().__init__(watcher, run_id)
        self._watched_in: int | None = None
        self.refusal = refusal
        """Why the launch that gave this handle started nothing, or None."""

    # --- how it stands --------------------------------------------------------------------

    @property
    def state(self) -> RunState:
        """Where the run stands."""
        return self.view.state

    @property
    def progress(self) -> float:
        """Share of the tokens done, 0 to 1."""
        return self.view.progress

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
        self._show_while_waiting()
        return self.wait()

    def _show_while_waiting(self) -> None:
        if not widgets.static_only():  # a static card shows the end, not the beginning
            self._watched_in = widgets.cell_number()
        if self._watched_in is not None:
            self.show()

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

        In a notebook the live card is shown while there is something to wait for.

        Raises
        ------
        RunFailed
            The run ended without a result; the message holds the worker's traceback.
        WaitTimeout
            As in :meth:`wait`.
        """
        if not self.done():
            self._show_while_waiting()
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

    # --- labels -----------------------------------------------------------------------------

    def label(
        self,
        feature: SupportsIndex,
        *,
        name: str | Kept | None = KEPT,
        description: str | Kept | None = KEPT,
        source: str | None = None,
    ) -> None:
        """Name or describe a feature: ``ws.label`` with the training of this run."""
        labelling.label(
            self._watcher.bench,
            self.view.training_id,
            feature,
            name=name,
            description=description,
            source=source,
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
