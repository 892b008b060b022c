"""What is so: ledger row, beat, checkpoint and evidence of a run put together for a reader.

Nothing here changes anything. Wall-clock ages are for display; findings that lead to an
action are made by :mod:`extraction_kit.reconcile`.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from extraction_kit import disk, embedded
from extraction_kit.checkpoints import newest_meta
from extraction_kit.jobqueue import Evidence
from extraction_kit.ledger import events, records
from extraction_kit.ledger.records import RunRecord, TrainingRecord
from extraction_kit.lifecycle import ACTIVE, CLAIMED, RESTING, UNCLAIMED, RunState
from extraction_kit.liveness import Beat, lasting
from extraction_kit.reconcile import idle_s, silent_s
from extraction_kit.service import read_run
from extraction_kit.views import Happening, RunView, short, tokens_done
from extraction_kit.workbench import Workbench


def view(bench: Workbench, run_id: str) -> RunView:
    """Return a run as it stands.

    Raises
    ------
    UnknownRun
        There is none.
    """
    return next(_views(bench, [read_run(bench, run_id)]))


def views(bench: Workbench, run_ids: Sequence[str] | None = None) -> list[RunView]:
    """Return all runs, or some, as they stand, the newest first; unknown ids are left out."""
    with bench.store.read() as connection:
        if run_ids is None:
            found = records.all_runs(connection)
        else:
            some = (records.run(connection, run_id) for run_id in run_ids)
            found = [run for run in some if run is not None]
    return list(_views(bench, found))


_FEW = 200  # one look at each run's own rows is quicker than one at all rows


def _views(bench: Workbench, runs: Sequence[RunRecord]) -> Iterator[RunView]:
    run_ids = [run.run_id for run in runs] if len(runs) <= _FEW else None
    named = {run.training_id for run in runs} if len(runs) <= _FEW else None
    with bench.store.read() as connection:
        found = records.all_trainings(connection, named)
        refused = events.count_of(connection, "refused", run_ids)
    trainings = {one.training_id: one for one in found}
    for run in runs:
        yield _view(
            bench,
            run,
            training=trainings[run.training_id],
            n_refusals=refused.get(run.run_id, 0),
        )


def _view(
    bench: Workbench, run: RunRecord, *, training: TrainingRecord, n_refusals: int
) -> RunView:
    claimed = run.state in CLAIMED
    working = bench.beats.read(run.run_id, run.attempt) if claimed else None
    summary = run.summary or {}
    checkpoint = None if run.state is RunState.COMPLETED else checkpoint_tokens(bench, run)
    shown = _shown(working, summary)
    return RunView(
        run_id=run.run_id,
        training_id=run.training_id,
        generation=run.generation,
        state=run.state,
        attempt=run.attempt,
        job_id=run.job_id,
        n_tokens=run.n_tokens,
        n_tokens_done=tokens_done(
            run.state,
            run.n_tokens,
            told=None if working is None else working.n_tokens_done,
            saved=checkpoint,
        ),
        created_at=run.created_at,
        created_by=run.created_by,
        started_at=run.claimed_at,
        ended_at=run.ended_at,
        completed_at=run.completed_at,
        results_dir=run.results_dir,
        result_digest=run.result_digest,
        error=run.error,
        error_traceback=run.error_traceback,
        phase=None if working is None else working.phase,
        tokens_per_s=shown["tokens_per_s"],
        eta_s=_eta_s(run, working),
        l0=shown["l0"],
        fvu=shown["fvu"],
        n_dead=shown["n_dead"],
        preview=None if working is None else working.preview,
        d_sae=training.spec["sae"]["d_sae"],
        model=short(training.spec["model"]["source"]),
        hook_name=training.spec["hookpoint"]["hook_name"],
        worker=_worker(run),
        beat_age_s=_age_s(working, "at"),
        progress_age_s=_age_s(working, "progress_at"),
        checkpoint_tokens=checkpoint,
        cancel_requested=run.cancel_requested,
        results_bytes=run.results_bytes,
        deleted_at=run.deleted_at,
        n_refusals=n_refusals,
        findings=tuple(_findings(bench, run, working)),
        advice=_advice(run, checkpoint),
    )


def _shown(beat: Beat | None, summary: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    names = ("tokens_per_s", "l0", "fvu", "n_dead")
    if beat is not None:
        return {name: getattr(beat, name) for name in names}
    return {name: summary.get(name) for name in names}


def checkpoint_tokens(bench: Workbench, run: RunRecord) -> int | None:
    """Return how many tokens the newest checkpoint of a run holds, None without one."""
    meta = newest_meta(bench.paths.checkpoints_of(run.run_id))
    return None if meta is None else int(meta["n_tokens_done"])


def _eta_s(run: RunRecord, beat: Beat | None) -> float | None:
    if beat is None or not beat.tokens_per_s:
        return None
    return max(0.0, run.n_tokens - beat.n_tokens_done) / beat.tokens_per_s


def _age_s(beat: Beat | None, name: str) -> float | None:
    at = 0.0 if beat is None else getattr(beat, name)
    return max(0.0, time.time() - at) if at else None


def _worker(run: RunRecord) -> str | None:
    if run.process is None:
        return None
    return f"{run.process['host']}:{run.process['pid']}"


# --- findings ---------------------------------------------------------------------------------


def _findings(bench: Workbench, run: RunRecord, beat: Beat | None) -> Iterator[str]:
    if run.deleted_at is not None:
        yield f"deleted since {run.deleted_at:%Y-%m-%d %H:%M} UTC"
    if run.state in ACTIVE and (full := disk.warning(bench)):
        yield full
    if run.state in UNCLAIMED:
        yield from _findings_while_waiting(bench, run)
    if run.state in CLAIMED:
        yield from _findings_while_working(bench, run, beat)
        if run.cancel_requested:
            yield "cancel requested: it stops at the next batch"


def _findings_while_waiting(bench: Workbench, run: RunRecord) -> Iterator[str]:
    if bench.queue.evidence(run.job_id) is Evidence.UNKNOWN:
        yield "the queue server does not answer: the run is saved and will be sent"
    elif not bench.uses_own_server and not embedded.worker_alive(bench.paths):
        yield "no worker is alive: type `extraction-kit up`"
    elif bench.uses_own_server and bench.queue.n_workers() == 0:
        yield "no worker has registered with this server: start `extraction-kit worker`"


def _findings_while_working(
    bench: Workbench, run: RunRecord, beat: Beat | None
) -> Iterator[str]:
    settings = bench.settings
    if not bench.uses_own_server and not embedded.worker_alive(bench.paths):
        yield "its worker is gone; the process goes on without a supervisor"
    observed = bench.observations().load()
    silent = silent_s(observed, run, beat)
    if silent > 2 * settings.beat_s:
        yield f"no sign of life for {silent:.0f} s, verifying"
    idle = idle_s(observed, run, beat)
    if idle >= settings.stuck_after_s:
        yield (
            f"stuck: no progress for {lasting(idle)} although the process lives. "
            "run.resume() stops it and continues from its last checkpoint"
        )


def _advice(run: RunRecord, checkpoint: int | None) -> str:
    if run.purged_at is not None:
        return f"its files are purged; a launch with generation={run.generation + 1} is new"
    if run.deleted_at is not None:
        return f"ws.restore({run.run_id!r}) brings it back"
    if run.state is RunState.COMPLETED:
        return "run.browse() shows what was found, run.features() is the table"
    if run.state in RESTING:
        percent = 100 * (checkpoint or 0) // run.n_tokens
        where = (
            f"from its checkpoint at {percent} %" if checkpoint else "from the beginning"
        )
        return f"run.resume() continues {where}"
    return "await run (or run.wait()) waits for its end"


# --- why ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a run is in its state, event by event; prints as text."""

    view: RunView
    happenings: tuple[Happening, ...]
    evidence: str

    def __str__(self) -> str:
        """Return the story as lines of text."""
        run = self.view
        head = f"run {run.run_id} of training {run.training_id} is {run.state}"
        lines = [f"{head} (attempt {run.attempt}, job {run.job_id}: {self.evidence} in RQ)"]
        lines += [f"  {_line(one)}" for one in self.happenings]
        lines += [f"  ! {finding}" for finding in run.findings]
        lines.append(f"  next: {run.advice}")
        return "\n".join(lines)

    __repr__ = __str__


def _line(one: Happening) -> str:
    times = "" if one.count == 1 else f" ({one.count} times, last {one.last_at:%H:%M:%S})"
    return f"{one.at:%Y-%m-%d %H:%M:%S}  {one.kind}: {one.text}{times}  [{one.actor}]"


def explain(bench: Workbench, run_id: str) -> Explanation:
    """Tell why a run is in its state."""
    now = view(bench, run_id)
    return Explanation(
        view=now,
        happenings=tuple(happenings(bench, run_id)),
        evidence=str(bench.queue.evidence(now.job_id)),
    )


def happenings(bench: Workbench, run_id: str) -> list[Happening]:
    """Return the events of a run, oldest first."""
    with bench.store.read() as connection:
        return events.of_run(connection, run_id)


def cursor(bench: Workbench) -> int:
    """Return a number that grows with every change of the ledger."""
    with bench.store.read() as connection:
        return events.cursor(connection)


DAMAGED, SOUND_AGAIN = "damaged", "sound again"
"""Kinds of events: what a verification found out about the files of a completed run."""


def damage_by_run(
    bench: Workbench, run_ids: Collection[str] | None = None
) -> dict[str, str]:
    """Return what the last verification found wrong, of the runs with damaged files.

    Of the runs in `run_ids` only, if given: a few.
    """
    with bench.store.read() as connection:
        newest = events.newest_of(connection, (DAMAGED, SOUND_AGAIN), run_ids)
    return {run_id: text for run_id, (kind, text) in newest.items() if kind == DAMAGED}
