"""Runs that make no progress, or do not stop when told to: seen, told, ended by a person."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from extraction_kit import monitor
from extraction_kit.errors import StillActive
from extraction_kit.lifecycle import RunState
from tests.acceptance.matrix.oracle import judge
from tests.acceptance.matrix.phases import bring_to
from tests.acceptance.matrix.stagehand import SETTINGS, is_running
from tests.waiting import until

IMPATIENT = replace(SETTINGS, stuck_after_s=4.0, kill_after_s=1.0, lease_s=60.0)


@contextmanager
def webhook():
    """A real HTTP server on the loopback; yields its URL and what was posted to it."""
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/secret-path", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def alerts(stage):
    return [line for line in monitor.look(stage.bench) if "stuck" in line]


def test_a_stuck_run_is_told_once_and_left_alone_until_a_person_resumes_it(
    make_stage, ledger_url, undisturbed_digest
):
    with webhook() as (url, posted):
        stage = make_stage(
            settings=replace(IMPATIENT, ledger_url=ledger_url, alert_webhook=url)
        )
        bring_to(stage, "mid-run")  # its main thread hangs, its heart beats
        job = stage.job()
        with pytest.raises(StillActive):
            stage.run().resume()  # not stuck yet
        (told,) = until(lambda: alerts(stage), "the alert")
        assert stage.run_id in told
        assert "run.resume()" in told
        for _ in range(3):
            monitor.look(stage.bench)
        assert stage.job() == job, "the monitor kills nothing"
        assert stage.state() is RunState.EXTRACTING
        assert [one["run_id"] for one in posted] == [stage.run_id], "posted once"
        assert "no progress" in posted[0]["text"]
        assert "secret-path" not in repr(stage.bench.settings)
        assert any("stuck" in finding for finding in stage.run().view.findings)

        stage.script.note("fenced", attempt=1)
        stage.run().resume()  # asks, kills after 1 s, verifies, goes on as attempt 2
        assert not is_running(job)
        stage.script.release()
        stage.settle()
        judge(stage, undisturbed_digest)
        assert stage.record().published_attempt == 2


def test_a_monitor_with_auto_fail_kills_a_stuck_run_and_says_so(make_stage):
    stage = make_stage(settings=replace(IMPATIENT, auto_fail=True))
    bring_to(stage, "mid-run")
    job = stage.job()
    until(lambda: alerts(stage), "the alert")
    assert stage.state() is RunState.FAILED
    assert "auto_fail" in stage.record().error
    assert not is_running(job)
    stage.script.release()
    stage.finish()


def test_a_cancelled_run_that_does_not_stop_is_killed_and_its_memory_is_free(make_stage):
    stage = make_stage(settings=IMPATIENT)
    bring_to(stage, "mid-run")
    process = psutil.Process(stage.job())
    assert process.memory_info().rss > 100 * 2**20, "torch is loaded in it"
    stage.run().cancel()
    assert stage.settle() is RunState.CANCELLED
    assert not is_running(process.pid), "and with it all that it held"
    assert stage.count("killed")
    stage.script.release()
    stage.finish()
    assert stage.count("claim") == 2


def test_a_job_that_names_no_run_is_refused_and_noted(make_stage):
    stage = make_stage()
    stage.prepare()
    for number, arguments in enumerate([("no-such-run", 1), (7, "one")]):
        stage.bench.queue.enqueue(f"xk-stray-{number}", *arguments)

    def strays():
        rows = stage.ws.sql(
            "select text, count from events where kind = 'unknown delivery'"
        )
        return rows.fetchall()

    told = until(lambda: len(strays()) == 2 and strays(), "both to be refused")
    assert any("no-such-run" in text for text, _ in told)
    assert stage.ws.views() == []


def test_a_worker_of_another_release_leaves_the_run_to_one_of_its_own(
    make_stage, undisturbed_digest
):
    from sqlalchemy import text  # noqa: PLC0415 - to be another release for a moment

    stage = make_stage()
    bring_to(stage, "queued")
    with stage.bench.store.write() as connection:
        connection.execute(text("UPDATE runs SET kit_version = '0.0.1'"))
    stage.script.release()
    until(lambda: stage.count("foreign delivery") == 1, "the refusal")
    assert stage.count("claim") == 0
    stage.finish()  # the reconciler of this release sends it again, for this release
    judge(stage, undisturbed_digest)
    assert stage.count("claim") == 1
    assert stage.record().attempt == 2
