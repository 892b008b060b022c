"""A job that is frozen while its heartbeat reads the ledger: what others, and it, can do.

In rollback-journal mode an open read statement keeps every writer from committing. The
statement of a heartbeat takes a fraction of a millisecond, so a freeze seldom falls into it;
when it does, a writer is told so after its busy timeout, and whoever ends the frozen process
(or thaws it) sets the ledger free. In WAL mode nobody waits.
"""

import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from extraction_kit.errors import LedgerBusy
from extraction_kit.ledger import events
from extraction_kit.ledger.store import Store
from extraction_kit.lifecycle import RunState
from tests.acceptance.matrix.faults import freeze_beyond_the_lease, thaw
from tests.acceptance.matrix.oracle import aftershocks, judge, outcome
from tests.acceptance.matrix.phases import bring_to
from tests.acceptance.matrix.stagehand import SETTINGS, is_running
from tests.waiting import until

BUSY_TIMEOUT_S = 1.0


def freeze_inside_a_read(stage):
    stage.script.hold("ledger read")
    job = until(lambda: stage.script.pid_at("ledger read"), "a beat that reads the ledger")
    assert job == stage.job()
    os.kill(job, signal.SIGSTOP)
    return job


def write(stage):
    """Write an event as any process would; return for how long it took."""
    since = time.monotonic()
    impatient = Store.at(stage.bench.paths.ledger, busy_timeout_s=BUSY_TIMEOUT_S)
    try:
        with impatient.write() as connection:
            events.record_again(
                connection,
                stage.run_id,
                attempt=1,
                at=datetime.now(UTC),
                kind="refused",
                actor="a test",
                text="",
            )
    finally:
        took_s = time.monotonic() - since
        assert took_s < BUSY_TIMEOUT_S + 2
    return took_s


def uses_a_rollback_journal(stage):
    with stage.bench.store.read() as connection:
        return connection.execute(text("PRAGMA journal_mode")).scalar() == "delete"


@pytest.mark.parametrize("ending", ["thawed", "killed"])
def test_a_writer_is_told_within_its_timeout_and_nothing_is_lost(
    make_stage, undisturbed_digest, ending
):
    stage = make_stage()
    bring_to(stage, "mid-run")
    write(stage)
    job = freeze_inside_a_read(stage)
    if uses_a_rollback_journal(stage):
        with pytest.raises(LedgerBusy, match="locked"):
            write(stage)
    else:
        write(stage)
    assert stage.state() is RunState.EXTRACTING, "readers are not held up"

    stage.script.release()
    if ending == "thawed":
        os.kill(job, signal.SIGCONT)
    else:
        stage.kill(job)
    write(stage)
    stage.finish()
    aftershocks(stage)
    judge(stage, undisturbed_digest)
    assert outcome(stage) == {"thawed": "C 1/12 a1", "killed": "I 2/14 a2"}[ending]


def test_what_the_heartbeat_read_before_it_was_frozen_is_no_news_after_it(
    make_stage, ledger_url, undisturbed_digest
):
    settings = replace(SETTINGS, beat_s=1.5, lease_s=3.0, ledger_url=ledger_url)
    stage = make_stage(settings=settings)
    bring_to(stage, "mid-run")
    stage.script.hold("ledger seen")
    until(lambda: stage.script.pid_at("ledger seen"), "a beat that has read the ledger")
    (_, job) = frozen = freeze_beyond_the_lease(stage)
    thaw(frozen)
    stage.script.release("ledger seen")
    stage.script.release("mid-run")  # before the next beat: the loop itself must ask
    until(lambda: not is_running(job), "the thawed job to see that it is fenced")
    stage.script.release()
    stage.finish()
    judge(stage, undisturbed_digest)
    assert outcome(stage) == "I 2/14 a2"
