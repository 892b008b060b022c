"""The live feature browser: an anywidget; what it says is listed in ``browser.py``."""

from typing import Any

import anywidget
import traitlets
from IPython.core.getipython import get_ipython

from extraction_kit.widgets import assets
from extraction_kit.widgets.browser import FeatureBrowser
from extraction_kit.widgets.payload import safe
from extraction_kit.widgets.routing import without_parent

FILES = (
    "browser_list",
    "browser_feature",
    "browser_compare",
    "browser_parts",
    "browser_ask",
    "browser_label",
    "browser",
)


class BrowserView(anywidget.AnyWidget):  # type: ignore[misc]
    """One display of a `FeatureBrowser`. The page never sets a trait.

    JupyterLab shows it in any number of places. While it shows it nowhere, nothing is sent.
    """

    _esm = assets.esm(*FILES)
    _css = assets.css("browser")
    facts = traitlets.Dict().tag(sync=True)

    def __init__(self, browser: FeatureBrowser) -> None:
        super().__init__(facts=safe(browser.facts()))
        self._browser = browser
        self._looking: set[object] = set()  # pages, by what they call themselves
        self.on_msg(self._on_message)

    def _tell_page(self, content: dict[str, Any]) -> None:
        without_parent(lambda: self.send(content))

    def _told(self, message: dict[str, Any]) -> None:
        if self._looking - {message["but"]}:
            self._tell_page(message)

    def _on_message(self, _: object, content: object, __: object) -> None:
        """Answer the page. Runs on the main thread or on a subshell's: short, no asyncio."""
        if not isinstance(content, dict):
            return
        self._note(str(content.get("view")), gone=content.get("kind") == "bye")
        answer = self._browser.answer(content)
        if answer is not None:
            self._tell_page(answer)

    def _note(self, page: str, *, gone: bool) -> None:
        """Note who looks: with the last page goes what the browser knows of this display."""
        before = bool(self._looking)
        (self._looking.discard if gone else self._looking.add)(page)
        if self._looking and not before:
            self._browser.connect(self._told)
        elif before and not self._looking:
            self._browser.disconnect(self._told)


def live(browser: FeatureBrowser) -> dict[str, Any]:
    """Return the live part of a MIME bundle; empty where there is no kernel."""
    if getattr(get_ipython(), "kernel", None) is None:
        return {}
    view = without_parent(lambda: BrowserView(browser))
    return assets.live(view.model_id)
