"""All runs of a workspace on one screen: what ``ws.dashboard()`` returns.

Nothing of Jupyter is imported before it is shown.
"""

from collections.abc import Sequence
from typing import Any

from extraction_kit.widgets import static_only
from extraction_kit.widgets.source import ListSource


class Dashboard:
    """The runs of a workspace; live where there is a kernel, a table everywhere.

    Parameters
    ----------
    source : ListSource
        Where the runs are read and where clicks go.
    """

    def __init__(self, source: ListSource) -> None:
        self._source = source
        self._selection: tuple[str, ...] = ()

    @property
    def selection(self) -> list[str]:
        """The ids of the selected runs: ``ws.compare(*dashboard.selection)``."""
        return list(self._selection)

    def select(self, run_ids: Sequence[str]) -> None:
        """Note what is selected; called by the page."""
        self._selection = tuple(run_ids)

    def __repr__(self) -> str:
        """Return one line: how many runs are in which state."""
        from extraction_kit.widgets import dashboard_static  # noqa: PLC0415 - only when shown

        self._source.overview.read()
        return dashboard_static.plain(self._source.overview.lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - IPython's
        from extraction_kit.widgets import dashboard_static  # noqa: PLC0415 - only when shown

        overview = self._source.overview
        overview.read()
        bundle: dict[str, Any] = {
            "text/plain": dashboard_static.plain(overview.lines),
            "text/html": dashboard_static.html(overview.lines, reproducible=static_only()),
        }
        if static_only():
            return bundle
        from extraction_kit.widgets import dashboard_view  # noqa: PLC0415 - pulls in ipywidgets

        return bundle | dashboard_view.live(self._source, self.select)
