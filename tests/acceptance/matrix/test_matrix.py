"""Every fault in every phase: completed exactly once, nothing lost, nothing computed twice.

All cells on both databases are `slow`, but for a part that covers every fault, every phase
and every guard, so that the usual tests end within minutes.
"""

from dataclasses import replace

import pytest

from tests.acceptance.matrix import expected
from tests.acceptance.matrix.faults import BEFOREHAND, FAULTS
from tests.acceptance.matrix.oracle import aftershocks, judge, outcome
from tests.acceptance.matrix.phases import PHASES, bring_to
from tests.acceptance.matrix.stagehand import SETTINGS

CELLS = expected.cells()

# Cells in which the removal of a guard shows, and those that a user meets first.
TELLING = {
    ("none", "mid-run"),
    ("kill -9 job", "mid-run"),
    ("kill -9 job", "staged"),
    ("kill -9 job", "renamed"),
    ("freeze, thaw", "mid-run"),
    ("freeze, thaw", "staged"),
    ("freeze, thaw late", "mid-run"),
    ("FLUSHALL", "queued"),
    ("id pushed again", "completed"),
    ("kill, then these 6", "checkpoint"),
    ("cancel", "mid-run"),
}
# One more cell of each fault, the phases taken in turn.
IN_TURN = [(fault, PHASES[number % len(PHASES)]) for number, fault in enumerate(FAULTS)]
COVERING = TELLING | set(IN_TURN)
USUAL = {"sqlite": COVERING, "postgresql": TELLING | set(IN_TURN[::2])}


def _cells():
    for database, usual in USUAL.items():
        for cell in CELLS:
            name = " / ".join(cell) + ("" if database == "sqlite" else f" / {database}")
            marks = () if cell in usual else pytest.mark.slow
            yield pytest.param(*cell, database, id=name, marks=marks)


def test_the_table_has_every_fault_in_every_phase():
    assert set(CELLS) == {(fault, phase) for fault in FAULTS for phase in PHASES}


def test_the_usual_part_covers_every_fault_and_every_phase():
    assert {fault for fault, _ in COVERING} == set(FAULTS)
    assert {phase for _, phase in COVERING} == set(PHASES)
    assert set(CELLS) >= COVERING


def test_a_run_that_nothing_happens_to_completes(make_stage, undisturbed_digest):
    """What a broken guard must not break: no fault, and no second delivery either."""
    stage = make_stage()
    bring_to(stage, "mid-run")
    stage.script.release()
    stage.finish()
    judge(stage, undisturbed_digest)


@pytest.mark.parametrize(("fault", "phase", "database"), list(_cells()))
def test_a_run_completes_exactly_once(
    request, fault, phase, database, make_stage, undisturbed_digest
):
    settings = SETTINGS
    if database == "postgresql":
        settings = replace(SETTINGS, ledger_url=request.getfixturevalue("postgres_url"))
    stage = make_stage(
        beforehand=BEFOREHAND.get(fault),
        settings=settings,
    )
    bring_to(stage, phase)
    with FAULTS[fault](stage, phase):
        stage.script.release()
    stage.finish()
    aftershocks(stage)
    judge(stage, undisturbed_digest)
    assert outcome(stage) == CELLS[fault, phase]
