"""Feature browsers inside other widgets: below a run card, below the table of a dashboard.

One is made when a person asks for it and let go of when it is closed. Whether a run has
features to open is decided by `RunSource.browser` alone.
"""

from typing import Any

from extraction_kit.widgets import browser_view
from extraction_kit.widgets.routing import without_parent
from extraction_kit.widgets.source import RunSource

MAX_OPEN = 8
"""Places of one widget that may show a feature browser at the same time."""


class OpenBrowsers:
    """The feature browsers that one widget shows, by the place where it shows them.

    Parameters
    ----------
    source : RunSource
        Whose runs are browsed.
    """

    def __init__(self, source: RunSource) -> None:
        self._source = source
        self.shown: dict[str, Any] = {}

    def open(self, place: str, run_id: str, other: str | None = None) -> str:
        """Make the browser of a completed run, with another one beside it; return its model.

        It takes the place of what was shown there.

        Raises
        ------
        ExtractionKitError
            The run has no results, or they are deleted or damaged: the message says so.
        """
        browser = self._source.browser(run_id, other)
        view = without_parent(lambda: browser_view.BrowserView(browser))
        self.close(place)
        while len(self.shown) >= MAX_OPEN:  # of places that went without a word
            self.close(next(iter(self.shown)))
        self.shown[place] = view
        model_id: str = view.model_id
        return model_id

    def close(self, place: str) -> None:
        """Let go of the browser that is shown there, if there is one."""
        before = self.shown.pop(place, None)
        if before is not None:
            without_parent(before.close)
