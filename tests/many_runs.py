"""A ledger of any number of runs in mixed states, written in a moment: lists have to show it.

The rows are as the service and the workers write them; files are written for beats and
checkpoints only, so a completed run has no results to read.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from extraction_kit import ExtractionConfig, Settings
from extraction_kit.checkpoints import CHECKPOINT_FORMAT, META
from extraction_kit.lifecycle import (
    ACTIVE,
    CLAIMED,
    RunState,
    digest_of,
    job_id_of,
    run_id_of,
)
from extraction_kit.liveness import Beat
from extraction_kit.version import __version__
from extraction_kit.workbench import Workbench
from tests.ledger_rows import insert_rows
from tests.unit.lab import training_named

N_TOKENS = 1_000_000
T0 = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
"""When the newest run was launched; each one before it a minute earlier."""
MODELS = (
    ("gpt2", "blocks.5.hook_resid_post", 24_576),
    ("EleutherAI/pythia-160m", "blocks.8.hook_resid_post", 32_768),
    ("google/gemma-2-2b", "model.layers.12", 16_384),
    ("HuggingFaceTB/SmolLM2-135M", "blocks.15.hook_mlp_out", 65_536),
)
MIXED = {
    RunState.EXTRACTING: 0.2,
    RunState.QUEUED: 0.06,
    RunState.REQUESTED: 0.02,
    RunState.PUBLISHING: 0.01,
    RunState.FAILED: 0.06,
    RunState.CANCELLED: 0.04,
    RunState.INTERRUPTED: 0.05,
    RunState.COMPLETED: 0.56,
}
"""Shares of the states."""
CORPUS = {
    "digest": "c" * 64, "source": "pile.jsonl", "n_contexts": 8_000, "n_tokens": N_TOKENS,
    "n_tokens_total": N_TOKENS, "context_size": 128, "tokenizer_digest": "d" * 64,
    "vocab": "v.parquet", "vocab_size": 50_000, "masks": {"packing": "pack"},
    "accounting": None,
}  # fmt: skip
ERRORS = (
    "OutOfMemoryError: 2.1 GiB were asked for, 0.4 GiB are free",
    "BadSae: FVU is 1.31: the SAE does not explain what it reads (wrong layer?)",
    "FileNotFoundError: /data/gpt2/model.safetensors",
)


@dataclass(frozen=True)
class Written:
    """The workspace, and its runs, the newest first."""

    bench: Workbench
    rows: Sequence[Mapping[str, Any]]

    def ids(self, state: str) -> list[str]:
        """Return the runs in a state, the newest first."""
        return [row["run_id"] for row in self.rows if row["state"] == state]

    def beat(self, run_id: str, number: int, done: int, **facts: Any) -> None:
        """Write a beat as the worker of a run does."""
        now = time.time()
        values = {"phase": "extracting", "tokens_per_s": 2_000.0} | facts
        beat = Beat(number=number, n_tokens_done=done, at=now, progress_at=now, **values)
        self.bench.beats.write(run_id, 1, beat)


def write_runs(
    home: Path,
    n: int,
    *,
    shares: Mapping[RunState, float] | None = None,
    per_training: int = 4,
    names: Sequence[str] = (),
) -> Written:
    """Write a workspace with `n` runs.

    Parameters
    ----------
    home : path
        The workspace, made if need be.
    n : int
        How many runs.
    shares : mapping, optional
        Share of each state; `MIXED` if left out. At least one run of each.
    per_training : int
        Runs of one training, as far as only one of them is active.
    names : sequence of str
        Ids of the first trainings; also hostile ones, which no register would take.
    """
    bench = Workbench.open(home, Settings(min_free_bytes=0))
    rows, tries, told, ids = [], [], [], {}
    chance = np.random.default_rng(0)
    states = _states(n, shares or MIXED, chance)
    busy: dict[str, bool] = {}
    for i, state in enumerate(states):
        number = i // per_training
        if state in ACTIVE and busy.get(str(number)):
            number = (
                n + i
            )  # a training of its own: the ledger allows one active run of each
        busy[str(number)] = busy.get(str(number), False) or state in ACTIVE
        training_id = (
            names[number] if number < len(names) else f"sae-{number:04}-l{number % 12}"
        )
        ids[training_id] = None
        rows.append(_run(training_id, i, state, chance))
        tries.append(_attempt(rows[-1], i))
        told += _events(rows[-1], tries[-1])
    trainings = map(_training, ids)
    insert_rows(bench, trainings=trainings, runs=rows, attempts=tries, events=told)
    written = Written(bench, rows)
    for row in rows:
        if row["state"] in CLAIMED:
            done = int(N_TOKENS * float(chance.uniform(0.02, 0.98)))
            rate = float(chance.uniform(500, 30_000))
            quality = {"l0": 32.0, "fvu": 0.18, "n_dead": 212}
            written.beat(row["run_id"], 1, done, tokens_per_s=rate, **quality)
        elif (
            row["state"] in {"failed", "cancelled", "interrupted"} and chance.random() < 0.7
        ):
            _checkpoint(
                bench, row["run_id"], int(N_TOKENS * float(chance.uniform(0.1, 0.9)))
            )
    return written


def _states(n: int, shares: Mapping[RunState, float], chance: Any) -> list[RunState]:
    counts = {state: max(1, int(n * share)) for state, share in shares.items()}
    most = max(counts, key=lambda state: counts[state])
    counts[most] += n - sum(counts.values())
    every = [state for state, count in counts.items() for _ in range(count)]
    return [every[i] for i in chance.permutation(len(every))]


def _training(training_id: str) -> dict[str, Any]:
    source, hook_name, d_sae = MODELS[int(digest_of(training_id)[:4], 16) % len(MODELS)]
    plain = training_named(training_id, sae_digest=digest_of(training_id))
    training = replace(
        plain,
        sae=replace(plain.sae, d_in=768, d_sae=d_sae),
        model=replace(plain.model, source=source),
        hookpoint=replace(plain.hookpoint, hook_name=hook_name),
    )
    return {
        "training_id": training_id, "digest": training.digest, "spec": training.to_dict(),
        "created_at": T0 - timedelta(days=30), "created_by": "anna@lab-7",
    }  # fmt: skip


def _run(training_id: str, i: int, state: RunState, chance: Any) -> dict[str, Any]:
    created = T0 - timedelta(minutes=i)
    key = digest_of(["content", i])
    run_id = run_id_of(training_id, key, 1)
    row: dict[str, Any] = {
        "run_id": run_id, "training_id": training_id, "content_key": key, "generation": 1,
        "state": str(state), "attempt": 1,
        "job_id": job_id_of(training_id, key, generation=1, attempt=1), "nonce": None,
        "cancel_requested": False, "corpus_digest": CORPUS["digest"], "corpus": CORPUS,
        "n_tokens": N_TOKENS, "config": ExtractionConfig().to_dict(), "settings": {},
        "kit_version": __version__, "created_at": created, "created_by": "anna@lab-7",
        "completed_at": None, "results_dir": None, "result_digest": None,
        "published_attempt": None, "summary": None, "error": None, "error_traceback": None,
        "results_bytes": None, "deleted_at": None, "purged_at": None,
    }  # fmt: skip
    if state is RunState.COMPLETED:
        row |= {
            "completed_at": created + timedelta(minutes=9),
            "results_dir": f"/home/anna/.extraction_kit/results/run_id={run_id}",
            "result_digest": digest_of(run_id), "published_attempt": 1,
            "results_bytes": int(chance.integers(1, 400)) * 2**20,
            "summary": {"tokens_per_s": float(chance.uniform(500, 30_000)), "l0": 32.0,
                        "fvu": float(chance.uniform(0.05, 0.4)),
                        "n_dead": int(chance.integers(0, 2000)), "statistics_format": 1},
        }  # fmt: skip
    elif state is RunState.FAILED:
        error = ERRORS[i % len(ERRORS)]
        row |= {
            "error": error,
            "error_traceback": f"Traceback (most recent call last):\n{error}",
        }
    return row


def _attempt(row: Mapping[str, Any], i: int) -> dict[str, Any]:
    created, state = row["created_at"], row["state"]
    waits = state in {"requested", "queued"}
    process = {"host": f"gpu-{i % 8}", "boot_id": "b", "pid_namespace": "pid:[1]",
               "pid": 4000 + i, "started": "1"}  # fmt: skip
    ended = None if state in ACTIVE else created + timedelta(minutes=9)
    return {
        "run_id": row["run_id"], "attempt": 1, "job_id": row["job_id"], "created_at": created,
        "queued_at": None if state == "requested" else created + timedelta(seconds=1),
        "claimed_at": None if waits else created + timedelta(seconds=2),
        "ended_at": ended, "process": None if waits else process,
    }  # fmt: skip


def _events(row: Mapping[str, Any], attempt: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = [("launched", row["created_at"]), ("enqueue", attempt["queued_at"]),
             ("claim", attempt["claimed_at"]), (row["state"], attempt["ended_at"])]  # fmt: skip
    return [
        {"run_id": row["run_id"], "attempt": 1, "at": at, "last_at": at, "count": 1,
         "kind": kind, "actor": "launcher anna@lab-7", "text": kind}
        for kind, at in steps
        if at is not None
    ]  # fmt: skip


def _checkpoint(bench: Workbench, run_id: str, done: int) -> None:
    folder = bench.paths.checkpoints_of(run_id, 1) / "1"
    folder.mkdir(parents=True)
    meta = {"format": CHECKPOINT_FORMAT, "n_tokens_done": done, "n_contexts_done": done // 128,
            "saved_at": T0.isoformat(), "sha256": "0" * 64}  # fmt: skip
    (folder / META).write_text(json.dumps(meta))
