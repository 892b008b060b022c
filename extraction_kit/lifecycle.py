"""The states of a run, who may change them, and the identities that go with them.

Rule 1: everything about states lives here, as much of it as possible in tables. No clock,
no database, no queue, no file: callers apply these tables with one conditional UPDATE.

Rule 2: a pair (state, move) that is not in the table cannot happen. ``completed`` has an
empty row: nothing leads out of it.

*Stuck* and *lost* are findings derived from evidence (see :mod:`extraction_kit.reconcile`),
never states.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum

from extraction_kit.errors import BadTrainingId


class RunState(StrEnum):
    """Where a run stands."""

    REQUESTED = "requested"  # in the ledger, not yet accepted by the queue
    QUEUED = "queued"  # the queue has the job of the current attempt
    EXTRACTING = "extracting"  # a worker process claimed the attempt and computes
    PUBLISHING = "publishing"  # all numbers are computed, files are being staged
    COMPLETED = "completed"  # published and recorded; final
    FAILED = "failed"  # ended with an error
    CANCELLED = "cancelled"  # stopped because a person asked
    INTERRUPTED = "interrupted"  # its process is gone, or was told to stop


class Move(StrEnum):
    """What can happen to a run."""

    ENQUEUE = "enqueue"  # the queue accepted the job
    SUPERSEDE = "supersede"  # a never-claimed attempt is replaced by the next one
    CLAIM = "claim"  # a worker process takes the attempt
    PUBLISH = "publish"  # the numbers are complete, staging begins
    COMPLETE = "complete"  # the result is in place and recorded
    FAIL = "fail"
    CANCEL = "cancel"
    INTERRUPT = "interrupt"  # the process says so itself (SIGTERM)
    REAP = "reap"  # an observer proved that the process is gone or silent
    RESUME = "resume"  # a person asks for a new attempt
    ADOPT = "adopt"  # the result is already published: record it


class Actor(StrEnum):
    """Who makes a move."""

    LAUNCHER = "launcher"
    WORKER = "worker"
    RECONCILER = "reconciler"
    USER = "user"


# state -> {move -> next state}; a pair that is not here cannot happen.
TRANSITIONS: Mapping[RunState, Mapping[Move, RunState]] = {
    RunState.REQUESTED: {
        Move.ENQUEUE: RunState.QUEUED,
        Move.SUPERSEDE: RunState.REQUESTED,
        Move.CLAIM: RunState.EXTRACTING,
        Move.CANCEL: RunState.CANCELLED,
        Move.ADOPT: RunState.COMPLETED,
    },
    RunState.QUEUED: {
        Move.SUPERSEDE: RunState.REQUESTED,
        Move.CLAIM: RunState.EXTRACTING,
        Move.CANCEL: RunState.CANCELLED,
        Move.ADOPT: RunState.COMPLETED,
    },
    RunState.EXTRACTING: {
        Move.PUBLISH: RunState.PUBLISHING,
        Move.FAIL: RunState.FAILED,
        Move.CANCEL: RunState.CANCELLED,
        Move.INTERRUPT: RunState.INTERRUPTED,
        Move.REAP: RunState.INTERRUPTED,
        Move.ADOPT: RunState.COMPLETED,
    },
    RunState.PUBLISHING: {
        Move.COMPLETE: RunState.COMPLETED,
        Move.FAIL: RunState.FAILED,
        Move.INTERRUPT: RunState.INTERRUPTED,
        Move.REAP: RunState.INTERRUPTED,
        Move.ADOPT: RunState.COMPLETED,
    },
    RunState.COMPLETED: {},
    RunState.FAILED: {Move.RESUME: RunState.REQUESTED, Move.ADOPT: RunState.COMPLETED},
    RunState.CANCELLED: {Move.RESUME: RunState.REQUESTED, Move.ADOPT: RunState.COMPLETED},
    RunState.INTERRUPTED: {Move.RESUME: RunState.REQUESTED, Move.ADOPT: RunState.COMPLETED},
}

# Who may make a move.
ACTORS: Mapping[Move, frozenset[Actor]] = {
    Move.ENQUEUE: frozenset({Actor.LAUNCHER, Actor.RECONCILER}),
    Move.SUPERSEDE: frozenset({Actor.RECONCILER}),
    Move.CLAIM: frozenset({Actor.WORKER}),
    Move.PUBLISH: frozenset({Actor.WORKER}),
    Move.COMPLETE: frozenset({Actor.WORKER}),
    Move.FAIL: frozenset(
        {Actor.WORKER, Actor.RECONCILER}
    ),  # the latter if `auto_fail` is set
    Move.CANCEL: frozenset({Actor.USER, Actor.WORKER, Actor.RECONCILER}),
    Move.INTERRUPT: frozenset({Actor.WORKER}),
    Move.REAP: frozenset({Actor.RECONCILER, Actor.USER}),
    Move.RESUME: frozenset({Actor.USER}),
    Move.ADOPT: frozenset({Actor.WORKER, Actor.RECONCILER}),
}

ACTIVE = frozenset(
    {RunState.REQUESTED, RunState.QUEUED, RunState.EXTRACTING, RunState.PUBLISHING}
)
UNCLAIMED = frozenset({RunState.REQUESTED, RunState.QUEUED})
CLAIMED = frozenset({RunState.EXTRACTING, RunState.PUBLISHING})
RESTING = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.INTERRUPTED})
ENDED = RESTING | {RunState.COMPLETED}


def sources_of(move: Move) -> frozenset[RunState]:
    """Return the states from which `move` is legal: the IN list of its UPDATE."""
    return frozenset(state for state, moves in TRANSITIONS.items() if move in moves)


def after(state: RunState, move: Move) -> RunState:
    """Return the state that follows; raise `ValueError` with the possible moves if illegal."""
    moves = TRANSITIONS[state]
    if move not in moves:
        possible = ", ".join(moves) or "none, it is final"
        msg = f"a {state} run cannot {move} (possible: {possible})"
        raise ValueError(msg)
    return moves[move]


# --- what a call means in a state -------------------------------------------------------


class Answer(StrEnum):
    """What a call does in a state."""

    NEW_RUN = "new run"
    ATTACH = "attach"
    RETURN = "return the result"
    REST = "return it with the refusal"
    NEW_ATTEMPT = "new attempt"
    CANCEL_NOW = "cancel at once"
    CANCEL_AT_BATCH = "cancel within one batch"
    NOTHING_TO_RESUME = "NothingToResume"
    STILL_ACTIVE = "StillActive"
    ALREADY_COMPLETED = "AlreadyCompleted"
    NOTHING_TO_CANCEL = "NothingToCancel"
    TOO_LATE = "TooLateToCancel"
    DELETE = "deleted at once, files later"
    DELETED = "RunDeleted"


def answer_to_launch(state: RunState | None, *, deleted: bool = False) -> Answer:
    """Decide what ``launch`` does when the same content is in `state` (None: never seen)."""
    if state is None:
        return Answer.NEW_RUN
    if deleted:
        return Answer.DELETED
    if state in ACTIVE:
        return Answer.ATTACH
    return Answer.RETURN if state is RunState.COMPLETED else Answer.REST


def answer_to_resume(state: RunState | None, *, deleted: bool = False) -> Answer:
    """Decide what ``resume`` does for a run in `state`."""
    if state is None:
        return Answer.NOTHING_TO_RESUME
    if deleted:
        return Answer.DELETED
    if state in ACTIVE:
        return Answer.STILL_ACTIVE
    return Answer.ALREADY_COMPLETED if state is RunState.COMPLETED else Answer.NEW_ATTEMPT


def answer_to_cancel(state: RunState | None, *, deleted: bool = False) -> Answer:
    """Decide what ``cancel`` does for a run in `state`."""
    if deleted:
        return Answer.DELETED
    if state in UNCLAIMED:
        return Answer.CANCEL_NOW
    if state is RunState.EXTRACTING:
        return Answer.CANCEL_AT_BATCH
    if state is RunState.PUBLISHING:
        return Answer.TOO_LATE
    return (
        Answer.ALREADY_COMPLETED
        if state is RunState.COMPLETED
        else Answer.NOTHING_TO_CANCEL
    )


def answer_to_delete(state: RunState) -> Answer:
    """Decide what ``delete`` does for a run in `state`."""
    return Answer.STILL_ACTIVE if state in ACTIVE else Answer.DELETE


# --- identities ---------------------------------------------------------------------------

_TRAINING_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}\Z")
_SLUG = re.compile(r"[A-Za-z0-9_-]{1,40}\Z")


def check_training_id(training_id: str) -> str:
    """Return `training_id` if it can be used, else raise `BadTrainingId`."""
    if not isinstance(training_id, str) or not _TRAINING_ID.match(training_id):
        raise BadTrainingId(training_id=training_id)
    return training_id


def digest_of(value: object) -> str:
    """Return the sha256 (hex) of the canonical JSON of `value`.

    Keys are sorted and floats written by ``repr``, so equal values have equal digests on
    every machine. NaN and infinities are refused (`ValueError`).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def run_id_of(training_id: str, content_key: str, generation: int) -> str:
    """Return the 16 hex digits that identify one run."""
    return digest_of([training_id, content_key, generation])[:16]


def slug_of(training_id: str) -> str:
    """Return `training_id` in the alphabet of RQ job ids (``[A-Za-z0-9_-]``).

    An id that does not fit is cleaned and given 6 hex digits of its hash, so that two ids
    never share a slug by cleaning alone.
    """
    if _SLUG.match(training_id):
        return training_id
    clean = re.sub(r"[^A-Za-z0-9_-]", "-", training_id)[:33]
    return f"{clean}-{hashlib.sha256(training_id.encode()).hexdigest()[:6]}"


def job_id_of(training_id: str, content_key: str, *, generation: int, attempt: int) -> str:
    """Return the single-use RQ job id of one attempt, keyed to the training."""
    return f"xk-{slug_of(training_id)}-{content_key[:10]}-g{generation}-a{attempt}"


def diagram() -> str:
    """Return the transitions as a Mermaid state diagram; the README's is made by this."""
    lines = ["stateDiagram-v2", f"    [*] --> {RunState.REQUESTED}: launch"]
    for state, moves in TRANSITIONS.items():
        ends: dict[RunState, list[str]] = {}
        for what, end in moves.items():
            ends.setdefault(end, []).append(str(what))
        lines += [
            f"    {state} --> {end}: {', '.join(names)}" for end, names in ends.items()
        ]
    lines.append(f"    {RunState.COMPLETED} --> [*]")
    return "\n".join(lines)
