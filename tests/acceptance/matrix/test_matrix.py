"""Every fault in every phase: completed exactly once, nothing lost, nothing computed twice."""

import pytest

from tests.acceptance.matrix import expected
from tests.acceptance.matrix.faults import BEFOREHAND, FAULTS, WITH_MOVABLE_CLOCK
from tests.acceptance.matrix.oracle import aftershocks, judge, outcome
from tests.acceptance.matrix.phases import PHASES, bring_to

CELLS = expected.cells()


def test_the_table_has_every_fault_in_every_phase():
    assert set(CELLS) == {(fault, phase) for fault in FAULTS for phase in PHASES}


@pytest.mark.parametrize(("fault", "phase"), CELLS, ids=map(" / ".join, CELLS))
def test_a_run_completes_exactly_once(fault, phase, make_stage, undisturbed_digest):
    stage = make_stage(
        beforehand=BEFOREHAND.get(fault), movable_clock=fault in WITH_MOVABLE_CLOCK
    )
    bring_to(stage, phase)
    with FAULTS[fault](stage, phase):
        stage.script.release()
    stage.finish()
    aftershocks(stage)
    judge(stage, undisturbed_digest)
    assert outcome(stage) == CELLS[fault, phase]
