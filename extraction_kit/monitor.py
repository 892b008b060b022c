"""An eye on the runs: reconcile, and alert when one makes no progress.

The workspace starts one beside its worker; ``extraction-kit monitor`` runs it in a terminal,
``extraction-kit monitor --once`` every minute from cron or a systemd timer: what an observer
saw is remembered between its lives. It never restarts anything, and kills nothing that
makes no progress unless ``Settings.auto_fail`` is set.
"""

import json
import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator

from extraction_kit import embedded
from extraction_kit.cataloguing import refresh_snapshot
from extraction_kit.errors import ExtractionKitError, Failure
from extraction_kit.indexing import Builder
from extraction_kit.ledger import events, records, transitions
from extraction_kit.ledger.records import RunRecord
from extraction_kit.lifecycle import CLAIMED, Actor, Move
from extraction_kit.liveness import ProcessIdentity, lasting
from extraction_kit.workbench import Workbench

log = logging.getLogger(__name__)

STUCK = "stuck"
SENT = "alert sent"
_WEBHOOK_TIMEOUT_S = 5.0


def look(bench: Workbench) -> list[str]:
    """Reconcile once; return what was done and what is stuck, as lines of text.

    The snapshot ``catalog.duckdb`` is rebuilt if need be.

    A stuck run becomes an event, counted when it is seen again, and is posted once to
    ``Settings.alert_webhook``.
    """
    lines = [f"run {done.run_id} {done.what}: {done.why}" for done in bench.reconcile()]
    # It may be gone, altered, or behind the ledger. Who rebuilds it now is not waited for.
    refresh_snapshot(bench, patience_s=0)
    with bench.store.read() as connection:
        claimed = records.runs_in(connection, sorted(CLAIMED))
    return lines + [
        line for run in claimed if bench.is_stuck(run) for line in _alert(bench, run)
    ]


def _alert(bench: Workbench, run: RunRecord) -> Iterator[str]:
    text = f"no progress for more than {lasting(bench.settings.stuck_after_s)}"
    _note(bench, run, kind=STUCK, text=text)
    yield f"run {run.run_id} is stuck: {text} ({_where(run)}). Type run.resume()"
    _tell(bench, run, text)
    if bench.settings.auto_fail:
        yield _fail(bench, run, text)


def _note(bench: Workbench, run: RunRecord, *, kind: str, text: str) -> None:
    by = bench.mover(Actor.RECONCILER)
    with bench.store.write() as connection:
        events.record_again(
            connection,
            run.run_id,
            attempt=run.attempt,
            at=by.at,
            kind=kind,
            actor=by.label,
            text=text,
        )


def _where(run: RunRecord) -> str:
    process = run.process or {"pid": "?", "host": "?"}
    return f"process {process['pid']} on {process['host']}"


def _fail(bench: Workbench, run: RunRecord, text: str) -> str:
    """Record a stuck run as failed, then kill its process.

    In this order: whoever sees the process gone first would record the run as interrupted.
    """
    if run.process is None or ProcessIdentity.from_dict(run.process).gone() is None:
        return f"run {run.run_id} was left: its process cannot be stopped from this machine"
    by = bench.mover(Actor.RECONCILER)
    why = f"{text}: stopped by the monitor (auto_fail)"
    with bench.store.write() as connection:
        moved = transitions.move(
            connection, run.target, Move.FAIL, by=by, text=why, values={"error": why}
        )
    if not moved:
        return f"run {run.run_id} has ended"
    if not bench.reconciler().stop_process(run):
        why = f"{why}; {_where(run)} is still there"
    return f"run {run.run_id} failed: {why}"


# --- the webhook ----------------------------------------------------------------------------


def _tell(bench: Workbench, run: RunRecord, text: str) -> None:
    """Post an alert, once per attempt; one that did not get through is tried again."""
    url = bench.settings.alert_webhook
    if url is None:
        return
    with bench.store.read() as connection:
        sent = events.of_run(connection, run.run_id)
    if any(one.kind == SENT and one.attempt == run.attempt for one in sent):
        return
    message = {
        "text": f"extraction run {run.run_id} of training {run.training_id}: {text}",
        "run_id": run.run_id,
        "training_id": run.training_id,
        "attempt": run.attempt,
        "state": str(run.state),
        "alert": STUCK,
        "where": _where(run),
        "workspace": str(bench.paths.home),
    }
    try:
        _post(url, message)
    except (OSError, ValueError) as error:
        log.warning("the alert was not delivered, it is tried again: %s", error)
    else:
        _note(bench, run, kind=SENT, text="posted to the webhook")


def _post(url: str, message: dict[str, object]) -> None:
    request = urllib.request.Request(  # noqa: S310 - http(s) only, Settings checks it
        url,
        data=json.dumps(message).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=_WEBHOOK_TIMEOUT_S):  # noqa: S310 - see above
        pass


# --- the loop -------------------------------------------------------------------------------


def watch(bench: Workbench, say: Callable[[str], None], stop: threading.Event) -> None:
    """Look every ``Settings.reconcile_s`` seconds until `stop` is set or the workspace is gone.

    Raises
    ------
    Failure
        Another monitor watches this workspace.
    """
    slot = embedded.monitor_slot(bench.paths)
    lock = embedded.take_lock(slot.lock, patience_s=1.0)
    if lock is None:
        raise Failure(
            f"a monitor (pid {slot.pid()}) watches {bench.paths.home} already. "
            "Type `extraction-kit down` to stop it first"
        )
    bench.sign_card(slot.card)
    builder = Builder(bench)
    try:
        while bench.paths.home.exists():  # a workspace that was removed needs no eye on it
            try:
                for line in look(bench):
                    say(line)
                builder.look()
            except ExtractionKitError as error:  # a locked ledger: look again
                log.warning("could not look: %s", error)
            if stop.wait(bench.settings.reconcile_s):
                return
    finally:
        builder.stop()
        slot.card.unlink(missing_ok=True)
        os.close(lock)
