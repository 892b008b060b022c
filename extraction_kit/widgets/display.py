"""Puts a card into the notebook: the only file that talks to IPython's display."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from IPython.core.getipython import get_ipython
from IPython.display import display

from extraction_kit.errors import ExtractionKitError
from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import assets, mimebundle, payload
from extraction_kit.widgets import hub as hubs
from extraction_kit.widgets.card import RunCard
from extraction_kit.widgets.routing import without_parent
from extraction_kit.widgets.source import RunSource

Details = tuple[list[Happening], list[dict[str, Any]]]


def read_details(source: RunSource, view: RunView) -> Details:
    """Return events and, of a completed run, highlights; empty where they cannot be read.

    A damaged result must not hide the card that says so.
    """
    try:
        events = source.events(view.run_id)
        if view.state is not RunState.COMPLETED:
            return events, []
        return events, source.highlights(view.run_id, hubs.N_HIGHLIGHTS)
    except ExtractionKitError:
        return [], []


def show_static(source: RunSource, run_id: str, *, refusal: str | None) -> None:
    """Display ``text/html`` and ``text/plain`` only."""
    _display_static(replace(source.view(run_id), refusal=refusal), source)


def _display_static(view: RunView, source: RunSource) -> None:
    events, highlights = read_details(source, view)
    display(mimebundle(view, events=events, highlights=highlights), raw=True)


def show_live(
    source: RunSource, run_id: str, *, refusal: str | None, freeze: bool
) -> RunCard | None:
    """Display a live card with its static fallback; the latter alone without a kernel."""
    view = replace(source.view(run_id), refusal=refusal)
    shell = get_ipython()
    if getattr(shell, "kernel", None) is None:
        _display_static(view, source)
        return None
    events, highlights = read_details(source, view)
    hub = hubs.current()
    watch = hubs.Watch(
        source=source, run_id=run_id, view=view, refusal=refusal, refused_in=view.state
    )
    watch.events, watch.highlights = events, highlights
    content = payload.build(view, events, highlights)
    first = {"seq": 0, "now": time.time(), "beat_s": hub.pace.beat_s, "browser": None}
    message = content | first
    card = without_parent(lambda: RunCard(hub, watch, message))
    static = mimebundle(view, events=events, highlights=highlights)
    handle = display(static | assets.live(card.model_id), raw=True, display_id=True)

    def replace_live(
        view: RunView,
        events: Sequence[Happening],
        highlights: Sequence[dict[str, Any]],
    ) -> None:
        handle.update(mimebundle(view, events=events, highlights=highlights), raw=True)

    watch.push = card.push
    watch.freeze = replace_live if freeze else None
    try:
        hub.watch(watch)
    except RuntimeError:  # no threads here (JupyterLite): the static card says what is so
        replace_live(view, events, highlights)
    return card
