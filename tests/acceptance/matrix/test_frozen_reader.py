"""A job that is frozen while its heartbeat reads the ledger: what others can still do.

In rollback-journal mode an open read statement keeps every writer from committing. The
statement of a heartbeat takes a fraction of a millisecond, so a freeze seldom falls into it;
when it does, a writer is told so after its busy timeout, and whoever ends the frozen process
(or thaws it) sets the ledger free. In WAL mode nobody waits.
"""

import os
import signal
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from extraction_kit.errors import LedgerBusy
from extraction_kit.ledger import events
from extraction_kit.ledger.store import Store
from extraction_kit.lifecycle import RunState
from tests.acceptance.matrix.oracle import aftershocks, judge, outcome
from tests.acceptance.matrix.phases import bring_to
from tests.acceptance.staging import until

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
