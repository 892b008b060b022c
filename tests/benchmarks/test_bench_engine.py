"""What the whole engine costs, against the cut forward pass and the best dense encoder alone.

Engine and baseline take turns, tile by tile, in one process: the engine is the real
`extract`, with windows, all default statistics and checkpoints; between two of its tiles the
baseline computes the same tile. The figure is the ratio of their CPU times, which other work on
the machine changes little. The baseline is the limit as it could be programmed: the model cut
at the hook, and one ``addmm(out=)`` into reused buffers whose inactive entries are set to zero.
Eager torch, as one would write it first, is measured beside it.

`make bench-engine` prints the table and writes ``build/bench/engine.json``.
"""

import json
import os
import platform
import shutil
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.extraction import extract
from extraction_kit.sources.devices import cpu_threads
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.sae_weights import load_weights
from tests.benchmarks.parts import CONTEXT_SIZE, make_parts

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

OUT = Path("build/bench/engine.json")
TARGET = 1.05
TOKENS = {8192: 65_536, 32_768: 32_768, 131_072: 16_384}
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
TILE = Settings().tile_tokens


@pytest.fixture(scope="module")
def parts():
    """Return model and texts; SAEs are made when they are needed, and removed."""
    folder = Path("build/bench/parts").absolute()
    yield make_parts(folder)
    for each in folder.glob("*-131072"):
        shutil.rmtree(each)


class Baseline:
    """The cut forward pass and a dense encoder, as fast as torch makes them."""

    def __init__(self, training, corpus):
        self.model = load_model(
            training.model,
            training.hookpoint,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        weights = load_weights(training.sae)
        self.k = training.sae.k
        self.w, self.b, self.b_dec = weights["W_enc"], weights["b_enc"], weights["b_dec"]
        self.bound = weights.get("threshold")
        self.corpus = corpus
        self.rows = max(64, min(TILE, 2**23 // training.sae.d_sae))
        self.pre = torch.empty(self.rows, training.sae.d_sae)
        self.acts = torch.zeros_like(self.pre)
        self.mask = torch.empty(self.pre.shape, dtype=torch.bool)
        self.zero = torch.zeros(())

    def __call__(self, first):
        """Compute the activations of one tile."""
        batch = self.corpus.read(first, TILE // CONTEXT_SIZE)
        tokens = torch.from_numpy(batch.tokens).long()
        x = self.model(tokens) - self.b_dec
        for start in range(0, len(x), self.rows):
            some = x[start : start + self.rows]
            pre, acts, mask = (
                each[: len(some)] for each in (self.pre, self.acts, self.mask)
            )
            torch.addmm(self.b, some, self.w, out=pre)
            if self.k is None:
                torch.gt(pre, self.bound, out=mask)
                torch.where(mask, pre, self.zero, out=acts)
            else:
                best = pre.topk(self.k, dim=1)
                acts.zero_().scatter_(1, best.indices, best.values.relu_())

    def eager(self, first):
        """Compute the same as one would write it first."""
        batch = self.corpus.read(first, TILE // CONTEXT_SIZE)
        x = self.model(torch.from_numpy(batch.tokens).long())
        for some in (x - self.b_dec).split(self.rows):
            pre = some @ self.w + self.b
            if self.k is None:
                acts = torch.relu(pre) * (pre > self.bound)
            else:
                best = pre.topk(self.k, dim=1)
                acts = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
        return acts


@dataclass
class Turns:
    """CPU and wall seconds of each tile, in turns."""

    baseline: Baseline
    engine: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    at: tuple[float, float] | None = None

    def __call__(self, progress):
        if progress.phase != "extracting":
            return
        cpu, wall = time.process_time(), time.perf_counter()
        if self.at is not None:
            self.engine.append(cpu - self.at[0])
            self.wall.append(wall - self.at[1])
        first = progress.n_contexts_done
        if first < self.baseline.corpus.n_contexts:
            self.limit.append(_cpu(self.baseline, first))
            if len(self.limit) % 4 == 0:
                self.eager.append(_cpu(self.baseline.eager, first))
        self.at = time.process_time(), time.perf_counter()


def _cpu(work, first):
    began = time.process_time()
    work(first)
    return time.process_time() - began


@pytest.mark.parametrize("d_sae", TOKENS)
@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
def test_engine_against_the_limit(parts, architecture, d_sae, tmp_path, figures):
    training = parts.training(architecture, d_sae)
    config = ExtractionConfig(n_tokens=TOKENS[d_sae], context_size=CONTEXT_SIZE)
    corpus = parts.corpus(training, config)
    turns = Turns(Baseline(training, corpus))
    with cpu_threads(THREADS), torch.inference_mode():
        turns.baseline(0)  # warm
        result = extract(
            training,
            corpus,
            config=config,
            settings=Settings(
                device="cpu", threads=THREADS, preflight="report", checkpoint_every_s=10
            ),
            checkpoints=tmp_path,
            on_progress=turns,
        )
    ratio = sum(turns.engine) / sum(turns.limit)
    rows = [
        sum(turns.engine[i : i + 8]) / sum(turns.limit[i : i + 8])
        for i in range(0, len(turns.engine), 8)
    ]
    figures.append(
        {
            "name": "whole engine",
            "architecture": architecture,
            "d_sae": d_sae,
            "l0": round(result.summary["l0"], 1),
            "n_tokens": result.summary["n_tokens"],
            "ratio_to_limit": round(ratio, 3),
            "spread": [
                round(min(rows), 3),
                round(statistics.median(rows), 3),
                round(max(rows), 3),
            ],
            "eager_to_limit": round(
                statistics.mean(turns.eager) / statistics.mean(turns.limit), 3
            ),
            "tokens_per_s": round(result.summary["n_tokens"] / sum(turns.wall)),
            "peak_mib": round(result.summary["peak_rss_bytes"] / 2**20),
        }
    )
    print(json.dumps(figures[-1]))


@pytest.fixture(scope="module")
def figures():
    """Collect the figures; print them as a table and write them at the end."""
    found = []
    yield found
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1))
    print(
        f"\n{datetime.now(UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, "
        f"torch {torch.__version__}, {THREADS} thread(s)"
    )
