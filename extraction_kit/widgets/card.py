"""The live run card: an anywidget whose page side is ``page``, ``card`` (``.js``, ``.css``).

Messages (version 1)
--------------------
kernel to page
    trait ``state``: ``{seq, now, beat_s, view, events, highlights, note, browser}``; set by
    the hub only. ``browser`` is the model of the feature browser that is open in the card, for
    every view of it; null: none. ``{kind: "ack", id, ok, reason}`` answers every message of
    the page; that of features has the ``browser`` too, and ``{kind: "progress", id, text}``
    comes before it.
page to kernel
    ``{kind: "hello", id}``: somebody looks. ``{kind: "act", id, name}`` with name launch,
    cancel, resume, features (open them in the card) or close (the features). The page never
    sets a trait.
"""

import threading
from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from extraction_kit.widgets import assets
from extraction_kit.widgets.acts import act, tried
from extraction_kit.widgets.hub import Hub, Watch
from extraction_kit.widgets.opened import OpenBrowsers
from extraction_kit.widgets.routing import without_parent

PARTS = ("card_features", "card")
"""Files of the page, the widget's own last."""
_PLACE = "card"


class RunCard(anywidget.AnyWidget):  # type: ignore[misc]
    """One run, live. Made by :func:`extraction_kit.widgets.show`."""

    _esm = assets.esm(*PARTS)
    _css = assets.css("card")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, hub: Hub, watch: Watch, state: Mapping[str, Any]) -> None:
        super().__init__(state=dict(state))
        self._hub = hub
        self._watch = watch
        self._browsers = OpenBrowsers(watch.source)
        self._opening = threading.Lock()
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        """Return the run's id."""
        return f"RunCard({self._watch.run_id!r})"

    def push(self, message: dict[str, Any]) -> None:
        """Set the state; called by the hub's thread only."""
        without_parent(lambda: setattr(self, "state", message))

    def _on_message(self, _: object, content: object, __: object) -> None:
        """Answer the page. Runs on the main thread or on a subshell's: short, no asyncio."""
        if not isinstance(content, dict):
            return
        self._watch.heard()
        asked, name = content.get("id"), content.get("name")
        if content.get("kind") != "act":
            self._answer(asked)
        elif name == "features":
            self._begin_opening(asked)
        elif name == "close":
            self._close(asked)
        else:
            watch, beside = self._watch, ("features", "close")
            ok, reason = act(watch.source, watch.run_id, name, beside=beside)
            self._answer(asked, None if ok else reason)
        self._hub.wake(self._watch)

    def _begin_opening(self, asked: object) -> None:
        """Open the features on a thread of its own: nobody waits for a large result."""
        self._watch.opening = True
        self._tell({"kind": "progress", "id": asked, "text": "Opening the features…"})
        threading.Thread(
            target=self._open, args=(asked,), name="extraction_kit browse", daemon=True
        ).start()

    def _open(self, asked: object) -> None:
        watch, reason = self._watch, None
        with self._opening:  # once for all views of the card
            if watch.browser is None:
                watch.browser, reason = tried(
                    f"features of run {watch.run_id}",
                    lambda: self._browsers.open(_PLACE, watch.run_id),
                )
        watch.opening = False
        self._answer(asked, reason, browser=watch.browser)
        self._hub.watch(watch)  # may have ended: a last message tells of the browser

    def _close(self, asked: object) -> None:
        self._watch.browser = None
        self._browsers.close(_PLACE)
        self._answer(asked)
        self._hub.watch(self._watch)

    def _answer(self, asked: object, reason: str | None = None, **more: object) -> None:
        """Acknowledge; `reason`: why it was not done."""
        done = {"ok": reason is None, "reason": reason or ""}
        self._tell({"kind": "ack", "id": asked, **done, **more})

    def _tell(self, content: dict[str, Any]) -> None:
        without_parent(lambda: self.send(content))
