"""Programs that the zygote forks: a worker that can be held, and those who disturb it.

Imported, and never used, by the zygote: a process that has used torch cannot be forked.
"""

import functools
import os
import sys
import threading
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import redis
import rq
import rq.utils
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from extraction_kit import (
    ExtractionConfig,
    Workspace,
    atomic,
    jobqueue,
    outbox,
    workbench,
    worker,
)
from extraction_kit.catalog import publish
from extraction_kit.extraction.engine import _Extraction
from extraction_kit.ledger import records
from extraction_kit.lifecycle import Move
from extraction_kit.workbench import Workbench
from tests.acceptance.matrix.script import CHECKPOINTS, MIDDLE, Script

CONFIG = ExtractionConfig(
    context_size=32, n_tokens=718, top_k=5
)  # the last context is full
"""Twelve batches of two contexts."""


def run(program, request):
    """Be one of the programs below."""
    PROGRAMS[program](request, Script(Path(request["script"])))


def held_worker(request, script):
    """Serve the queue as the kit's own worker does, in a process that can be held."""
    _instrument(script)
    worker.serve(Path(request["home"]), slot_number=int(request["slot"]))


def held_launcher(request, script):
    """Launch, and be held between the commit and the queue."""
    _wrapped(outbox, "send", before=lambda *_: script.pause("send"))
    workspace = Workspace(Path(request["home"]))
    workspace.launch("tiny", corpus=Path(request["corpus"]), config=CONFIG)


def stock_worker(request, script):
    """Take what is in the queue as RQ's own worker does, maintenance and all, then end."""
    _instrument(script)
    connection = redis.Redis.from_url(request["url"])
    queue = rq.Queue(jobqueue.QUEUE, connection=connection, serializer=JSONSerializer)
    rq.Worker([queue], connection=connection, serializer=JSONSerializer).work(burst=True)
    script.note("stock worker ended")


def stock_requeue(request, script):
    """Be a stock client whose clock is ahead: it abandons what runs, and requeues it."""
    connection = redis.Redis.from_url(request["url"])
    queue = rq.Queue(jobqueue.QUEUE, connection=connection, serializer=JSONSerializer)
    StartedJobRegistry(queue=queue).cleanup(timestamp=time.time() + 1e6)
    try:
        job = Job.fetch(request["job_id"], connection=connection, serializer=JSONSerializer)
        abandoned = job.get_status() == "failed"
        job.requeue()
    except NoSuchJobError:
        script.note("requeue", abandoned=False, requeued=False, why="no such job")
    except InvalidJobOperation:
        script.note("requeue", abandoned=abandoned, requeued=False, why="not failed")
    else:
        script.note("requeue", abandoned=abandoned, requeued=True, why="")


def catalog_holder(request, script):
    """Open the catalog snapshot read-write and keep it open."""
    import duckdb  # noqa: PLC0415 - only this program uses it

    with duckdb.connect(request["catalog"]) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS held (a INTEGER)")
        script.note("catalog held")
        script.pause("catalog")


PROGRAMS = {
    "worker": held_worker,
    "launcher": held_launcher,
    "stock worker": stock_worker,
    "stock requeue": stock_requeue,
    "catalog holder": catalog_holder,
}


# --- places at which a process can be held --------------------------------------------------


def _wrapped(owner, name, *, before=None, after=None):
    """Replace a function by one that also calls `before` and `after` with its arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        if before is not None:
            before(*args)
        result = original(*args, **kwargs)
        if after is not None:
            after(result, *args)
        return result

    setattr(owner, name, wrapper)


def _instrument_clock(script):
    """Make the clocks movable, in the kit and in RQ: both read them through these."""
    real, real_now, real_boottime = time.time, rq.utils.now, worker.boottime
    time.time = lambda: real() + script.clock_offset_s()
    worker.boottime = lambda: real_boottime() + script.slept_s()

    def moved_now():
        return real_now() + timedelta(seconds=script.clock_offset_s())

    workbench.utc_now = moved_now
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "rq" and getattr(module, "now", None) is real_now:
            module.now = moved_now


def _instrument(script):
    _instrument_clock(script)
    _instrument_parent(script)
    _instrument_job(script)
    _instrument_engine(script)
    _instrument_beat(script)


def _instrument_parent(script):
    _wrapped(
        jobqueue._Worker,
        "dequeue_job_and_maintain_ttl",
        before=lambda *_: script.pause("dequeue") if script.holds("dequeue") else None,
    )
    reconcile = Workbench.reconcile

    def unless_held(bench):
        """Sleep through the ticks meanwhile: a worker that has not come to the run yet."""
        return [] if script.holds("dequeue") else reconcile(bench)

    Workbench.reconcile = unless_held


def _instrument_job(script):
    attempt = {}

    def delivered(run_id, number):
        attempt["number"] = number
        script.note("delivered", run_id=run_id, attempt=number)

    def moved(moved, _self, what, *_):
        if moved and what in {Move.COMPLETE, Move.ADOPT}:
            script.pause("completed", attempt["number"])

    _wrapped(worker, "run_job", before=delivered)
    _wrapped(
        worker.Attempt,
        "_complete",
        before=lambda *_: script.pause("claimed", attempt["number"]),
    )
    _wrapped(
        publish,
        "publish",
        before=lambda *_: script.pause("staged", attempt["number"]),
        after=lambda *_: script.pause("renamed", attempt["number"]),
    )
    _wrapped(worker.Attempt, "_move", after=moved)


def _instrument_beat(script):
    """Let the beat's look at the ledger be held in the middle of a statement, and after it."""
    look = records.run

    def held_look(connection, run_id):
        in_beat = threading.current_thread().name == "xk-beat"
        if in_beat and script.holds("ledger read"):
            raw = connection.connection.driver_connection
            with closing(raw.execute("SELECT * FROM events")) as statement:
                statement.fetchone()  # there are more rows: the statement stays open
                script.pause("ledger read")
        seen = look(connection, run_id)
        if in_beat and script.holds("ledger seen"):
            script.pause("ledger seen")
        return seen

    records.run = held_look


def _instrument_engine(script):
    """Log each batch, make checkpoints due at known batches, hold in the middle and in them.

    The attempt's number is read from its own checkpoint folder, ``a<attempt>``.
    """

    def begins(job):
        script.note(
            "batch",
            run=job.folder.parent.name,
            attempt=_attempt_of(job.folder),
            context=job.n_contexts_done,
        )

    def ends(_, job):
        n_batches = job.n_contexts_done // job.rig.tile
        if n_batches in CHECKPOINTS:
            job.last_save = -float("inf")  # the engine's own loop saves when time is up
        if n_batches == MIDDLE:
            script.pause("mid-run", _attempt_of(job.folder))

    def renames(_staged, final):
        if final.name.isdecimal():
            script.pause(f"checkpoint {int(final.name)}", _attempt_of(final.parent))

    def saved(_, job):
        job.saver.finish()  # no batch meanwhile: their number is known at every fault

    _wrapped(_Extraction, "_batch", before=begins, after=ends)
    _wrapped(_Extraction, "_begin_to_save", after=saved)
    _wrapped(atomic, "move_folder", before=renames)


def _attempt_of(folder):
    return int(folder.name.removeprefix("a"))


def environment_of(settings, home):
    """Return what a process needs to be a worker of `home` under `settings`."""
    return settings.to_environment() | {
        "EXTRACTION_KIT_HOME": str(home),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
