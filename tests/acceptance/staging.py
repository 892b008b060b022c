"""A workspace with a real server and worker, and hands to break things in it."""

import os
import signal
from pathlib import Path

from extraction_kit import ExtractionConfig, Settings, Workspace
from extraction_kit.embedded import worker_pid
from extraction_kit.ledger import events, records
from extraction_kit.lifecycle import Move, RunState
from extraction_kit.liveness import ProcessIdentity
from tests.waiting import until

# Small tiles make many batches: a run has a middle in which something can go wrong.
CONFIG = ExtractionConfig(context_size=32, n_tokens=60_000, top_k=5)
SETTINGS = Settings(
    beat_s=0.2,
    lease_s=60.0,
    reconcile_s=1.0,
    queued_grace_s=2.0,
    checkpoint_every_s=0.5,
    tile_tokens=64,
    threads=1,
    device="cpu",
    min_free_bytes=0,
)


class Stage:
    """A workspace, and hands to break things in it."""

    def __init__(self, home: Path, tiny, settings: Settings = SETTINGS) -> None:
        self.tiny = tiny
        self.settings = settings
        self.ws = Workspace(home, settings=settings)
        self.ws.register_training("tiny", sae=tiny.sae, model=tiny.model)
        self.bench = self.ws._bench

    def launch(self, **options):
        options = {"corpus": self.tiny.corpus, "config": CONFIG, "strict": False} | options
        return self.ws.launch("tiny", **options)

    def record(self, run):
        with self.bench.store.read() as connection:
            return records.run(connection, run.run_id)

    def kinds(self, run):
        with self.bench.store.read() as connection:
            return [one.kind for one in events.of_run(connection, run.run_id)]

    def executions(self, run):
        """How many processes ever won a claim: the number of times it was computed."""
        return self.kinds(run).count(str(Move.CLAIM))

    def seen_queued(self, run):
        """Whether the monitor has seen the run wait in the queue."""
        seen = self.bench.observations().load()
        return seen.known_s(f"queue {self.record(run).job_id}", "queued listed") > 0

    def in_the_middle(self, run):
        """Wait until a checkpoint exists and batches are being computed; return the pid."""
        until(
            lambda: run.view.checkpoint_tokens and run.view.phase == "extracting",
            "the first checkpoint",
        )
        record = self.record(run)
        assert record.state is RunState.EXTRACTING
        assert run.view.n_tokens_done < run.view.n_tokens
        return record.process["pid"]

    def worker_pid(self):
        return worker_pid(self.bench.paths)

    def close(self):
        with self.bench.store.read() as connection:
            known = records.runs_in(connection, list(RunState))
        for record in known:
            if record.process is not None:  # an interrupted run's may be frozen
                process = ProcessIdentity.from_dict(record.process)
                process.signal(signal.SIGCONT)
                process.signal(signal.SIGKILL)
        self.ws.down()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
