"""Following a run in the terminal; the run itself is in other processes."""

import time

from extraction_kit.demo.terminal import Bar
from extraction_kit.lifecycle import ACTIVE
from extraction_kit.run import Run
from extraction_kit.views import RunView

_POLL_S = 0.5


def watch(run: Run) -> RunView:
    """Show the progress of a run until it has ended; return how it stands then."""
    view = run.view
    said: set[str] = set()
    with Bar("run", view.n_tokens, " tok") as bar:
        while view.state in ACTIVE:
            bar.show(view.n_tokens_done, note_of(view))
            for finding in view.findings:
                if finding not in said:
                    bar.say(f"  ! {finding}")
            said.update(view.findings)
            time.sleep(_POLL_S)
            view = run.view
    return view


def note_of(view: RunView) -> str:
    """Return what is known of an active run in a few words: phase, speed, L0, FVU, rest."""
    parts = [f"{view.state}" if view.phase is None else view.phase]
    if view.tokens_per_s:
        parts.append(f"{view.tokens_per_s:,.0f} tok/s")
    if view.l0 is not None:
        parts.append(f"L0 {view.l0:.1f}")
    if view.fvu is not None:
        parts.append(f"FVU {view.fvu:.3f}")
    if view.eta_s is not None:
        minutes, seconds = divmod(round(view.eta_s), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(parts)
