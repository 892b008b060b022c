"""The live dashboard: an anywidget; what it says is listed in ``board.py``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from extraction_kit.widgets import assets, card
from extraction_kit.widgets import hub as hubs
from extraction_kit.widgets.board import RunBoard
from extraction_kit.widgets.routing import without_parent
from extraction_kit.widgets.source import ListSource

PARTS = (
    *card.PARTS,
    "dashboard_table",
    "dashboard_parts",
    "dashboard_ask",
    "dashboard_detail",
    "dashboard_form",
    "dashboard",
)
"""Files of the page, the widget's own last: an open run is shown by a run card."""


class DashboardView(anywidget.AnyWidget):  # type: ignore[misc]
    """One display of a `Dashboard`. The page never sets a trait."""

    _esm = assets.esm(*PARTS)
    _css = assets.css("card", "dashboard")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, board: RunBoard, state: Mapping[str, Any]) -> None:
        super().__init__(state=dict(state))
        self._board = board
        self.on_msg(self._on_message)

    def tell(self, content: dict[str, Any]) -> None:
        """Send a message to the page."""
        without_parent(lambda: self.send(content))

    def _on_message(self, _: object, content: object, __: object) -> None:
        """Answer the page. Runs on the main thread or on a subshell's: short, no asyncio."""
        answer = self._board.answer(content)
        if answer is not None:
            self.tell(answer)


def live(source: ListSource, select: Callable[[Sequence[str]], None]) -> dict[str, Any]:
    """Return the live part of a MIME bundle; empty where there is no kernel, or no thread."""
    if getattr(get_ipython(), "kernel", None) is None:
        return {}
    hub = hubs.current()
    board = RunBoard(source, hub, select=select)
    state = board.full(hub.pace)
    view = without_parent(lambda: DashboardView(board, state))
    board.push = view.tell
    try:
        hub.attend(board)
    except RuntimeError:  # JupyterLite: the static table says what is so
        return {}
    return assets.live(view.model_id)
