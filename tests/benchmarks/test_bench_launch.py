"""How long a launch, a refusal and a look take when the ledger holds 10,000 runs.

Each is the real call on a real SQLite ledger with ``synchronous=FULL``, with the embedded
server, the worker and the monitor alive. The worker is kept from taking jobs (it believes that
a sibling's job still holds the machine), so that what is launched here is not computed.

`make bench-launch` prints the table and writes ``build/bench/launch.json``.
"""

import json
import os
import random
import socket
import sqlite3
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from extraction_kit import ExtractionConfig, Settings, Workspace, service
from extraction_kit.embedded import take_lock, worker_slot
from extraction_kit.errors import AlreadyCompleted
from extraction_kit.lifecycle import (
    RESTING,
    Answer,
    Move,
    RunState,
    answer_to_launch,
    digest_of,
    job_id_of,
    run_id_of,
)
from tests.ledger_rows import BEGAN, columns_of, insert_rows, trainings_like

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

N_RUNS, N_TRAININGS, N_REPETITIONS = 10_000, 200, 150
CONFIG = ExtractionConfig(context_size=32, n_tokens=500, top_k=5)
SETTINGS = Settings(device="cpu", threads=1, tile_tokens=256, min_free_bytes=0)
TARGETS_MS = {
    "launch of new content": 10,
    "launch of new content, server down": 10,
    "decision to refuse": 2,
    "refusal with its event": 15,
}
OUT = Path("build/bench/launch.json")


@pytest.fixture
def workspace(tmp_path, tiny):
    workspace = Workspace(tmp_path / "ws", settings=SETTINGS)
    workspace.register_training("tiny", sae=tiny.sae, model=tiny.model)
    run = workspace.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    run.wait(120)
    assert run.state is RunState.COMPLETED, run.explain()
    _fill(workspace, run.run_id)
    yield workspace
    workspace.down()


def _fill(workspace: Workspace, like: str) -> None:
    """Insert runs that look like the one that really ran, in a ledger of some months."""
    bench, chance = workspace._bench, random.Random(0)  # noqa: S311 - of a test
    model, common = service.read_run(bench, like), columns_of(workspace, like)
    trainings = trainings_like(workspace, "tiny", N_TRAININGS)
    names = list(trainings)
    rows, attempts, events = [], [], []
    for number in range(N_RUNS):
        name, key = names[number % N_TRAININGS], digest_of(number)
        at, n_attempts = BEGAN + timedelta(minutes=12 * number), chance.choice([1, 1, 1, 2])
        state = chance.choice([RunState.COMPLETED] * 19 + sorted(RESTING))
        job_ids = [
            job_id_of(name, key, generation=1, attempt=attempt + 1)
            for attempt in range(n_attempts)
        ]
        row = common | {
            "run_id": run_id_of(name, key, 1), "training_id": name, "content_key": key,
            "state": str(state), "attempt": n_attempts, "job_id": job_ids[-1],
            "created_at": at, "nonce": f"{number:032x}",
        }  # fmt: skip
        rows.append(row)
        for attempt, job_id in enumerate(job_ids, 1):
            attempts.append({"run_id": row["run_id"], "attempt": attempt, "job_id": job_id,
                             "created_at": at, "claimed_at": at, "ended_at": at,
                             "process": model.process})  # fmt: skip
            kinds = ["launched", Move.ENQUEUE, Move.CLAIM, Move.PUBLISH, state, "refused"]
            events += [
                {"run_id": row["run_id"], "attempt": attempt, "at": at, "last_at": at,
                 "count": 1, "kind": str(kind), "actor": "user me@here", "text": "as it was"}
                for kind in kinds
            ]  # fmt: skip
    insert_rows(
        bench, trainings=trainings.values(), runs=rows, attempts=attempts, events=events
    )


@contextmanager
def _nothing_is_computed(workspace: Workspace):
    busy = take_lock(worker_slot(workspace._bench.paths).busy, patience_s=5.0)
    assert busy is not None
    try:
        yield
    finally:
        os.close(busy)


def _median_ms(call, *, after=lambda: None) -> float:
    """Return the median of the timed `call`; `after` undoes it, untimed."""
    times = []
    for number in range(N_REPETITIONS):
        began = time.perf_counter()
        call(number)
        times.append(1000 * (time.perf_counter() - began))
        after()
    return statistics.median(times)


def _launches(workspace: Workspace, corpus) -> float:
    bench, training = workspace._bench, workspace.training("tiny")
    contents = [
        service.content_of(
            bench, training, corpus=corpus, config=CONFIG.replace(top_k=6 + number)
        )
        for number in range(N_REPETITIONS)
    ]
    made = []

    def launch(number):
        made.append(service.launch(bench, contents[number]))

    median_ms = _median_ms(launch, after=lambda: service.cancel(bench, made[-1].run_id))
    assert {one.answer for one in made} == {Answer.NEW_RUN}
    assert len({one.run_id for one in made}) == N_REPETITIONS
    _forget(workspace, [one.run_id for one in made])
    return median_ms


def _forget(workspace: Workspace, run_ids: list[str]) -> None:
    path = workspace._bench.paths.ledger
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executemany(
            "DELETE FROM runs WHERE run_id = ?", [(one,) for one in run_ids]
        )
    connection.close()


def _figures(workspace: Workspace, tiny, refusing: Path) -> dict[str, float]:
    bench, training = workspace._bench, workspace.training("tiny")
    corpus = workspace.corpus(tiny.corpus, training_id="tiny", config=CONFIG)
    content = service.content_of(bench, training, corpus=corpus, config=CONFIG)
    down = Workspace(
        workspace.home, settings=replace(SETTINGS, redis_url=f"unix://{refusing}")
    )

    def decide(_):
        with bench.store.read() as connection:
            run = service._find(connection, content, None)
        assert answer_to_launch(run.state) is Answer.RETURN

    def refuse(_):
        run = workspace.launch("tiny", corpus=corpus, config=CONFIG, strict=False)
        assert isinstance(run.refusal, AlreadyCompleted)

    def look(_):
        assert workspace.run(run_id).view.state is RunState.COMPLETED

    run_id = run_id_of("tiny", content.key, 1)
    return {
        "launch of new content": _launches(workspace, corpus),
        "launch of new content, server down": _launches(down, corpus),
        "decision to refuse": _median_ms(decide),
        "refusal with its event": _median_ms(refuse),
        "status of one run": _median_ms(look),
        "bare commit of the disk": _bare_commit_ms(workspace),
    }


def _bare_commit_ms(workspace: Workspace) -> float:
    """Return what one durable transaction costs on this disk, without any of our code."""
    path = workspace.home / "bare.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE t (x)")
    try:
        return _median_ms(lambda n: connection.execute("INSERT INTO t VALUES (?)", (n,)))
    finally:
        connection.close()


def test_figures_of_launch_and_refusal_at_ten_thousand_runs(workspace, tiny, tmp_path):
    refusing = tmp_path / "refusing.sock"
    with socket.socket(socket.AF_UNIX) as bound, _nothing_is_computed(workspace):
        bound.bind(str(refusing))  # and never listens: connections are refused
        figures = _figures(workspace, tiny, refusing)
    with workspace._bench.store.read() as connection:
        n_runs = connection.exec_driver_sql("SELECT count(*) FROM runs").scalar()
    assert n_runs == N_RUNS + 1
    table = [
        {"name": name, "target": TARGETS_MS.get(name), "value": round(ms, 2), "unit": "ms"}
        for name, ms in figures.items()
    ]
    print(f"\n{n_runs} runs, medians of {N_REPETITIONS}")  # noqa: T201 - the table
    for row in table:
        target = "" if row["target"] is None else f"(target {row['target']} ms)"
        print(f"{row['name']:40} {row['value']:8.2f} ms  {target}")  # noqa: T201 - the table
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
