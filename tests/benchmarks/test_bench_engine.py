"""What the whole engine costs, against the cut forward pass and the best dense encoder alone.

Engine and baseline take turns, tile by tile, in one process: the engine is the real
`extract`, with windows, all default statistics and checkpoints; between two of its tiles the
baseline computes the same tile. The figure is the ratio of their CPU times, which other work on
the machine changes little. The baseline is the limit as it could be programmed: the model cut
at the hook, and ``addmm(out=)`` into reused buffers whose inactive entries are set to zero, in
the fastest of several sizes. Eager torch, as one would write it first, is measured beside it.

`make bench-engine` prints the table and writes ``build/bench/engine.json``. Each row is
measured in a process of its own, so that its memory is its own.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import torch

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import ReadingOrder
from extraction_kit.extraction import engine, extract, station
from extraction_kit.sources import onednn
from extraction_kit.sources.devices import cpu_threads
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.stats import Collection
from tests.benchmarks.parts import CONTEXT_SIZE, make_parts

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]

OUT = Path("build/bench/engine.json")
PARTS = Path("build/bench/parts").absolute()
COLUMNS = ("name", "architecture", "d_sae", "ratio_to_limit", "tokens_per_s", "peak_mib")
"""What every row of the file has, null where it was not measured."""
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
SETTINGS = Settings(device="cpu", threads=THREADS, preflight="report")
TILE = 1024
_ROUND = 8  # tiles over which the spread is taken
OPTIONS = {
    "n_top_tokens=10": {"n_top_tokens": 10},
    "n_coactive=10": {"n_coactive": 10},
    "dedupe=True": {"dedupe": True},
}
"""What is off by default; its marginal cost is measured."""
ROWS = [
    *(
        {"name": "whole engine", "architecture": architecture, "d_sae": d_sae, "n_tokens": n,
         # once per run, and known from the smaller ones: as many tokens' encoding as features
         "config": {"n_neighbours": 0} if d_sae > 2**16 else {}}
        for d_sae, n in ((8192, 131_072), (32_768, 65_536), (131_072, 16_384))
        for architecture in ("jumprelu", "topk")
    ),
    *(
        {"name": name, "architecture": "jumprelu", "d_sae": 8192, "n_tokens": 32_768,
         "config": changes} for name, changes in OPTIONS.items()
    ),
    {"name": "bfloat16", "architecture": "jumprelu", "d_sae": 8192, "n_tokens": 4096,  # minutes
     "config": {"dtype": "bfloat16"}},
    {"name": "packing='document'", "architecture": "jumprelu", "d_sae": 8192,
     "n_tokens": 32_768, "config": {"packing": "document"}},
    {"name": "checkpoints every 5 s", "architecture": "jumprelu", "d_sae": 8192,
     "n_tokens": 32_768, "settings": {"checkpoint_every_s": 5.0}},
]  # fmt: skip


def by_onednn(b, x, w, *, out):
    """Multiply into fresh memory, since it cannot be given any."""
    del out
    return onednn.linear(x, w.T, b)


PRODUCTS = (torch.addmm, by_onednn) if onednn.is_there() else (torch.addmm,)


class Baseline:
    """The cut forward pass and a dense encoder, as fast as torch makes them."""

    def __init__(self, training, corpus):
        self.model = load_model(
            training.model,
            training.hookpoint,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        with patch.object(onednn, "is_faster", return_value=False):
            self.torchs_own = self.model.at(self.model.hookpoint)
        weights = load_weights(training.sae)
        self.k = training.sae.k
        self.w, self.b, self.b_dec = weights["W_enc"], weights["b_enc"], weights["b_dec"]
        self.bound = weights.get("threshold")
        self.corpus = corpus
        self.order = iter(ReadingOrder(
            corpus.lengths(), context_size=CONTEXT_SIZE, tile_tokens=TILE
        ))  # fmt: skip
        self.zero = torch.zeros(())
        self.pre = torch.empty(0)
        self.product, self.rows = self._fastest()

    def _fastest(self):
        """Return the product, and the rows that it is given, with which encoding is fastest."""
        x = torch.randn(TILE, self.w.shape[0])
        seconds = {}
        for product in PRODUCTS:
            for rows in (64, 128, 256, 512, 1024):
                if rows * self.w.shape[1] > 2**26:  # 256 MiB
                    continue
                self.product = product
                self._reserve(rows)
                self.encode(x, rows)
                seconds[product, rows] = min(_cpu(self.encode, x, rows) for _ in range(3))
        best = min(seconds, key=seconds.get)
        self._reserve(best[1])
        return best

    def _reserve(self, rows):
        del self.pre
        self.pre = torch.empty(rows, self.w.shape[1])
        self.acts = torch.zeros_like(self.pre)
        self.mask = torch.empty(self.pre.shape, dtype=torch.bool)

    def read(self):
        """Return the tokens of the next tile, in the engine's order and shape."""
        plan = next(self.order)
        batch = self.corpus.read_at(plan.contexts, plan.length)
        tokens = torch.zeros(plan.rows, plan.length, dtype=torch.int64)
        tokens[: len(batch)] = torch.from_numpy(batch.tokens)
        return tokens

    def __call__(self, tokens):
        """Compute the activations of a tile."""
        self.encode(self.model(tokens) - self.b_dec, self.rows)

    def without_onednn(self, tokens):
        """Compute the same with torch's own products, into reused memory."""
        self.encode(self.torchs_own(tokens) - self.b_dec, self.rows, torch.addmm)

    def encode(self, x, n_rows, product=None):
        """Make dense activations, some rows at a time."""
        product = product or self.product
        for some in x.split(n_rows):
            pre, acts, mask = (
                each[: len(some)] for each in (self.pre, self.acts, self.mask)
            )
            pre = product(self.b, some, self.w, out=pre)
            if self.k is None:
                torch.gt(pre, self.bound, out=mask)
                torch.where(mask, pre, self.zero, out=acts)
            else:
                best = pre.topk(self.k, dim=1)
                acts.zero_().scatter_(1, best.indices, best.values.relu_())

    def eager(self, tokens):
        """Compute the same as one would write it first."""
        for some in (self.torchs_own(tokens) - self.b_dec).split(self.rows):
            pre = some @ self.w + self.b
            if self.k is None:
                acts = torch.relu(pre) * (pre > self.bound)
            else:
                best = pre.topk(self.k, dim=1)
                acts = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
        return acts


@dataclass
class Turns:
    """CPU seconds of each tile, and the engine's wall seconds, in turns."""

    baseline: Baseline
    engine: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    without_onednn: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    at: tuple[float, float] | None = None
    ended: bool = False

    def __call__(self, progress):
        if progress.phase not in {"extracting", "finishing"} or self.ended:
            return
        self.ended = progress.phase == "finishing"
        cpu, wall = time.process_time(), time.perf_counter()
        if self.at is not None:  # the last one ends with the last checkpoint
            self.engine.append(cpu - self.at[0])
            self.wall.append(wall - self.at[1])
        if progress.n_contexts_done < self.baseline.corpus.n_contexts:
            tokens = self.baseline.read()
            self.limit.append(_cpu(self.baseline, tokens))
            if len(self.limit) % 4 == 0:
                self.eager.append(_cpu(self.baseline.eager, tokens))
                self.without_onednn.append(_cpu(self.baseline.without_onednn, tokens))
        self.at = time.process_time(), time.perf_counter()

    def spread(self):
        """Return the smallest, middle and largest ratio over rounds of tiles."""
        pairs = [
            sum(self.engine[i : i + _ROUND]) / sum(self.limit[i : i + _ROUND])
            for i in range(0, len(self.limit), _ROUND)
        ]
        return [round(f(pairs), 3) for f in (min, statistics.median, max)]


def _cpu(work, *args):
    began = time.process_time()
    work(*args)
    return time.process_time() - began


def measure(row, folder):
    """Return the figures of one row; in a process of its own."""
    training = make_parts(PARTS).training(row["architecture"], row["d_sae"])
    config = ExtractionConfig(n_tokens=row["n_tokens"], context_size=CONTEXT_SIZE)
    config = config.replace(**row.get("config", {}))
    corpus = make_parts(PARTS).corpus(training, config)
    saved = _timed_checkpoints()
    with cpu_threads(THREADS), torch.inference_mode():
        turns = Turns(Baseline(training, corpus))
        turns.baseline(torch.zeros(8, CONTEXT_SIZE, dtype=torch.int64))  # warm
        result = extract(
            training,
            corpus,
            config=config,
            settings=replace(SETTINGS, **row.get("settings", {})),
            checkpoints=folder,
            on_progress=turns,
        )
        finishing_s = time.process_time() - turns.at[0]
    n = result.summary["n_tokens"]
    stopped_s, checkpoint_s = map(statistics.median, zip(*saved, strict=True))
    return {
        "name": row["name"],
        "architecture": row["architecture"],
        "d_sae": row["d_sae"],
        "l0": round(result.summary["l0"], 1),
        "n_tokens": n,
        "ratio_to_limit": round(sum(turns.engine) / sum(turns.limit), 3),
        "spread": turns.spread(),
        **{
            f"{name}_to_limit": round(
                statistics.mean(took) / statistics.mean(turns.limit), 3
            )
            for name, took in (
                ("eager", turns.eager),
                ("without_onednn", turns.without_onednn),
            )
        },
        "us_per_token": round(1e6 * sum(turns.engine) / n),
        "tokens_per_s": round(n / sum(turns.wall)),
        "finishing_s": round(finishing_s, 1),  # once per run: logits, neighbours
        "checkpoint_stops_s": round(stopped_s, 3),
        "checkpoint_s": round(checkpoint_s, 3),
        "checkpoints_on_off": round(1 + checkpoint_s / Settings().checkpoint_every_s, 4),
    }


def _timed_checkpoints():
    """Return a list that gets two wall times of each checkpoint of this process, in seconds.

    For how long it stops the computation, and until it is on disk. The next turn waits until
    then, so that all its CPU time counts as the engine's.
    """
    seconds, begin = [], engine._Extraction._begin_to_save

    def timed(job, **how):
        began = time.perf_counter()
        begin(job, **how)
        stopped_s = time.perf_counter() - began
        job.saver.finish()
        seconds.append((stopped_s, time.perf_counter() - began))

    engine._Extraction._begin_to_save = timed
    return seconds


class Peak:
    """Resident memory of this process: before there are statistics, and the most since."""

    def __init__(self):
        self.process, self.base, self.most = psutil.Process(), None, 0

    def statistics(self, **sizes):
        """Make them; model and SAE are loaded."""
        self.base = self.process.memory_info().rss
        return Collection(**sizes)

    def __call__(self, progress):
        if progress.phase == "extracting" and not self.most:
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
        if progress.phase in {"extracting", "finishing"}:
            self.most = max(self.most, self.process.memory_info().rss, _peak())


def _peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure_memory(row, folder):
    """Return the memory that one extraction takes above model and SAE."""
    training = make_parts(PARTS).training(row["architecture"], row["d_sae"])
    config = ExtractionConfig(n_tokens=row["n_tokens"], context_size=CONTEXT_SIZE)
    config = config.replace(n_neighbours=0, n_logits=0)
    corpus = make_parts(PARTS).corpus(training, config)
    peak = Peak()

    began = time.perf_counter()
    with patch.object(station, "Collection", peak.statistics):
        extract(
            training, corpus, config=config, settings=SETTINGS, checkpoints=folder,
            on_progress=peak,
        )  # fmt: skip
    return {
        "name": "memory above model and SAE",
        "architecture": row["architecture"],
        "d_sae": row["d_sae"],
        "n_tokens": row["n_tokens"],
        "peak_mib": round((peak.most - peak.base) / 2**20),
        "seconds": round(time.perf_counter() - began),
    }


MEMORY = [
    {"architecture": "topk", "d_sae": d_sae, "n_tokens": n}
    for d_sae, n in ((32_768, 50_000), (32_768, 200_000), (2**20, 4096))
]
LONG = {"architecture": "topk", "d_sae": 8192, "n_tokens": 1_000_000}
EARLY, LATE = (50_000, 150_000), (900_000, 1_000_000)  # tokens


def measure_length(row, folder):
    """Return what a token costs and how much memory is taken, early and late in a long run."""
    parts = make_parts(PARTS)
    training = parts.training(row["architecture"], row["d_sae"])
    config = ExtractionConfig(n_tokens=row["n_tokens"], context_size=CONTEXT_SIZE)
    config = config.replace(n_neighbours=0, n_logits=0)
    corpus = parts.long_corpus(training, config)
    process, at = psutil.Process(), []

    def note(progress):
        if progress.phase == "extracting":
            resident = process.memory_info().rss
            at.append((progress.n_tokens_done, time.process_time(), resident))

    extract(
        training, corpus, config=config, settings=SETTINGS, checkpoints=folder,
        on_progress=note,
    )  # fmt: skip
    early, late = (_costs(at, *between) for between in (EARLY, LATE))
    return {
        "name": "10^5 and 10^6 tokens",
        **row,
        "us_per_token_early": round(early[0]),
        "us_per_token_late": round(late[0]),
        "late_to_early": round(late[0] / early[0], 3),
        "grown_mib": round((late[1] - early[1]) / 2**20),
    }


def _costs(at, first, last):
    """Return microseconds of CPU per token between two places, and the memory at the end."""
    inside = [each for each in at if first <= each[0] <= last]
    (n0, t0, _), (n1, t1, resident) = inside[0], inside[-1]
    return 1e6 * (t1 - t0) / (n1 - n0), resident


def _alone(kind, row, folder):
    """Measure `row` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.test_bench_engine", kind]
    done = subprocess.run(
        [*command, json.dumps(row), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_engine_against_the_limit(tmp_path):
    found = []
    make_parts(PARTS)
    for number, row in enumerate(ROWS):
        found.append(_alone("speed", row, tmp_path / str(number)))
        _print(found[-1])
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    for number, row in enumerate(MEMORY):
        found.append(_alone("memory", row, tmp_path / f"m{number}"))
        print(found[-1], flush=True)  # noqa: T201 - the table
    found.append(_alone("length", LONG, tmp_path / "long"))
    print(found[-1], flush=True)  # noqa: T201 - the table
    for size in (131_072, 2**20):
        for each in PARTS.glob(f"*-{size}"):
            shutil.rmtree(each)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([dict.fromkeys(COLUMNS) | row for row in found], indent=1))
    now, cpu = datetime.now(UTC), _processor()
    print(f"{now:%Y-%m-%d}, {cpu}, torch {torch.__version__}, {THREADS} thread(s)")  # noqa: T201 - the table


def _print(row):
    low, middle, high = row["spread"]
    print(  # noqa: T201 - the table
        f"{row['name']:24} {row['architecture']:9} {row['d_sae']:7} L0 {row['l0']:5} "
        f"{row['ratio_to_limit']:6.3f} ({low:.3f} {middle:.3f} {high:.3f})  eager "
        f"{row['eager_to_limit']:.3f}  addmm {row['without_onednn_to_limit']:.3f}  "
        f"{row['us_per_token']:6} us/token  "
        f"{row['tokens_per_s']:6} tok/s, after the pass {row['finishing_s']} s, a checkpoint "
        f"{row['checkpoint_s']} s, of which it stops {row['checkpoint_stops_s']} s",
        flush=True,
    )


def _processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        line.split(":")[1].strip() for line in lines if line.startswith("model name")
    )


if __name__ == "__main__":
    kind, row, folder = sys.argv[1:]
    work = {"speed": measure, "memory": measure_memory, "length": measure_length}[kind]
    print(json.dumps(work(json.loads(row), Path(folder))))  # noqa: T201 - the answer
