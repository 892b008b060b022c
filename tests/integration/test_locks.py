"""File locks: whoever only asks never stops one who means to keep the lock."""

import fcntl
import os
import subprocess
import sys
import threading

import pytest

from extraction_kit import Workspace, embedded
from extraction_kit.embedded import is_held, take_lock
from extraction_kit.errors import WorkspaceUnusable


def test_a_lock_is_held_until_its_process_ends(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    code = (
        "import sys; from pathlib import Path; from extraction_kit.embedded import take_lock;"
        "assert take_lock(Path(sys.argv[1])) is not None; print('held', flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_held(path)
        assert take_lock(path) is None
        holder.kill()
        holder.wait()
        assert not is_held(path)


def test_many_who_ask_do_not_stop_one_who_takes(tmp_path):
    path = tmp_path / "lock"
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            is_held(path)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            descriptor = take_lock(path, patience_s=5.0)
            assert descriptor is not None
            os.close(descriptor)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_who_asks_never_mistakes_another_who_asks_for_a_holder(tmp_path):
    path = tmp_path / "lock"
    with path.open("wb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not is_held(path)
        fcntl.flock(asking, fcntl.LOCK_EX)
        assert is_held(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["server", "worker"])
def test_who_hangs_while_starting_holds_up_nobody_for_ever(
    tmp_path, monkeypatch, request, what
):
    ws = Workspace(tmp_path / "ws")
    request.addfinalizer(ws.down)
    monkeypatch.setattr(embedded, "_STARTER_PATIENCE_S", 0.2)
    lock = take_lock(ws._bench.paths.run / f"{what}-start.lock")  # as one that is frozen
    with pytest.raises(WorkspaceUnusable, match=f"fuser .*{what}-start.lock"):
        ws.up()
    os.close(lock)
    ws.up()  # it has ended
