"""The table of what is done about which evidence: every row."""

import pytest

from extraction_kit.config import Settings
from extraction_kit.jobqueue import Evidence
from extraction_kit.lifecycle import UNCLAIMED, RunState
from extraction_kit.reconcile import (
    Action,
    about_claimed,
    about_predecessor,
    about_unclaimed,
)

SETTINGS = Settings(
    queued_grace_s=30,
    intermediate_grace_s=120,
    lease_s=90,
    beat_s=15,
    kill_after_s=30,
)
PATIENCE_S = {Evidence.INTERMEDIATE: 120, Evidence.STARTED: 90}


@pytest.mark.parametrize("state", sorted(UNCLAIMED))
@pytest.mark.parametrize("evidence", [Evidence.UNKNOWN, Evidence.LISTED])
def test_unknown_grants_nothing_and_what_waits_in_the_queue_is_left(state, evidence):
    assert (
        about_unclaimed(state, evidence, unchanged_s=1e9, settings=SETTINGS) is Action.LEAVE
    )


def test_a_committed_run_that_was_never_sent_is_sent_at_once():
    action = about_unclaimed(
        RunState.REQUESTED, Evidence.MISSING, unchanged_s=0, settings=SETTINGS
    )
    assert action is Action.ENQUEUE


@pytest.mark.parametrize("state", sorted(UNCLAIMED))
@pytest.mark.parametrize(
    "evidence", sorted(set(Evidence) - {Evidence.UNKNOWN, Evidence.LISTED})
)
def test_an_id_that_cannot_run_any_more_is_superseded_after_its_grace(state, evidence):
    if state is RunState.REQUESTED and evidence is Evidence.MISSING:
        return  # the outbox, above
    patience_s = PATIENCE_S.get(evidence, 30)
    before = about_unclaimed(state, evidence, unchanged_s=patience_s - 1, settings=SETTINGS)
    after = about_unclaimed(state, evidence, unchanged_s=patience_s, settings=SETTINGS)
    assert (before, after) == (Action.LEAVE, Action.SUPERSEDE)


@pytest.mark.parametrize(
    ("gone", "silent_s", "cancelled_s", "action"),
    [
        pytest.param(True, 0, 0, Action.REAP, id="provably gone: at once"),
        pytest.param(False, 89, 0, Action.LEAVE, id="there, and beating within the lease"),
        pytest.param(False, 90, 0, Action.REAP, id="there, but frozen for a lease"),
        pytest.param(None, 89, 0, Action.LEAVE, id="on another host, beating"),
        pytest.param(None, 90, 0, Action.REAP, id="on another host, silent for a lease"),
        pytest.param(False, 0, 29, Action.LEAVE, id="cancelled, and given time to stop"),
        pytest.param(False, 0, 30, Action.KILL, id="cancelled, and does not stop"),
        pytest.param(None, 0, 999, Action.LEAVE, id="cancelled on another host"),
        pytest.param(True, 0, 30, Action.REAP, id="cancelled, and gone"),
    ],
)
def test_a_claimed_attempt_is_ended_only_when_gone_silent_or_told_to(
    gone, silent_s, cancelled_s, action
):
    found = about_claimed(
        gone=gone, silent_s=silent_s, cancelled_s=cancelled_s, settings=SETTINGS
    )
    assert found is action


@pytest.mark.parametrize(
    ("gone", "lingers_s", "action"),
    [
        pytest.param(False, 29, Action.LEAVE, id="there, and given time to end"),
        pytest.param(False, 30, Action.KILL, id="there, fenced, in the way"),
        pytest.param(None, 999, Action.LEAVE, id="on another host"),
        pytest.param(True, 999, Action.LEAVE, id="gone"),
    ],
)
def test_what_an_earlier_attempt_left_is_killed_when_it_lingers(gone, lingers_s, action):
    assert about_predecessor(gone=gone, lingers_s=lingers_s, settings=SETTINGS) is action
