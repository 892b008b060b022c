"""An eye on the runs: reconcile, and alert when one makes no progress.

It never kills and never restarts. Run it as ``extraction-kit monitor`` (a loop), or every
minute as ``extraction-kit monitor --once`` from cron or a systemd timer: what an observer saw
is remembered between its lives.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from extraction_kit.errors import ExtractionKitError
from extraction_kit.ledger import events
from extraction_kit.lifecycle import ACTIVE, Actor
from extraction_kit.status import views
from extraction_kit.views import RunView
from extraction_kit.workbench import Workbench

log = logging.getLogger(__name__)


def look(bench: Workbench) -> list[str]:
    """Reconcile once; return what was done and what is stuck, as lines of text.

    A stuck run becomes an event, counted when it is seen again.
    """
    lines = [f"run {done.run_id} {done.what}: {done.why}" for done in bench.reconcile()]
    return lines + list(_alerts(bench, views(bench)))


def _alerts(bench: Workbench, found: Sequence[RunView]) -> Iterator[str]:
    for run in found:
        if run.state in ACTIVE and _stuck(bench, run):
            hours = bench.settings.stuck_after_s / 3600
            text = f"no progress for more than {hours:g} h"
            by = bench.mover(Actor.RECONCILER)
            with bench.store.write() as connection:
                events.record_again(
                    connection,
                    run.run_id,
                    attempt=run.attempt,
                    at=by.at,
                    kind="stuck",
                    actor=by.label,
                    text=text,
                )
            yield f"run {run.run_id} is stuck: {text} (worker {run.worker})"


def _stuck(bench: Workbench, run: RunView) -> bool:
    idle_s = run.progress_age_s
    return idle_s is not None and idle_s > bench.settings.stuck_after_s


def watch(bench: Workbench, say: Callable[[str], None], stop: threading.Event) -> None:
    """Look every ``Settings.reconcile_s`` seconds until `stop` is set."""
    while True:
        try:
            for line in look(bench):
                say(line)
        except ExtractionKitError as error:  # a locked ledger: look again
            log.warning("could not look: %s", error)
        if stop.wait(bench.settings.reconcile_s):
            return
