"""The live feature browser: an anywidget; what it says is listed in ``browser.py``."""

from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from extraction_kit.widgets import assets
from extraction_kit.widgets.browser import FeatureBrowser
from extraction_kit.widgets.payload import safe
from extraction_kit.widgets.routing import without_parent

WIDGET = "application/vnd.jupyter.widget-view+json"


class BrowserView(anywidget.AnyWidget):  # type: ignore[misc]
    """One display of a `FeatureBrowser`. The page never sets a trait."""

    _esm = assets.esm("browser_list", "browser_feature", "browser")
    _css = assets.css("browser")
    facts = traitlets.Dict().tag(sync=True)

    def __init__(self, browser: FeatureBrowser) -> None:
        super().__init__(facts=safe(browser.facts()))
        self._browser = browser
        self.on_msg(self._on_message)
        browser.connect(self._tell_page)

    def _tell_page(self, content: dict[str, Any]) -> None:
        without_parent(lambda: self.send(content))

    def _on_message(self, _: object, content: object, __: object) -> None:
        """Answer the page. Runs on the main thread or on a subshell's: short, no asyncio."""
        answer = self._browser.answer(content)
        if answer is not None:
            self._tell_page(answer)


def live(browser: FeatureBrowser) -> dict[str, Any]:
    """Return the live part of a MIME bundle; empty where there is no kernel."""
    if getattr(get_ipython(), "kernel", None) is None:
        return {}
    view = without_parent(lambda: BrowserView(browser))
    return {WIDGET: {"version_major": 2, "version_minor": 0, "model_id": view.model_id}}
