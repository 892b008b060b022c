"""A worker in another PID namespace of the same machine: a container beside the notebook.

Its pid means nothing here, and a pid of here means nothing there: only its beats tell.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from extraction_kit.embedded import worker_alive
from extraction_kit.lifecycle import RunState
from extraction_kit.liveness import ProcessIdentity
from tests.acceptance.matrix.held import environment_of
from tests.acceptance.matrix.oracle import aftershocks, judge, outcome
from tests.acceptance.matrix.stagehand import SETTINGS
from tests.acceptance.matrix.zygote import ROOT
from tests.waiting import until

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
PROGRAM = """
import json, sys
from tests.acceptance.matrix import held
held.run("worker", json.loads(sys.argv[1]))
"""


@contextmanager
def worker_elsewhere(stage):
    """Run a held worker as pid 1 of a namespace of its own, with a /proc of its own."""
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a PID namespace cannot be made: {tried.stderr.strip()}")
    request = {"home": str(stage.home), "script": str(stage.script.folder), "slot": "1"}
    environment = os.environ | environment_of(stage.settings, stage.home)
    with (stage.folder / "worker-elsewhere.log").open("wb") as log:
        process = subprocess.Popen(
            [*UNSHARE, sys.executable, "-c", PROGRAM, json.dumps(request)],
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
        )
    try:
        until(lambda: worker_alive(stage.bench.paths), "the worker to take its slot")
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)


def test_a_worker_in_another_pid_namespace_is_judged_by_its_beats_alone(
    make_stage, ledger_url, undisturbed_digest
):
    settings = replace(SETTINGS, lease_s=3.0, ledger_url=ledger_url)
    stage = make_stage(settings=settings)
    stage.script.hold("mid-run")
    stage.bench.start_server()
    with worker_elsewhere(stage) as worker:
        stage.launch()
        until(lambda: stage.script.pid_at("mid-run"), "the run's middle")
        process = ProcessIdentity.from_dict(stage.record().process)
        assert process.pid_namespace != ProcessIdentity.of_this_process().pid_namespace
        assert process.gone() is None, "it cannot be told from here"

        since = time.monotonic()
        while time.monotonic() - since < 1.5 * settings.lease_s:
            stage.ws.reconcile()
            assert stage.state() is RunState.EXTRACTING, "it beats, so it is left alone"
            time.sleep(0.1)

        worker.kill()  # and with it, the kernel ends the whole namespace
        worker.wait(timeout=60)
        until(lambda: not worker_alive(stage.bench.paths), "its locks to be free")
    stage.rested = stage.settle()
    assert "no sign of life" in stage.record().error
    stage.script.release()
    stage.finish()
    aftershocks(stage)
    judge(stage, undisturbed_digest)
    assert outcome(stage) == "I 2/14 a2"
