"""Run cards for notebooks: live where there is a kernel, static HTML everywhere.

Nothing of Jupyter is imported before a card is shown.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from extraction_kit.views import Happening, RunView
from extraction_kit.widgets.source import RunSource

__all__ = ["RunSource", "cell_number", "in_notebook", "mimebundle", "show", "static_only"]


def static_only() -> bool:
    """Return whether ``EXTRACTION_KIT_STATIC=1`` asks for cards without a live part.

    Notebooks under test (nbval) set it: their outputs are compared with stored ones.
    """
    return os.environ.get("EXTRACTION_KIT_STATIC", "") == "1"


def in_notebook() -> bool:
    """Tell whether a notebook's kernel runs this, without importing anything of Jupyter."""
    return cell_number() is not None


def cell_number() -> int | None:
    """Return the number of the notebook cell that is executed; None outside a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return int(shell.execution_count)


def mimebundle(
    view: RunView,
    *,
    events: Sequence[Happening] = (),
    highlights: Sequence[Mapping[str, Any]] = (),
) -> dict[str, str]:
    """Return ``text/plain`` and ``text/html`` of a run, the same for the same values.

    Under ``EXTRACTION_KIT_STATIC=1`` the HTML of a completed run names no machine, person,
    process or folder outside the workspace, and all its times are in ``<time>`` elements.
    """
    from extraction_kit.widgets import static  # noqa: PLC0415 - only when shown

    page = static.html(view, events, highlights, reproducible=static_only())
    return {"text/plain": static.plain(view), "text/html": page}


def show(
    source: RunSource,
    run_id: str,
    *,
    refusal: str | None = None,
    freeze: bool | None = None,
) -> None:
    """Display the card of a run: what ``run`` as the last line of a cell does.

    Parameters
    ----------
    source : RunSource
        Where the run is read and where clicks go.
    run_id : str
        The run.
    refusal : str, optional
        Why the launch that led here was refused; shown until the run's state changes.
    freeze : bool, optional
        Whether the live card is replaced by a static one when the run is completed, so that
        a reopened notebook shows it without a kernel. None: yes, unless
        ``EXTRACTION_KIT_STATIC=1``, which shows the static card only.
    """
    from extraction_kit.widgets import display  # noqa: PLC0415 - pulls in IPython

    if static_only():
        display.show_static(source, run_id, refusal=refusal)
    else:
        display.show_live(source, run_id, refusal=refusal, freeze=freeze is not False)
