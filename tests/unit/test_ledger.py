"""The ledger: compare-and-set, the two uniqueness rules, events, migrations."""

import sqlite3
import threading
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, text

from extraction_kit.errors import BadSettings, LedgerBusy, LedgerConflict, WorkspaceUnusable
from extraction_kit.ledger import events, records
from extraction_kit.ledger.beats import BeatRows
from extraction_kit.ledger.schema import metadata
from extraction_kit.ledger.store import _MIGRATIONS, HEAD, Store
from extraction_kit.ledger.transitions import (
    Mover,
    Target,
    claim,
    insert_run,
    move,
    next_attempt,
    queued,
    request_cancel,
)
from extraction_kit.lifecycle import TRANSITIONS, Actor, Move, RunState
from extraction_kit.liveness import Beat
from extraction_kit.views import FeatureSoFar, Preview
from tests.postgres import fresh_database

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LAUNCHER = Mover(actor=Actor.LAUNCHER, name="me@here", at=NOW)
WORKER = Mover(actor=Actor.WORKER, name="here:1", at=NOW)
USER = Mover(actor=Actor.USER, name="me@here", at=NOW)
RECONCILER = Mover(actor=Actor.RECONCILER, name="here:2", at=NOW)
FIRST = Target(run_id="r1", attempt=1)


def row(run_id="r1", **changes):
    values = {
        "run_id": run_id, "training_id": "t", "content_key": "k", "generation": 1,
        "state": "requested", "attempt": 1, "job_id": f"j-{run_id}", "cancel_requested": False,
        "corpus_digest": "c", "corpus": {}, "n_tokens": 10, "config": {}, "settings": {},
        "kit_version": "0", "created_at": NOW, "created_by": "me@here",
    }  # fmt: skip
    return values | changes


@pytest.fixture(scope="module")
def postgres_of_this_module(postgres_server):
    return fresh_database(postgres_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """An empty ledger's URL on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    found = request.getfixturevalue("postgres_of_this_module")
    with Store(found).write() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    return found


@pytest.fixture
def store(url):
    store = Store(url, busy_timeout_s=0.2)
    store.prepare()
    with store.write() as connection:
        records.insert_training(
            connection,
            {
                "training_id": "t",
                "digest": "d",
                "spec": {},
                "created_at": NOW,
                "created_by": "m",
            },
            by=LAUNCHER,
        )
        insert_run(connection, row(), by=LAUNCHER)
    return store


def read(store, run_id="r1"):
    with store.read() as connection:
        return records.run(connection, run_id)


def put(store, state):
    with store.write() as connection:
        connection.execute(text("UPDATE runs SET state = :state"), {"state": str(state)})


def test_exactly_one_of_two_deliveries_claims_an_attempt(store):
    with store.write() as connection:
        first = claim(
            connection, FIRST, by=WORKER, nonce="n1", process={"pid": 1}, kit_version="0"
        )
    with store.write() as connection:
        second = claim(
            connection, FIRST, by=WORKER, nonce="n2", process={"pid": 2}, kit_version="0"
        )
    assert (first, second) == (True, False)
    assert read(store).nonce == "n1"
    assert read(store).process == {"pid": 1}


def test_fifty_threads_claim_and_one_wins(store, url):
    wins = []

    def attempt(number):
        patient = Store(url, busy_timeout_s=30)
        with patient.write() as connection:
            if claim(
                connection, FIRST, by=WORKER, nonce=str(number), process={}, kit_version="0"
            ):
                wins.append(number)

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert read(store).nonce == str(wins[0])


@pytest.mark.parametrize("what", list(Move))
@pytest.mark.parametrize("state", list(RunState))
def test_an_illegal_move_changes_nothing_and_records_nothing(store, state, what):
    put(store, state)
    before = read(store)
    actor = {
        Move.CLAIM: WORKER, Move.PUBLISH: WORKER, Move.COMPLETE: WORKER, Move.FAIL: WORKER,
        Move.INTERRUPT: WORKER, Move.RESUME: USER, Move.CANCEL: USER, Move.ENQUEUE: LAUNCHER,
    }.get(what, RECONCILER)  # fmt: skip
    with store.write() as connection:
        n_events = len(events.of_run(connection, "r1"))
        moved = move(connection, FIRST, what, by=actor, text="test")
    assert moved == (what in TRANSITIONS[state])
    with store.read() as connection:
        assert len(events.of_run(connection, "r1")) == n_events + moved
    assert read(store).state == (TRANSITIONS[state][what] if moved else before.state)


def test_a_mover_without_the_right_is_a_bug(store):
    with store.write() as connection, pytest.raises(ValueError, match="may not resume"):
        move(connection, FIRST, Move.RESUME, by=WORKER, text="")


def test_an_older_attempt_or_another_nonce_is_fenced(store):
    with store.write() as connection:
        claim(connection, FIRST, by=WORKER, nonce="mine", process={}, kit_version="0")
        stranger = Target(run_id="r1", attempt=1, nonce="other")
        older = Target(run_id="r1", attempt=0)
        assert not move(connection, stranger, Move.PUBLISH, by=WORKER, text="")
        assert not move(connection, older, Move.PUBLISH, by=WORKER, text="")
        mine = Target(run_id="r1", attempt=1, nonce="mine")
        assert move(connection, mine, Move.PUBLISH, by=WORKER, text="")


def test_a_superseded_job_can_never_claim(store):
    with store.write() as connection:
        queued(connection, FIRST, by=LAUNCHER)
        assert next_attempt(
            connection,
            FIRST,
            Move.SUPERSEDE,
            by=RECONCILER,
            job_id="j2",
            kit_version="0",
            text="lost",
        )
    with store.write() as connection:
        assert not claim(
            connection, FIRST, by=WORKER, nonce="n", process={}, kit_version="0"
        )
        second = Target(run_id="r1", attempt=2)
        assert claim(connection, second, by=WORKER, nonce="n", process={}, kit_version="0")
    assert read(store).job_id == "j2"


def test_a_worker_of_another_release_claims_nothing(store):
    with store.write() as connection:
        assert not claim(
            connection, FIRST, by=WORKER, nonce="n", process={}, kit_version="9"
        )
    assert read(store).state is RunState.REQUESTED


def test_a_late_enqueue_mark_does_not_take_a_claim_back(store):
    with store.write() as connection:
        claim(connection, FIRST, by=WORKER, nonce="n", process={}, kit_version="0")
        assert not queued(connection, FIRST, by=LAUNCHER)
    assert read(store).state is RunState.EXTRACTING


@pytest.mark.parametrize("state", ["requested", "queued", "extracting", "publishing"])
def test_the_store_allows_one_active_run_per_training(store, state):
    put(store, state)
    with pytest.raises(LedgerConflict), store.write() as connection:
        insert_run(connection, row("r2", content_key="other"), by=LAUNCHER)
    assert read(store, "r2") is None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "interrupted"])
def test_an_ended_run_leaves_the_training_free_but_keeps_its_identity(store, state):
    put(store, state)
    with store.write() as connection:
        insert_run(connection, row("r2", content_key="other"), by=LAUNCHER)
    put(store, "completed")
    with pytest.raises(LedgerConflict), store.write() as connection:
        insert_run(connection, row("r3"), by=LAUNCHER)


def test_a_cancel_request_is_noted_once(store):
    with store.write() as connection:
        assert not request_cancel(connection, FIRST, by=USER)  # nobody extracts yet
        claim(connection, FIRST, by=WORKER, nonce="n", process={}, kit_version="0")
        assert request_cancel(connection, FIRST, by=USER)
        assert not request_cancel(connection, FIRST, by=USER)
    assert read(store).cancel_requested


def test_repeated_refusals_are_one_event_with_a_count_and_move_the_cursor(store):
    with store.read() as connection:
        start = events.cursor(connection)
    for _ in range(3):
        with store.write() as connection:
            events.record_again(
                connection, "r1", attempt=1, at=NOW, kind="refused", actor="me", text="no"
            )
    with store.read() as connection:
        refused = [one for one in events.of_run(connection, "r1") if one.kind == "refused"]
        assert events.cursor(connection) == start + 3
        assert events.count_of(connection, "refused") == {"r1": 3}
        assert events.count_of(connection, "refused", ["r1", "r2"]) == {"r1": 3}
        assert events.count_of(connection, "refused", ["r2"]) == {}
    assert [one.count for one in refused] == [3]


def test_what_is_asked_of_a_few_runs_never_reads_all_rows(tmp_path):
    """Each launch and each look asks these; a ledger of years has 100,000 events."""
    store = Store.at(
        tmp_path / "ledger.sqlite"
    )  # PostgreSQL plans by the size of its tables
    store.prepare()
    asked = []
    with store.read() as connection:
        listener = partial(_keep_statement, asked)
        event.listen(connection, "before_cursor_execute", listener)
        events.count_of(connection, "refused", ["r1"])
        records.all_trainings(connection, ["t"])
        records.generations(connection, "t", "c")
        records.active_run(connection, "t")
        records.run(connection, "r1")
        event.remove(connection, "before_cursor_execute", listener)
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [row[-1] for row in plan]
            assert not [step for step in steps if step.startswith("SCAN")], (
                statement,
                steps,
            )
    assert len(asked) == 5


def _keep_statement(asked, _connection, _cursor, statement, parameters, *_):
    asked.append((statement, parameters))


def test_times_come_back_aware_and_naive_ones_are_refused(store):
    assert read(store).created_at == NOW
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - the mistake under test
    with pytest.raises(Exception, match="naive datetime"), store.write() as connection:
        insert_run(connection, row("r2", created_at=naive), by=LAUNCHER)


def test_a_ledger_locked_by_another_writer_is_named(store, url):
    with (
        Store(url).write(),
        pytest.raises(LedgerBusy, match=r"locked for 0\.2 s"),
        store.write(),
    ):
        pass


def test_a_reader_never_waits_for_a_writer(store, url):
    with Store(url).write() as connection:
        connection.execute(text("UPDATE runs SET state = 'queued'"))
        assert read(store).state is RunState.REQUESTED


def test_a_writer_that_freezes_in_a_transaction_is_cut_off_by_the_server(postgres_url):
    Store(postgres_url).prepare()  # a migration may pause for longer than 0.5 s
    store = Store(postgres_url, frozen_after_s=0.5)

    def freeze():
        with store.write() as connection:
            patient = Store(postgres_url, busy_timeout_s=30)
            with patient.write():  # waits until the server has rolled the first one back
                pass
            connection.execute(text("SELECT 1"))

    with pytest.raises(WorkspaceUnusable, match="idle-in-transaction"):
        freeze()


def test_a_beat_row_comes_back_and_can_be_forgotten(store):
    rows = BeatRows(store)
    assert rows.read("r1", 1) is None
    seen = FeatureSoFar(feature=7, density=0.5, max_act=2.0, tokens=("東",), acts=(2.0,))
    beat = Beat(number=2, l0=1.5, preview=Preview(n_tokens=9, features=(seen,)))
    for number in (1, 2):
        rows.write("r1", 1, replace(beat, number=number))
    assert rows.read("r1", 1) == beat
    assert rows.read("r1", 2) is None
    rows.forget("r1", 1)
    assert rows.read("r1", 1) is None


def test_a_damaged_ledger_says_how_to_repair_it(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Store.at(path).prepare()
    path.write_bytes(b"x" * 9000)
    with pytest.raises(WorkspaceUnusable, match="Type: extraction-kit repair"):
        Store.at(path).prepare()


def test_a_password_is_in_no_message():
    store = Store("postgresql://me:secret@localhost:1/nothing")
    with pytest.raises(WorkspaceUnusable) as caught:
        store.prepare()
    assert "secret" not in str(caught.value)
    assert "EXTRACTION_KIT_LEDGER_URL" in str(caught.value)


@pytest.mark.parametrize("bad", ["mysql://me:secret@h/db", "no url", "duckdb:///x"])
def test_a_database_that_the_ledger_does_not_know_is_refused(bad):
    with pytest.raises(BadSettings, match="postgresql://") as caught:
        Store(bad)
    assert "secret" not in str(caught.value)


def test_a_failed_transaction_leaves_nothing(store):
    def claim_and_crash():
        with store.write() as connection:
            claim(connection, FIRST, by=WORKER, nonce="n", process={}, kit_version="0")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        claim_and_crash()
    assert read(store).state is RunState.REQUESTED


def test_the_migrations_give_exactly_the_schema_of_the_code(store):
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_the_newest_migration_is_the_one_the_code_knows(store):
    assert max(_MIGRATIONS.glob("versions/[0-9]*.py")).name.startswith(HEAD)
    assert store.version() == HEAD


def test_a_ledger_of_a_newer_release_is_refused(store, url):
    with store.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WorkspaceUnusable, match="newer release"):
        Store(url).prepare()


def test_an_old_sqlite_never_uses_wal(tmp_path):
    store = Store.at(tmp_path / "ledger.sqlite")
    store.prepare()
    with store.read() as connection:
        mode = connection.execute(text("PRAGMA journal_mode")).scalar()
    safe = sqlite3.sqlite_version_info >= (3, 51, 3)
    assert mode == ("wal" if safe else "delete")


def test_migrations_go_down_and_up_again(store):
    from alembic import command  # noqa: PLC0415 - only here
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with store.write() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    store.prepare()
    assert store.version() == HEAD
