"""The one message that a card receives: view, events and result as safe JSON values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import words

MAX_EVENTS = 40
MAX_TRACEBACK = 20_000

# They change with every look at the clock: no reason to send a message.
VOLATILE = frozenset({"beat_age_s", "progress_age_s", "eta_s"})


def safe(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return `value` as what every JSON encoder and every page accepts.

    Infinities and NaN become None; what cannot be encoded, or would turn the text of the
    page round, is written out.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return words.tame(value)
    if isinstance(value, Mapping):
        return {str(key): safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [safe(item) for item in value]
    return value


def short(value: float) -> float:
    """Return `value` with five significant digits: what a page shows has three."""
    return float(f"{value:.5g}") if math.isfinite(value) else 0.0


def view_fields(view: RunView) -> dict[str, Any]:
    """Return the view for the page; only the end of a long traceback is kept."""
    fields = view.to_dict()
    if view.error_traceback and len(view.error_traceback) > MAX_TRACEBACK:
        fields["error_traceback"] = "...\n" + view.error_traceback[-MAX_TRACEBACK:]
    plain: dict[str, Any] = safe(fields)
    return plain


def event_fields(events: Sequence[Happening]) -> list[dict[str, Any]]:
    """Return the newest events for the page, oldest first."""
    return [
        {
            "at": event.at.timestamp(),
            "attempt": event.attempt,
            "kind": safe(event.kind),
            "actor": safe(event.actor),
            "text": safe(event.text),
            "count": event.count,
        }
        for event in events[-MAX_EVENTS:]
    ]


def build(
    view: RunView,
    events: Sequence[Happening] = (),
    highlights: Sequence[Mapping[str, Any]] = (),
    *,
    note: str | None = None,
) -> dict[str, Any]:
    """Return the content of a card, without the time and number of the message."""
    return {
        "view": view_fields(view),
        "events": event_fields(events),
        "highlights": safe(list(highlights)) if view.state is RunState.COMPLETED else [],
        "note": safe(note),
    }


def essence(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of `content` whose change is worth a message."""
    view = {name: item for name, item in content["view"].items() if name not in VOLATILE}
    return {**content, "view": view}
