"""The notebook's session in a forked child."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]

# The child asks the session that its parent opened (and whose lock another thread holds),
# then ends in one of two ways; the parent goes on.
FORKING = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # a fork in a process with threads
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.session import Session
session = Session(lambda: CatalogRows(runs=[{"run_id": "a"}]), lambda: 1)
assert session.sql("FROM runs").fetchall()[0][0] == "a"
relation = session.sql("SELECT count(*) FROM range(1000000)")
held, go_on = threading.Event(), threading.Event()
def hold():
    with session._memory.lock:
        held.set()
        go_on.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    found = session.sql("SELECT run_id, sum(range) FROM runs, range(3000000) GROUP BY 1")
    assert found.fetchall() == [("a", 4499998500000)]
    if sys.argv[1] == "hard":
        os._exit(7)
    del relation, session
    threading._shutdown = lambda: None  # the holder exists in the parent only
    sys.exit(7)
go_on.set()
thread.join()
status = os.waitpid(child, 0)[1]
assert os.waitstatus_to_exitcode(status) == 7, os.waitstatus_to_exitcode(status)
assert relation.fetchall() == [(1000000,)]
assert session.sql("FROM runs").fetchall()[0][0] == "a"
print("parent fine")
"""


def run(how):
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, how],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a child that hangs


def test_a_forked_child_asks_a_database_of_its_own():
    out, err = run("hard")
    assert out == "parent fine\n", err


def test_a_forked_child_that_ends_like_a_script_does_not_crash():
    out, err = run("soft")
    assert out == "parent fine\n", err
