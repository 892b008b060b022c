"""Twenty trainings, three workers, and somebody who kills processes at random for minutes."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import pytest
import redis

from extraction_kit import embedded
from extraction_kit.catalog.publish import verify
from extraction_kit.embedded import worker_slot
from extraction_kit.errors import Refused
from extraction_kit.ledger import events, records
from extraction_kit.lifecycle import CLAIMED, RESTING, RunState
from extraction_kit.liveness import ProcessIdentity
from tests.acceptance.matrix.held import CONFIG
from tests.acceptance.matrix.oracle import COMPLETING
from tests.acceptance.matrix.stagehand import SETTINGS
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

N_TRAININGS, N_WORKERS, KILLING_S = 20, 3, 120.0
LONG = CONFIG.replace(n_tokens=40_000)
PATIENT = replace(SETTINGS, checkpoint_every_s=0.3)


class Soak:
    """The workspace, its supervisor, a person who resumes, and the killer."""

    def __init__(self, stage, seed):
        self.stage, self.bench, self.chance = stage, stage.bench, random.Random(seed)  # noqa: S311 - not a secret
        self.killed = Counter()

    def runs(self):
        with self.bench.store.read() as connection:
            return records.all_runs(connection)

    def launch(self, name):
        return self.stage.ws.launch(
            name, corpus=self.stage.tiny.corpus, config=LONG, strict=False
        )

    def supervise(self):
        """Keep server and workers alive, resume what rests, as systemd and a person would."""
        self.bench.start_server()
        for slot in range(1, N_WORKERS + 1):
            if not embedded.is_held(worker_slot(self.bench.paths, slot).lock):
                self.stage.start_worker(slot=slot)
        self.stage.ws.reconcile()
        for run in self.runs():
            if run.state in RESTING:
                with suppress(Refused):  # somebody was faster
                    self.stage.ws.run(run.run_id).resume()

    def kill_somebody(self):
        what = self.chance.choice(["job", "job", "job", "worker", "worker", "server"])
        pids = {"job": self._jobs, "worker": self._workers, "server": self._server}[what]()
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)
                self.killed[what] += 1

    def _jobs(self):
        claimed = [run.process for run in self.runs() if run.state in CLAIMED]
        return [
            one["pid"]
            for one in filter(None, claimed)
            if ProcessIdentity.from_dict(one).gone() is False
        ]

    def _workers(self):
        slots = [worker_slot(self.bench.paths, n) for n in range(1, N_WORKERS + 1)]
        return [slot.pid() for slot in slots if slot.pid()]

    def _server(self):
        with suppress(redis.RedisError):
            return [self.stage.server()]
        return []

    def all_complete(self):
        self.supervise()
        return all(run.state is RunState.COMPLETED for run in self.runs())


def test_every_run_completes_once_with_the_undisturbed_digest_whoever_is_killed(make_stage):
    stage = make_stage(settings=PATIENT)
    soak = Soak(stage, seed=20)
    names = [f"training-{number:02d}" for number in range(N_TRAININGS)]
    for name in [*names, "undisturbed"]:
        stage.ws.register_training(name, sae=stage.tiny.sae, model=stage.tiny.model)
    soak.supervise()
    since = time.monotonic()
    for name in names:
        soak.launch(name)
    while time.monotonic() - since < KILLING_S:
        soak.kill_somebody()
        soak.supervise()
        if soak.all_complete():  # a new generation of all: there is always work to lose
            for name in names:
                known = [run for run in soak.runs() if run.training_id == name]
                stage.ws.launch(
                    name, corpus=stage.tiny.corpus, config=LONG, generation=len(known) + 1
                )
        _let_a_moment_pass(soak)
    until(soak.all_complete, "all runs to complete", patience_s=600)

    undisturbed = soak.launch("undisturbed")
    until(soak.all_complete, "the undisturbed run", patience_s=120)
    assert stage.ws.run(undisturbed.run_id).view.attempt == 1
    _judge(soak, stage.ws.run(undisturbed.run_id).view.result_digest)
    assert soak.killed["job"] > 10, soak.killed
    assert soak.killed["worker"] > 3, soak.killed
    assert soak.killed["server"] > 2, soak.killed


def _let_a_moment_pass(soak):
    """Let some batches be computed before the next kill, a random number of them."""
    wanted = len(soak.stage.script.lines("batch")) + soak.chance.randrange(400)
    deadline = time.monotonic() + soak.chance.uniform(0.2, 3.0)
    while time.monotonic() < deadline:
        if len(soak.stage.script.lines("batch")) >= wanted:
            return
        time.sleep(0.05)


def _judge(soak, digest):
    batches = soak.stage.script.lines("batch")
    for run in soak.runs():
        assert run.result_digest == digest, run.run_id
        assert verify(soak.bench.paths.results_of(run.run_id)) == []
        with soak.bench.store.read() as connection:
            kinds = [one.kind for one in events.of_run(connection, run.run_id)]
        assert sum(kind in COMPLETING for kind in kinds) == 1, kinds
        attempts = [one["attempt"] for one in batches if one["run"] == run.run_id]
        assert all(a <= b for a, b in pairwise(attempts)), "two attempts computed at once"
