"""Workspaces with many completed runs of full size, each of the real kind but not computed.

One run is launched, claimed, staged, published and completed by the worker's own code; only
its numbers come from `large_result`. The others are rows like its row in the ledger, with hard
links of a dozen such results: ten thousand of their own would take 137 GB.
"""

import os
import shutil
import uuid
from datetime import timedelta
from pathlib import Path

from extraction_kit import ExtractionConfig, Settings, Workspace, service
from extraction_kit.catalog.publish import stage
from extraction_kit.corpora import Corpus
from extraction_kit.ledger import records, transitions
from extraction_kit.ledger.transitions import Target
from extraction_kit.lifecycle import Actor, Move, RunState, digest_of, job_id_of, run_id_of
from extraction_kit.liveness import ProcessIdentity
from extraction_kit.results import ExtractionResult
from extraction_kit.version import __version__
from extraction_kit.worker import Attempt
from tests.benchmarks import large_result as large
from tests.ledger_rows import BEGAN, columns_of, insert_rows, trainings_like

N_DISTINCT = 12
N_TRAININGS = 200
SETTINGS = Settings(redis_url="unix:///nowhere/at-all.sock", min_free_bytes=0)
CONFIG = ExtractionConfig(context_size=large.CONTEXT_SIZE, window=large.WINDOW)


class OurLease:
    """The lease of a run that nobody else wants."""

    def check(self) -> None:
        """Find nothing wrong."""

    check_ours = check


def write_distinct(folder: Path) -> list[Path]:
    """Stage a dozen different results, unless they are there; return their folders."""
    folders = [folder / f"{number:02d}" for number in range(N_DISTINCT)]
    for number, each in enumerate(folders):
        if not (each / "manifest.json").exists():
            manifest = {"run_id": f"{number:016x}", "config": CONFIG.to_dict()}
            stage(each, large.large_result(number), manifest)
    return folders


def open_workspace(home: Path, tiny) -> Workspace:
    """Return a workspace with a training and the corpus of all runs."""
    workspace = Workspace(home, settings=SETTINGS)
    workspace.register_training("tiny", sae=tiny.sae, model=tiny.model)
    return workspace


def corpus_in(workspace: Workspace) -> Corpus:
    """Write the contexts and the vocabulary of all runs; return them as a prepared corpus."""
    paths = workspace._bench.paths
    tokenizer = workspace.training("tiny").tokenizer.digest
    n_tokens = large.N_CONTEXTS * large.CONTEXT_SIZE
    corpus = Corpus(
        digest="c0ffee",
        path=paths.corpora / "c0ffee",
        n_contexts=large.N_CONTEXTS,
        n_tokens=n_tokens,
        n_tokens_total=n_tokens,
        context_size=large.CONTEXT_SIZE,
        source="Zipf's law",
        tokenizer_digest=tokenizer,
        vocab=paths.vocab / f"{tokenizer}.parquet",
        vocab_size=large.N_VOCAB,
        pad_id=0,
        masks={},
    )
    if not (corpus.path / "corpus.json").exists():
        large.shared().write(corpus.path / "contexts.parquet", corpus.vocab)
        corpus.save_spec(corpus.path)
    return corpus


def claimed(workspace: Workspace, corpus: Corpus, seed: int = 0) -> Attempt:
    """Launch a run and claim it, as a worker does that has just taken it."""
    bench = workspace._bench
    content = service.content_of(
        bench, workspace.training("tiny"), corpus=corpus, config=CONFIG.replace(seed=seed)
    )
    run_id = service.launch(bench, content).run_id
    target = Target(run_id=run_id, attempt=1, nonce=uuid.uuid4().hex)
    with bench.store.write() as connection:
        assert transitions.claim(
            connection,
            Target(run_id=run_id, attempt=1),
            by=bench.mover(Actor.WORKER),
            nonce=target.nonce,
            process=ProcessIdentity.of_this_process().to_dict(),
            kit_version=__version__,
        )
        run = records.run(connection, run_id)
    return Attempt(bench, run, target)


def record(attempt: Attempt, result: ExtractionResult) -> Path:
    """Stage, publish and complete what an attempt found; return the folder."""
    final = attempt._bench.paths.results_of(attempt._run.run_id)
    assert attempt._move(Move.PUBLISH, "all numbers are computed")
    attempt._publish(result, OurLease(), final)
    attempt._record(final)
    return final


def fill(
    workspace: Workspace, like: str, *, n_runs: int, distinct: list[Path]
) -> list[str]:
    """Add runs until there are `n_runs`, as in a ledger of some months; return their ids."""
    bench = workspace._bench
    model, common = service.read_run(bench, like), columns_of(workspace, like)
    trainings = trainings_like(workspace, "tiny", N_TRAININGS)
    names = list(trainings)
    rows, attempts, events = [], [], []
    for number in range(n_runs - 1):
        name, key = names[number % N_TRAININGS], digest_of(number)
        run_id, at = run_id_of(name, key, 1), BEGAN + timedelta(minutes=12 * number)
        job_id = job_id_of(name, key, generation=1, attempt=1)
        folder = bench.paths.results_of(run_id)
        rows.append(common | {
            "run_id": run_id, "training_id": name, "content_key": key, "job_id": job_id,
            "state": str(RunState.COMPLETED), "created_at": at, "completed_at": at,
            "results_dir": str(folder), "nonce": f"{number:032x}",
        })  # fmt: skip
        attempts.append({"run_id": run_id, "attempt": 1, "job_id": job_id, "created_at": at,
                         "claimed_at": at, "ended_at": at, "process": model.process})  # fmt: skip
        events += [
            {"run_id": run_id, "attempt": 1, "at": at, "last_at": at, "count": 1,
             "kind": str(kind), "actor": "user me@here", "text": "as it was"}
            for kind in
            ["launched", Move.ENQUEUE, Move.CLAIM, Move.PUBLISH, Move.COMPLETE, "refused"]
        ]  # fmt: skip
        _link(distinct[number % len(distinct)], folder)
    insert_rows(
        bench, trainings=trainings.values(), runs=rows, attempts=attempts, events=events
    )
    return [row["run_id"] for row in rows]


def _link(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, folder / path.name)


def made_once(home: Path, tiny, *, n_runs: int, distinct: list[Path]) -> Workspace:
    """Return a workspace with `n_runs` completed runs, kept between two benchmarks."""
    ready = home / "ready"
    if not ready.exists():
        shutil.rmtree(home, ignore_errors=True)
    workspace = open_workspace(home, tiny)
    if not ready.exists():
        attempt = claimed(workspace, corpus_in(workspace))
        record(attempt, large.large_result(N_DISTINCT))
        fill(workspace, attempt._run.run_id, n_runs=n_runs, distinct=distinct)
        ready.touch()
    return workspace
