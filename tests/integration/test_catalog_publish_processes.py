"""Publishing with real processes: races and kills."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from extraction_kit.catalog.publish import (
    publish,
    read_manifest,
    stage,
    staged_and_sound,
    verify,
)
from extraction_kit.results import result_digest
from tests.unit.synthetic import synthetic

HERE = Path(__file__).parents[2]

RACER = """
import sys
from pathlib import Path
from extraction_kit.catalog.publish import publish, stage
from tests.unit.synthetic import synthetic
staged, final, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
made = synthetic(seed=seed)
stage(staged, made.result, {**made.manifest, "attempt": seed})
print("ready", flush=True)
sys.stdin.readline()
print(publish(staged, final), flush=True)
"""

# Stops for ever when it is about to write the file named in argv[2].
STOPPER = """
import sys, time
from pathlib import Path
import extraction_kit.catalog.publish as publish
from tests.unit.synthetic import synthetic
def stopping(write):
    def step(path, *args, **options):
        if path.name == sys.argv[2]:
            print("here", flush=True)
            time.sleep(600)
        return write(path, *args, **options)
    return step
publish.write_file = stopping(publish.write_file)
publish.write_json = stopping(publish.write_json)
made = synthetic()
publish.stage(Path(sys.argv[1]), made.result, made.manifest)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_publish_at_once_and_exactly_one_wins(tmp_path):
    staging = tmp_path / "results" / ".staging"
    seeds = (1, 2)
    racers = [None, None]
    for number, seed in enumerate(seeds):
        final = tmp_path / "results" / "run_id=r"
        racers[number] = start(RACER, staging / f"r-a{seed}", final, seed)
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [racer.communicate(timeout=60)[0].strip() == "True" for racer in racers]
    assert sorted(won) == [False, True]
    assert list(staging.iterdir()) == []
    manifest = read_manifest(final)
    winner = seeds[won.index(True)]
    assert manifest["attempt"] == winner
    assert manifest["result_digest"] == result_digest(synthetic(seed=winner).result)
    assert verify(final) == []


@pytest.mark.parametrize("name", ["features.parquet", "examples.parquet", "manifest.json"])
def test_a_process_killed_while_staging_leaves_nothing_that_counts(tmp_path, name):
    staged = tmp_path / "results" / ".staging" / "r-a1"
    final = tmp_path / "results" / "run_id=r"
    process = start(STOPPER, staged, name)
    assert process.stdout.readline() == "here\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert staged.is_dir()
    assert read_manifest(staged) is None
    assert not staged_and_sound(staged)
    assert not final.exists()
    made = synthetic()
    stage(staged, made.result, made.manifest)  # the same attempt, once more
    assert publish(staged, final)
    assert verify(final) == []


def test_a_finished_staging_survives_the_kill_of_its_process(tmp_path):
    staged = tmp_path / "results" / ".staging" / "r-a1"
    process = start(RACER, staged, tmp_path / "results" / "run_id=r", 1)
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert staged_and_sound(staged)
    assert json.loads((staged / "manifest.json").read_text())["attempt"] == 1
    assert publish(staged, tmp_path / "results" / "run_id=r")
