"""Killed at any step of a publication, full or read-only disks, a snapshot that moves."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from extraction_kit.catalog.export import export_runs
from extraction_kit.catalog.publish import (
    publish,
    read_manifest,
    stage,
    staged_and_sound,
    verify,
)
from extraction_kit.catalog.relations import CatalogRows
from extraction_kit.catalog.snapshot import put_snapshot, write_snapshot
from extraction_kit.errors import WorkspaceUnusable
from extraction_kit.results import result_digest
from tests.unit.synthetic import synthetic

HERE = Path(__file__).parents[2]

# Forks a child for each moment before and after a rename or fsync, and kills it there.
KILLED = """
import json, os, signal, sys
import pandas  # pyarrow imports it at its first use: once, not in each child
from pathlib import Path
from extraction_kit.catalog import publish
from tests.unit.synthetic import synthetic
made = synthetic()
def work(folder, stop_at, said):
    moment = 0
    def pass_by(what):
        nonlocal moment
        if moment == stop_at:
            os.write(said, what.encode())
            os.kill(os.getpid(), signal.SIGKILL)
        moment += 1
    def watched(name, call):
        def step(*args, **options):
            pass_by("before " + name)
            found = call(*args, **options)
            pass_by("after " + name)
            return found
        return step
    os.fsync = watched("fsync", os.fsync)
    Path.replace = watched("replace", Path.replace)
    Path.rename = watched("rename", Path.rename)
    staged = folder / "results" / ".staging" / "r-a1"
    publish.stage(staged, made.result, made.manifest)
    publish.publish(staged, folder / "results" / "run_id=r")
home, moment, ended = Path(sys.argv[1]), 0, []
while True:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        work(home / str(moment), moment, writing)
        os._exit(0)
    os.close(writing)
    status = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(status) == 0:
        break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    ended.append(os.read(reading, 99).decode())
    os.close(reading)
    moment += 1
print(json.dumps(ended))
"""


def test_killed_at_any_step_there_is_one_whole_result_or_none(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=HERE, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    moments = json.loads(ran.stdout)
    n_files = len(
        read_manifest(tmp_path / str(len(moments)) / "results" / "run_id=r")["files"]
    )
    # Of each file and the manifest: fsync, replace, fsync of the folder; of the whole: fsync
    # of the staging folder's name, rename, fsync of the result's name. Two sides of each.
    assert len(moments) == 2 * (3 * (n_files + 1) + 3)
    made, found = synthetic(), []
    for moment in range(len(moments)):
        results = tmp_path / str(moment) / "results"
        staged, final = results / ".staging" / "r-a1", results / "run_id=r"
        if final.exists():
            found.append("published")
        elif staged_and_sound(staged):  # what the reconciler asks, and then does
            found.append("adopted")
            assert publish(staged, final)
        else:
            found.append("again")
            assert read_manifest(staged) is None
            stage(staged, made.result, made.manifest)
            assert publish(staged, final)
        assert verify(final) == []
        assert read_manifest(final)["result_digest"] == result_digest(made.result)
        assert list((results / ".staging").iterdir()) == []
    order = [word for i, word in enumerate(found) if i == 0 or found[i - 1] != word]
    assert order == ["again", "adopted", "published"]
    rename = moments.index("before rename")
    assert found[rename : rename + 2] == ["adopted", "published"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def rows_with(folder):
    return CatalogRows(runs=[{"run_id": "r", "state": "completed"}], folders={"r": folder})


def test_a_disk_that_fills_up_leaves_nothing_behind(small_disk, tmp_path):
    made = synthetic(d_sae=512)
    staged = small_disk / "results" / ".staging" / "r-a1"
    with pytest.raises(WorkspaceUnusable, match="the disk is full: free some space"):
        stage(staged, made.result, made.manifest)
    assert not staged.exists()
    assert not (small_disk / "results" / "run_id=r").exists()
    elsewhere = tmp_path / "results" / "run_id=r"
    stage(elsewhere, made.result, made.manifest)
    for write in (
        lambda path: write_snapshot(path, rows_with(elsewhere)),
        lambda path: export_runs(path, rows_with(elsewhere), run_ids=["r"]),
    ):
        with pytest.raises(WorkspaceUnusable, match="cannot write"):
            write(small_disk / "x.duckdb")
        assert [path.name for path in small_disk.iterdir()] == ["results"]


def test_a_read_only_results_directory_says_so_and_loses_nothing(small_disk):
    made = synthetic(d_sae=4)
    first, second = (small_disk / "results" / ".staging" / f"r-a{n}" for n in (1, 2))
    final = small_disk / "results" / "run_id=r"
    stage(first, made.result, made.manifest)
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(WorkspaceUnusable, match="not writable for you"):
        publish(first, final)
    with pytest.raises(WorkspaceUnusable, match="not writable for you"):
        stage(second, made.result, made.manifest)
    subprocess.run([*remount[:2], "remount,rw", str(small_disk)], check=True)
    assert staged_and_sound(first)
    assert publish(first, final)
    assert verify(final) == []


# Opens the file again and again, and asks; says when it has done so 20 times.
READER = """
import sys, duckdb
number, n_reads = 1, 0
print("ready", flush=True)
while number != 3:
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        (number,), = connection.execute("SELECT count(*) FROM runs").fetchall()
        assert connection.execute("SELECT count(*) FROM features").fetchall() == [(16,)]
    n_reads += 1
    if n_reads == 20:
        print("enough", flush=True)
"""


def test_a_snapshot_is_replaced_a_thousand_times_under_a_reader_that_never_fails(
    tmp_path, monkeypatch
):
    for name in ("fsync_file", "fsync_folder"):  # what is visible does not depend on them
        monkeypatch.setattr(f"extraction_kit.atomic.{name}", lambda _path: None)
    made = synthetic()
    folder = tmp_path / "run_id=r"
    stage(folder, made.result, made.manifest)
    path = tmp_path / "catalog.duckdb"
    built = []
    for number in (1, 2, 3):
        runs = [{"run_id": "r"}, {"run_id": "s"}, {"run_id": "t"}][:number]
        write_snapshot(path, CatalogRows(runs=runs, folders={"r": folder}))
        built.append(path.read_bytes())
    put_snapshot(path, built[0])
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert reader.stdout.readline() == "ready\n"
        with ThreadPoolExecutor(1) as listener:
            enough = listener.submit(reader.stdout.readline)
            n_replaced = 0
            while n_replaced < 1000 or not enough.done():
                n_replaced += 1
                put_snapshot(path, built[n_replaced % 2])
        put_snapshot(path, built[2])
        _, err = reader.communicate(timeout=60)
    finally:
        reader.kill()
    assert reader.returncode == 0, err
    assert enough.result() == "enough\n"
    assert sorted(item.name for item in tmp_path.iterdir()) == [
        "catalog.duckdb",
        "run_id=r",
    ]
