"""What a person asks for with a click, tried: done, or in words why not."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from extraction_kit.errors import ExtractionKitError
from extraction_kit.views import RunView
from extraction_kit.widgets.payload import safe
from extraction_kit.widgets.source import RunSource

log = logging.getLogger(__name__)

T = TypeVar("T")


def tried(name: str, call: Callable[[], T]) -> tuple[T | None, str | None]:
    """Return what `call` returns, and in the words for a person why it did not work."""
    try:
        return call(), None
    except ExtractionKitError as error:
        return None, str(safe(str(error)))
    except Exception as error:  # whatever it is, the person who clicked must see it
        log.exception("%s did not work", name)
        return None, str(safe(f"{type(error).__name__}: {error}"))


def act(
    source: RunSource, run_id: str, name: object, *, beside: Iterable[str] = ()
) -> tuple[bool, str]:
    """Do what a button asks for; `beside` are acts that the caller does itself.

    Returns
    -------
    tuple of (bool, str)
        Whether it was done, and why not.
    """
    acts: Mapping[str, Callable[[str], RunView]] = {
        "launch": source.relaunch,
        "cancel": source.cancel,
        "resume": source.resume,
    }
    chosen = acts.get(name) if isinstance(name, str) else None
    if chosen is None:
        allowed = ", ".join([*acts, *beside])
        return False, f"unknown action {name!r}; allowed are {allowed}"
    _, reason = tried(f"{name} of run {run_id}", lambda: chosen(run_id))
    return reason is None, reason or ""
