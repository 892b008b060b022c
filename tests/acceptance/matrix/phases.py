"""Where a run can be when something goes wrong, and how a cell brings it there."""

from extraction_kit.ledger import records
from extraction_kit.lifecycle import RunState
from tests.waiting import until

# phase: (place where a process is held, state in the ledger meanwhile)
PLACES = {
    "requested": ("dequeue", RunState.REQUESTED),  # committed; its launcher was killed then
    "queued": ("dequeue", RunState.QUEUED),  # the queue has the job, no worker takes it yet
    "claimed": ("claimed", RunState.EXTRACTING),  # nothing is computed
    "mid-run": ("mid-run", RunState.EXTRACTING),  # 6 of 12 batches; a checkpoint after 4
    "checkpoint": ("checkpoint 2", RunState.EXTRACTING),  # 8 batches; written, not renamed
    "staged": ("staged", RunState.PUBLISHING),  # the result is whole, not yet renamed
    "renamed": ("renamed", RunState.PUBLISHING),  # the result is in place, not yet recorded
    "completed": ("completed", RunState.COMPLETED),  # the job's process has not ended yet
}
PHASES = tuple(PLACES)
UNCLAIMED = ("requested", "queued")


def bring_to(stage, phase):
    """Launch the cell's run and hold it in `phase`."""
    place, state = PLACES[phase]
    stage.script.hold(place)
    stage.prepare()
    if phase == "requested":
        _launch_and_crash(stage)
    else:
        stage.launch()
    pid = until(lambda: stage.script.pid_at(place), f"somebody at {place!r}")
    assert pid == (stage.worker() if phase in UNCLAIMED else stage.job())
    found = stage.state()
    # The worker looks each second, and records what is in place: on a busy machine before us.
    seen_already = phase == "renamed" and found is RunState.COMPLETED
    assert found is state or seen_already, stage.run().explain()


def _launch_and_crash(stage):
    """Kill the launcher between its commit and the queue."""
    stage.script.hold("send")
    launcher = stage.start("launcher", corpus=stage.tiny.corpus)
    until(lambda: stage.script.pid_at("send"), "the commit")
    stage.kill(launcher)
    with stage.bench.store.read() as connection:
        stage.run_id = records.all_runs(connection)[0].run_id
