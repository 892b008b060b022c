"""The promise under every order of events: the real ledger among actors that do their worst.

Users, a queue that delivers anything at any time, processes that die or freeze between any two
steps, observers that act on what they read too long ago. After each step everything that the
ledger promises is checked from outside, with plain SQL and a look at the files.
"""

import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from extraction_kit import deletion, lifecycle, service
from extraction_kit.catalog.publish import MANIFEST, read_manifest, stage
from extraction_kit.errors import (
    AlreadyCompleted,
    GenerationUnavailable,
    NothingToCancel,
    RestsUntilResumed,
    RunDeleted,
    RunRefused,
    StillActive,
    TooLateToCancel,
    TrainingBusy,
)
from extraction_kit.jobqueue import Evidence
from extraction_kit.ledger import records
from extraction_kit.ledger.store import Store
from extraction_kit.ledger.transitions import Mover
from extraction_kit.lifecycle import (
    ACTIVE,
    CLAIMED,
    RESTING,
    UNCLAIMED,
    Actor,
    Answer,
    Move,
    RunState,
)
from tests.unit.protocol_model import CONTENT_KEYS, POINTS, TRAININGS, Crash, World
from tests.unit.synthetic import synthetic

N_EXAMPLES, N_STEPS = 500, 50
N_STEPS_AT_LEAST = 20_000
N_AT_LEAST_OF_EACH_MOVE = 3
AFTER_COMMIT = "crash after a commit"
FAULTS = ("", "", "", "down", "reply lost", "crash before", "crash after", AFTER_COMMIT)
MEANWHILE = ("", "", "a worker steps", "a delivery", "a launch", "a cancel", "a deletion")
MOVES = {str(move) for move in Move}
REFUSAL = {Answer.RETURN: AlreadyCompleted, Answer.REST: RestsUntilResumed}
ANSWERS = {Answer.NEW_RUN, Answer.ATTACH, Answer.RETURN, Answer.REST, TrainingBusy,
           GenerationUnavailable, RunDeleted}  # fmt: skip
EXCEPTION = {
    Answer.STILL_ACTIVE: StillActive,
    Answer.ALREADY_COMPLETED: AlreadyCompleted,
    Answer.NOTHING_TO_CANCEL: NothingToCancel,
    Answer.TOO_LATE: TooLateToCancel,
    Answer.DELETED: RunDeleted,
}

indices = st.integers(0, 7)
faults = st.sampled_from(FAULTS)
moments = st.sampled_from(MEANWHILE)
generations = st.sampled_from([None, None, None, 1, 2, 3])
SAME_EACH_TIME = "CI" in os.environ  # elsewhere each call takes new steps
# What fails is reported as found: shortening it takes minutes. Ask for it by this variable.
PHASES = list(Phase) if "SHRINK" in os.environ else [Phase.generate]


def outcome_of(call):
    """Return what `call` returns, or the class of its refusal or crash."""
    try:
        return call()
    except (RunRefused, Crash) as end:
        return type(end)


class Protocol(RuleBasedStateMachine):
    """A few users, one ledger, and everything that can go wrong around it."""

    template: Path
    n_steps = 0
    n_completed = 0
    answers: set[object]
    moves: Counter[Move]

    def __init__(self) -> None:
        super().__init__()
        # In memory where possible: each of the many commits would wait for a disk.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
        self.home = Path(tempfile.mkdtemp(prefix="xk-protocol-", dir=memory))
        shutil.copy(self.template / "ledger.sqlite", self.home)
        self.world = World(self.home, self.template / "staged")
        self._kernel = self.world.kernel.in_charge()
        self._kernel.__enter__()
        self.completed: dict[str, dict] = {}
        self.buried: dict[str, dict] = {}
        self.published: dict[Path, tuple] = {}
        self.attempts: dict[str, int] = {}
        self.replayed: dict[str, RunState] = {}
        self.seen_seq = 0
        self.age = -1  # the invariants are checked once before the first step

    def teardown(self) -> None:
        self._kernel.__exit__(None, None, None)
        self.world.sql.close()
        shutil.rmtree(self.home)

    # --- what is so, seen from outside ---

    def rows(self) -> list[sqlite3.Row]:
        return self.world.sql.execute("SELECT * FROM runs ORDER BY run_id").fetchall()

    def pick(self, index: int) -> sqlite3.Row:
        rows = self.rows()
        return rows[index % len(rows)]

    def job(self, index: int) -> str:
        jobs = sorted(self.world.queue.jobs)
        return jobs[-1 - index % len(jobs)]

    def busy(self, row_or_training: str) -> bool:
        return any(
            row["training_id"] == row_or_training and row["state"] in ACTIVE
            for row in self.rows()
        )

    @property
    def living(self) -> list:
        return [worker for worker in self.world.workers if worker.alive]

    # --- users ---

    @rule(training=st.integers(0, 1), key=st.integers(0, 1), generation=generations,
          fault=faults, meanwhile=moments)  # fmt: skip
    def launch(self, training, key, generation, fault, meanwhile):
        content = self.world.content(training, key)
        expected = self.expected_launch(training, key, generation)

        def something_else_happens():
            nonlocal expected
            self.happen(meanwhile, training)
            expected = self.expected_launch(training, key, generation)

        self.plan(fault)
        self.world.moment.pending = something_else_happens if meanwhile else None
        bench = self.world.bench
        came = outcome_of(lambda: service.launch(bench, content, generation=generation))
        if came is Crash:
            assert expected is Answer.NEW_RUN or fault == AFTER_COMMIT
        elif isinstance(came, service.Launched):
            assert came.answer is expected
            assert type(came.refusal) is REFUSAL.get(came.answer, type(None))
            assert self.world.row(came.run_id)["content_key"] == content.key
        else:
            assert came is expected
        self.answers.add(expected)
        self.forget_what_was_planned()

    def expected_launch(self, training, key, generation):
        """Read the table of the lifecycle, and the rules of generations, anew."""
        rows = [
            row
            for row in self.rows()
            if (row["training_id"], row["content_key"])
            == (TRAININGS[training], CONTENT_KEYS[key])
        ]
        states = {row["generation"]: RunState(row["state"]) for row in rows}
        deleted = {row["generation"] for row in rows if row["deleted_at"]}
        shown = states.keys() - deleted
        done = [number for number in shown if states[number] is RunState.COMPLETED]
        wanted = generation or max(done or shown or states, default=None)
        answer = lifecycle.answer_to_launch(states.get(wanted), deleted=wanted in deleted)
        if answer is Answer.DELETED:
            return RunDeleted
        if answer is not Answer.NEW_RUN:
            return answer
        newest = max(states, default=0)
        is_final = newest in deleted or states.get(newest) is RunState.COMPLETED
        follows = newest == 0 or is_final
        if generation is not None and not (follows and generation == newest + 1):
            return GenerationUnavailable
        return TrainingBusy if self.busy(TRAININGS[training]) else answer

    @precondition(lambda self: self.rows())
    @rule(index=indices, fault=faults)
    def resume(self, index, fault):
        if self.pick(index)["state"] in ACTIVE:
            self.world.bench.reconcile()  # as resume does: its process may be gone
        row = self.pick(index)
        deleted = row["deleted_at"] is not None
        answer = lifecycle.answer_to_resume(RunState(row["state"]), deleted=deleted)
        expected = EXCEPTION.get(answer)
        if answer is Answer.NEW_ATTEMPT and self.busy(row["training_id"]):
            expected = TrainingBusy
        self.plan(fault)
        came = outcome_of(lambda: service.resume(self.world.bench, row["run_id"]))
        assert came is expected or (
            came is Crash and (expected is None or fault == AFTER_COMMIT)
        )
        attempt = self.world.row(row["run_id"])["attempt"]
        assert attempt == row["attempt"] + (expected is None)
        self.forget_what_was_planned()

    @precondition(lambda self: self.rows())
    @rule(index=indices)
    def cancel(self, index):
        row = self.pick(index)
        deleted = row["deleted_at"] is not None
        answer = lifecycle.answer_to_cancel(RunState(row["state"]), deleted=deleted)
        came = outcome_of(lambda: service.cancel(self.world.bench, row["run_id"]))
        assert came is EXCEPTION.get(answer)
        if answer is Answer.CANCEL_NOW:
            assert self.world.row(row["run_id"])["state"] == RunState.CANCELLED

    @precondition(
        lambda self: self.age % 3 == 0 and self.rows()
    )  # else little else happens
    @rule(index=indices)
    def delete(self, index):
        if self.pick(index)["state"] in ACTIVE:
            self.world.bench.reconcile()  # as delete does
        row = self.pick(index)
        came = outcome_of(lambda: deletion.delete(self.world.bench, row["run_id"]))
        answer = lifecycle.answer_to_delete(RunState(row["state"]))
        assert came is EXCEPTION.get(answer, row["deleted_at"] is None)

    @precondition(lambda self: any(row["deleted_at"] for row in self.rows()))
    @rule(index=indices)
    def restore(self, index):
        deleted = [row["run_id"] for row in self.rows() if row["deleted_at"]]
        assert deletion.restore(self.world.bench, deleted[index % len(deleted)])

    # --- the queue ---

    @precondition(lambda self: self.world.queue.jobs)
    @rule(index=indices, elsewhere=st.booleans())
    def the_queue_delivers_any_id_again(self, index, elsewhere):
        self.world.deliver(self.job(index), elsewhere=elsewhere)

    @precondition(lambda self: self.world.queue.jobs)
    @rule(index=indices, evidence=st.sampled_from(Evidence))
    def the_queue_changes_its_mind(self, index, evidence):
        self.world.queue.says[self.job(index)] = evidence

    @precondition(lambda self: self.world.queue.jobs)
    @rule()
    def the_queue_forgets_everything(self):
        self.world.queue.says.clear()

    # --- processes: one that is not stepped is frozen ---

    @precondition(lambda self: self.living)
    @rule(index=indices)
    def a_process_goes_on(self, index):
        self.living[index % len(self.living)].step()

    @precondition(lambda self: self.living)
    @rule(index=indices, point=st.sampled_from(POINTS))
    def a_process_reaches(self, index, point):
        self.living[index % len(self.living)].run(until=point)

    @precondition(lambda self: self.living)
    @rule(index=indices, point=st.sampled_from(POINTS))
    def a_process_dies_at(self, index, point):
        worker = self.living[index % len(self.living)]
        worker.run(until=point)
        worker.crash()

    @precondition(lambda self: self.living)
    @rule(index=indices)
    def a_process_finishes(self, index):
        self.living[index % len(self.living)].run()

    @precondition(lambda self: self.living)
    @rule(index=indices)
    def a_process_beats(self, index):
        self.living[index % len(self.living)].beat()

    @precondition(lambda self: self.living)
    @rule(index=indices, freezes=st.booleans())
    def a_process_is_told_to_stop(self, index, freezes):
        worker = self.living[index % len(self.living)]
        worker.told_to_stop = True
        if freezes:
            worker.step()
        else:
            worker.run()

    @precondition(lambda self: self.living)
    @rule(index=indices)
    def a_process_fails(self, index):
        worker = self.living[index % len(self.living)]
        worker.breaks = True
        worker.run()

    @precondition(lambda self: self.living)
    @rule(index=indices, point=st.sampled_from(POINTS),
          fault=st.sampled_from(["", AFTER_COMMIT]), thaws=st.booleans())  # fmt: skip
    def a_frozen_process_is_given_up_and_the_next_one_finishes(
        self, index, point, fault, thaws
    ):
        frozen = self.living[index % len(self.living)]
        run_id = frozen.target.run_id
        frozen.run(until=point)
        for _ in range(4):  # observers may die after one change each
            if self.world.row(run_id)["state"] in CLAIMED:
                self.look(fault=fault)
                self.world.moment.now_s += 90
        outcome_of(lambda: service.resume(self.world.bench, run_id))
        job_id = self.world.row(run_id)["job_id"]
        if job_id in self.world.queue.jobs:
            self.world.deliver(job_id).run()
        if thaws:
            frozen.run()

    # --- observers ---

    @rule(seconds=st.sampled_from([1, 20, 60, 100_000]))
    def time_passes(self, seconds):
        self.world.moment.now_s += seconds

    @precondition(lambda self: self.rows())
    @rule(fault=faults, meanwhile=moments)
    def an_observer_looks(self, fault, meanwhile):
        self.look(fault=fault, meanwhile=meanwhile)

    @precondition(lambda self: self.rows())
    @rule(meanwhile=moments)
    def an_observer_looks_for_more_than_a_lease(self, meanwhile):
        self.look()
        self.world.moment.now_s += 90
        self.look(meanwhile=meanwhile)

    def look(self, *, fault="", meanwhile=""):
        self.plan(fault)
        if meanwhile:
            self.world.moment.pending = lambda: self.happen(meanwhile, 0)
        outcome_of(self.world.bench.reconcile)
        self.forget_what_was_planned()

    def happen(self, what, training):
        """Do what another process does between this one's look and its act."""
        if what == "a worker steps" and self.living:
            self.living[-1].step()
        if what == "a delivery" and self.world.queue.jobs:
            self.world.deliver(self.job(0))
        if what == "a launch":
            content = self.world.content(training, 0)
            outcome_of(lambda: service.launch(self.world.bench, content))
        if what == "a cancel" and self.rows():
            run_id = self.pick(training)["run_id"]
            outcome_of(lambda: service.cancel(self.world.bench, run_id))
        if what == "a deletion" and self.rows():
            run_id = self.pick(training)["run_id"]
            outcome_of(lambda: deletion.delete(self.world.bench, run_id))

    def plan(self, fault):
        self.world.moment.dies_after_commit = fault == AFTER_COMMIT
        self.world.queue.fault = fault

    def forget_what_was_planned(self):
        self.plan("")
        self.world.moment.pending = None

    # --- nothing is lost: whatever happened, everything can still be completed ---

    @precondition(lambda self: self.age >= 30 and self.rows())
    @rule()
    def the_storm_is_over(self):
        for row in self.rows():
            deletion.restore(self.world.bench, row["run_id"])
        for _ in range(60):
            open_runs = [row for row in self.rows() if row["state"] != RunState.COMPLETED]
            if not open_runs:
                break
            for row in open_runs:
                self.help_on(row["run_id"])
        assert {row["state"] for row in self.rows()} == {RunState.COMPLETED}
        Protocol.n_completed += len(self.rows())

    def help_on(self, run_id):
        row = self.world.row(run_id)  # anew: help for another one may have completed it
        state = RunState(row["state"])
        if state in RESTING and not self.busy(row["training_id"]):
            service.resume(self.world.bench, row["run_id"])
        elif state in UNCLAIMED and row["job_id"] in self.world.queue.jobs:
            self.world.deliver(row["job_id"]).run()
        self.world.moment.now_s += 90
        self.look()

    # --- what must hold after each step ---

    @invariant()
    def the_promise_holds(self):
        Protocol.n_steps += self.age >= 0
        self.age += 1
        rows = self.rows()
        self.check_rows(rows)
        self.check_published(rows)
        self.check_history({row["run_id"]: row["state"] for row in rows})
        assert all(n == 1 for n in self.world.executions.values()), "an attempt ran twice"

    def check_rows(self, rows):
        active = [row["training_id"] for row in rows if row["state"] in ACTIVE]
        assert len(active) == len(set(active)), "two active runs of one training"
        assert self.completed.keys() <= {row["run_id"] for row in rows}
        for row in rows:
            run_id = row["run_id"]
            assert row["attempt"] >= self.attempts.get(run_id, 1), "an attempt went back"
            self.attempts[run_id] = row["attempt"]
            facts = {name: row[name] for name in row.keys() if name != "deleted_at"}  # noqa: SIM118 - sqlite3.Row iterates over values
            if row["deleted_at"] is None:
                self.buried.pop(run_id, None)
            else:
                assert self.buried.setdefault(run_id, facts) == facts, "a deleted run moved"
            if run_id in self.completed:
                assert facts == self.completed[run_id], "a completed run changed"
            elif row["state"] == RunState.COMPLETED:
                self.completed[run_id] = facts
                manifest = read_manifest(Path(row["results_dir"]))
                assert manifest["attempt"] == row["published_attempt"]
                assert manifest["run_id"] == run_id

    def check_published(self, rows):
        found = {}
        for row in rows:
            folder = self.world.bench.paths.results_of(row["run_id"])
            if folder.exists():
                text = (folder / MANIFEST).read_bytes()
                found[folder] = (folder.stat().st_ino, text)
        assert self.published.items() <= found.items(), "a published result changed"
        self.published = found

    def check_history(self, states):
        """Replay the events by the table; it must end where the rows are."""
        for event in self.world.sql.execute(
            "SELECT * FROM events WHERE seq > ? AND run_id IS NOT NULL ORDER BY seq",
            (self.seen_seq,),
        ):
            self.seen_seq = event["seq"]
            run_id, kind = event["run_id"], event["kind"]
            if kind == "launched":
                assert run_id not in self.replayed
                self.replayed[run_id] = RunState.REQUESTED
            elif kind in MOVES:
                self.replayed[run_id] = lifecycle.after(self.replayed[run_id], Move(kind))
                Protocol.moves[Move(kind)] += 1
        assert self.replayed == states, "the history does not lead to the rows"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A ledger with two trainings, and a staged result: copied for each example."""
    folder = tmp_path_factory.mktemp("template")
    store = Store.at(folder / "ledger.sqlite")
    store.prepare()
    by = Mover(actor=Actor.USER, name="me@here", at=datetime(2026, 1, 2, tzinfo=UTC))
    for name in TRAININGS:
        row = {"training_id": name, "digest": "d", "spec": {}, "created_at": by.at,
               "created_by": by.name}  # fmt: skip
        with store.write() as connection:
            records.insert_training(connection, row, by=by)
    small = synthetic(d_sae=4, n_contexts=4)
    stage(folder / "staged", small.result, small.manifest)
    return folder


@pytest.mark.slow  # a minute and more
@pytest.mark.timeout(900)
def test_whatever_happens_in_any_order_each_run_completes_once_and_never_changes(template):
    Protocol.template, Protocol.answers, Protocol.moves = template, set(), Counter()
    Protocol.n_steps = Protocol.n_completed = 0
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=N_EXAMPLES,
            stateful_step_count=N_STEPS,
            derandomize=SAME_EACH_TIME,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        ),
    )
    moves = ", ".join(f"{n} {move}" for move, n in Protocol.moves.most_common())
    print(f"{Protocol.n_steps} steps, {Protocol.n_completed} completed late; {moves}")  # noqa: T201 - the figure of this test
    assert Protocol.n_steps >= N_STEPS_AT_LEAST
    # Nothing of it is idle talk: every move and every answer came up, more than once.
    assert Protocol.n_completed >= N_EXAMPLES // 2
    assert min(Protocol.moves[move] for move in Move) >= N_AT_LEAST_OF_EACH_MOVE
    assert Protocol.answers == ANSWERS
