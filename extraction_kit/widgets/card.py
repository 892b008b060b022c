"""The live run card: an anywidget whose page side is ``page``, ``card`` (``.js``, ``.css``).

Messages (version 1)
--------------------
kernel to page
    trait ``state``: ``{seq, now, beat_s, view, events, highlights, note}``; set by the hub
    only. ``{kind: "ack", id, ok, reason}`` answers every message of the page.
page to kernel
    ``{kind: "hello", id}``: somebody looks. ``{kind: "act", id, name}`` with name launch,
    cancel or resume. The page never sets a trait.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import traitlets

from extraction_kit.errors import ExtractionKitError
from extraction_kit.views import RunView
from extraction_kit.widgets import assets
from extraction_kit.widgets.hub import Hub, Watch
from extraction_kit.widgets.routing import without_parent
from extraction_kit.widgets.source import RunSource

log = logging.getLogger(__name__)


def act(source: RunSource, run_id: str, name: object) -> tuple[bool, str]:
    """Do what a button asks for.

    Returns
    -------
    tuple of (bool, str)
        Whether it was done, and the words for the person: the advice of the run as it
        stands now, or why not.
    """
    acts: Mapping[str, Callable[[str], RunView]] = {
        "launch": source.relaunch,
        "cancel": source.cancel,
        "resume": source.resume,
    }
    chosen = acts.get(name) if isinstance(name, str) else None
    if chosen is None:
        return False, f"unknown action {name!r}; allowed are {', '.join(acts)}"
    try:
        view = chosen(run_id)
    except ExtractionKitError as error:
        return False, str(error)
    except Exception as error:  # whatever it is, the person who clicked must see it
        log.exception("%s of run %s did not work", name, run_id)
        return False, f"{type(error).__name__}: {error}"
    return True, view.refusal or ""


class RunCard(anywidget.AnyWidget):  # type: ignore[misc]
    """One run, live. Made by :func:`extraction_kit.widgets.show`."""

    _esm = assets.esm("card")
    _css = assets.css("card")
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, hub: Hub, watch: Watch, state: Mapping[str, Any]) -> None:
        super().__init__(state=dict(state))
        self._hub = hub
        self._watch = watch
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
        ok, reason = True, ""
        if content.get("kind") == "act":
            ok, reason = act(self._watch.source, self._watch.run_id, content.get("name"))
        answer = {"kind": "ack", "id": content.get("id"), "ok": ok, "reason": reason}
        without_parent(lambda: self.send(answer))
        self._hub.wake(self._watch)
