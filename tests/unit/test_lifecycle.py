"""The lifecycle tables: every pair of state and move, every cell of the call table."""

import itertools

import pytest

from extraction_kit.errors import BadTrainingId
from extraction_kit.lifecycle import (
    ACTIVE,
    ACTORS,
    CLAIMED,
    ENDED,
    RESTING,
    TRANSITIONS,
    UNCLAIMED,
    Answer,
    Move,
    RunState,
    after,
    answer_to_cancel,
    answer_to_launch,
    answer_to_resume,
    check_training_id,
    digest_of,
    job_id_of,
    run_id_of,
    slug_of,
    sources_of,
)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(RunState, Move)))
def test_a_pair_is_in_the_table_or_cannot_happen(state, move):
    if move in TRANSITIONS[state]:
        assert after(state, move) is TRANSITIONS[state][move]
        assert state in sources_of(move)
    else:
        with pytest.raises(ValueError, match=f"a {state} run cannot {move} "):
            after(state, move)
        assert state not in sources_of(move)


def test_nothing_leads_out_of_completed():
    assert TRANSITIONS[RunState.COMPLETED] == {}
    with pytest.raises(ValueError, match="none, it is final"):
        after(RunState.COMPLETED, Move.RESUME)


def test_a_move_has_one_end_and_somebody_who_may_make_it():
    for move in Move:
        ends = {moves[move] for moves in TRANSITIONS.values() if move in moves}
        assert len(ends) == 1, move
        assert ACTORS[move]


def test_every_unfinished_run_can_adopt_a_published_result():
    for state in set(RunState) - {RunState.COMPLETED}:
        assert after(state, Move.ADOPT) is RunState.COMPLETED


def test_the_kinds_of_states_cover_all_without_overlap():
    assert set(RunState) == ACTIVE | ENDED
    assert not ACTIVE & ENDED
    assert UNCLAIMED | CLAIMED == ACTIVE
    assert RESTING | {RunState.COMPLETED} == ENDED


def test_work_that_was_claimed_is_never_superseded():
    for state in CLAIMED:
        assert Move.SUPERSEDE not in TRANSITIONS[state]


LAUNCH = (
    {None: Answer.NEW_RUN, RunState.COMPLETED: Answer.RETURN}
    | dict.fromkeys(ACTIVE, Answer.ATTACH)
    | dict.fromkeys(RESTING, Answer.REST)
)
RESUME = {None: Answer.NOTHING_TO_RESUME, RunState.COMPLETED: Answer.ALREADY_COMPLETED} | (
    dict.fromkeys(ACTIVE, Answer.STILL_ACTIVE) | dict.fromkeys(RESTING, Answer.NEW_ATTEMPT)
)
CANCEL = {
    None: Answer.NOTHING_TO_CANCEL,
    RunState.REQUESTED: Answer.CANCEL_NOW,
    RunState.QUEUED: Answer.CANCEL_NOW,
    RunState.EXTRACTING: Answer.CANCEL_AT_BATCH,
    RunState.PUBLISHING: Answer.TOO_LATE,
    RunState.COMPLETED: Answer.ALREADY_COMPLETED,
} | dict.fromkeys(RESTING, Answer.NOTHING_TO_CANCEL)


@pytest.mark.parametrize("state", [None, *RunState])
def test_each_call_has_its_answer_in_each_state(state):
    assert answer_to_launch(state) is LAUNCH[state]
    assert answer_to_resume(state) is RESUME[state]
    assert answer_to_cancel(state) is CANCEL[state]


@pytest.mark.parametrize("good", ["a", "gpt2-l6_topk.v2", "A" * 120, "0"])
def test_training_ids_that_can_be_used(good):
    assert check_training_id(good) == good


@pytest.mark.parametrize(
    "bad", ["", "-a", ".a", "a b", "a/b", "../x", "é", "a\n", "A" * 121, None, 7]
)
def test_training_ids_that_cannot_be_used_are_named(bad):
    with pytest.raises(BadTrainingId, match="letters, digits") as caught:
        check_training_id(bad)
    assert repr(bad) in str(caught.value)


def test_job_ids_fit_rq_and_name_training_generation_and_attempt():
    job_id = job_id_of("gpt2.l6", "0123456789abcdef", generation=2, attempt=3)
    assert job_id.endswith("-0123456789-g2-a3")
    assert set(job_id) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    )


def test_two_trainings_never_share_a_slug_by_cleaning():
    assert slug_of("a.b") != slug_of("a-b")
    assert slug_of("a.b") != slug_of("a_b")
    assert slug_of("plain_id-1") == "plain_id-1"
    assert len(slug_of("x" * 120)) <= 40


def test_identities_depend_on_every_part():
    one = run_id_of("t", "k", 1)
    assert one == run_id_of("t", "k", 1)
    assert (
        len({one, run_id_of("u", "k", 1), run_id_of("t", "l", 1), run_id_of("t", "k", 2)})
        == 4
    )


def test_a_digest_ignores_the_order_of_keys_and_refuses_nan():
    assert digest_of({"a": 1, "b": [1.5]}) == digest_of({"b": [1.5], "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of(float("nan"))
