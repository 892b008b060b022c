"""What a widget needs to know of a run: the only door from the notebook to the service."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from extraction_kit.catalog.comparing import Differences
from extraction_kit.corpora import Progress
from extraction_kit.overview import Overview
from extraction_kit.service import Launched
from extraction_kit.views import Happening, RunView
from extraction_kit.wishes import Prospect, Wish

if TYPE_CHECKING:
    from extraction_kit.widgets.browser import FeatureBrowser


class RunSource(Protocol):
    """Reads runs and passes a person's clicks on.

    Every method may be called from any thread, must be short, and must not print. Raises
    members of :class:`~extraction_kit.errors.ExtractionKitError`, whose message is shown.
    """

    def view(self, run_id: str) -> RunView:
        """Return the run as it stands now."""
        ...

    def views(self, run_ids: Sequence[str]) -> list[RunView]:
        """Return several runs by one read, in any order; unknown ids are left out."""
        ...

    def cursor(self) -> int:
        """Return a number that grows with every change of the ledger."""
        ...

    def events(self, run_id: str) -> list[Happening]:
        """Return what happened to the run, oldest first."""
        ...

    def highlights(self, run_id: str, n: int) -> list[dict[str, Any]]:
        """Return up to `n` features of a completed run with their best example.

        Each is ``{feature: int, density: float, max_act: float, tokens: list[str],
        acts: list[float]}``; `tokens` and `acts` have the same length.
        """
        ...

    def relaunch(self, run_id: str) -> RunView:
        """Launch the same content again, as a click on Launch asks for."""
        ...

    def cancel(self, run_id: str) -> RunView:
        """Ask the run to stop."""
        ...

    def resume(self, run_id: str) -> RunView:
        """Continue a resting run from its checkpoint."""
        ...

    def browser(self, run_id: str, other: str | None = None) -> "FeatureBrowser":
        """Return the feature browser of a completed run, with another one beside it.

        May take long: it is called on a thread of its own. What has no results, or none
        that can be read, is refused here and nowhere else.
        """
        ...


class ListSource(RunSource, Protocol):
    """The same of all runs of a workspace, and what can be launched there.

    The methods of this class may take long: they are called on threads of their own.
    """

    overview: Overview

    def trainings(self) -> list[dict[str, Any]]:
        """Return the registered trainings: see :func:`extraction_kit.wishes.trainings`."""
        ...

    def corpora(self, training_id: str) -> list[dict[str, Any]]:
        """Return corpora of a training: see :func:`extraction_kit.wishes.corpora`."""
        ...

    def foresee(self, wish: Wish, progress: Progress) -> Prospect:
        """Say what a launch would come to; see :func:`extraction_kit.wishes.foresee`."""
        ...

    def launch(self, wish: Wish, progress: Progress) -> Launched:
        """Launch it."""
        ...

    def differences(self, a: str, b: str, n: int) -> Differences:
        """Return the `n` largest differences of two completed runs."""
        ...
