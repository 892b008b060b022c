"""What the whole engine costs on a GPU, against the cut forward pass and a dense encoder.

`make bench-gpu`, on a machine with a CUDA device. The model has the shape of Llama 3.1 8B cut
behind its eighth block, with random weights in bfloat16; the SAEs read 4096 numbers. The limit
is the model cut at the hook and ``addmm(out=)`` into reused buffers with inactive entries set
to zero, on tiles of the engine's size. Both measure so many tiles in turns; the figure is the
ratio of their seconds, medians over the rounds. A profile of some tiles says how often the
thread that feeds the GPU waits for it.

Prints a table and writes ``build/bench/gpu.json``.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import ReadingOrder
from extraction_kit.demo.texts import write_texts
from extraction_kit.extraction import extract
from extraction_kit.extraction.engine import StopAfterCheckpoint
from extraction_kit.sources.loading import load_model
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.testing import save_sae
from extraction_kit.trainings import describe_training
from tests.benchmarks.parts import (
    CONTEXT_SIZE,
    VOCAB,
    Parts,
    make_sae,
    read_texts,
    write_tokenizer,
)

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]

OUT = Path("build/bench/gpu.json")
PARTS = Path(os.environ.get("BENCH_PARTS", "build/bench/gpu-parts")).absolute()
D_IN, N_LAYERS = 4096, 8
HOOK = f"blocks.{N_LAYERS - 1}.hook_resid_post"
TILE = 16_384
GPU = "cuda"
N_TILES, WARM = 14, 3
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
SETTINGS = Settings(device=GPU, preflight="report", checkpoint_every_s=1e9)
ROWS = [
    (architecture, d_sae, dtype)
    for d_sae in (65_536, 131_072)
    for architecture in ("jumprelu", "topk")
    for dtype in ("bfloat16", "float32")
]


class GpuParts(Parts):
    """Model, texts and SAEs of the benchmark on disk."""

    def make(self):
        """Write what is not there."""
        if not self.texts.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_texts(self.texts)
            write_tokenizer(self.model, read_texts(self.texts))
        if not (self.model / "config.json").exists():
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=VOCAB, hidden_size=D_IN, intermediate_size=14_336,
                num_hidden_layers=N_LAYERS, num_attention_heads=32, num_key_value_heads=8,
                max_position_embeddings=2 * CONTEXT_SIZE, bos_token_id=0, eos_token_id=0,
                dtype="bfloat16", tie_word_embeddings=True,
            )  # fmt: skip
            with torch.device(GPU):
                model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
            model.save_pretrained(self.model)
        return self

    def training(self, architecture, d_sae):
        """Return an SAE of some size with the model."""
        sae = self.folder / f"{architecture}-{d_sae}"
        if not (sae / "sae_weights.safetensors").exists():
            config, weights = make_sae(architecture, d_sae, self._rows(), hook_name=HOOK)
            save_sae(sae, config, {name: each.cpu() for name, each in weights.items()})
        return describe_training("bench", sae=sae, model=self.model, hook_name=HOOK)

    def _rows(self):
        model = LlamaForCausalLM.from_pretrained(self.model, dtype=torch.bfloat16).to(GPU)
        model.model.norm = torch.nn.Identity()
        chance = torch.Generator().manual_seed(1)
        tokens = torch.randint(1, VOCAB, (32, CONTEXT_SIZE), generator=chance).to(GPU)
        with torch.inference_mode():
            return model.model(tokens).last_hidden_state.reshape(-1, D_IN).float().clone()


class Baseline:
    """The cut forward pass and a dense encoder, as one who counts nothing would write it."""

    def __init__(self, training, corpus, dtype):
        self.model = load_model(
            training.model, training.hookpoint, device=torch.device(GPU),
            dtype=torch.bfloat16,
        )  # fmt: skip
        weights = {
            name: tensor.to(GPU, dtype)
            for name, tensor in load_weights(training.sae).items()
        }
        self.k, self.dtype = training.sae.k, dtype
        self.w, self.b, self.b_dec = weights["W_enc"], weights["b_enc"], weights["b_dec"]
        self.bound = weights.get("threshold")
        self.rows = 2048
        self.pre = torch.empty(self.rows, self.w.shape[1], device=GPU, dtype=dtype)
        self.acts, self.zero = torch.zeros_like(self.pre), self.pre.new_zeros(())
        self.mask = torch.empty(self.pre.shape, dtype=torch.bool, device=GPU)
        order = ReadingOrder(corpus.lengths(), context_size=CONTEXT_SIZE, tile_tokens=TILE)
        self.tiles = []
        for plan, _ in zip(order, range(N_TILES), strict=False):
            batch = corpus.read_at(plan.contexts, plan.length)
            self.tiles.append(torch.from_numpy(batch.tokens).long().pin_memory())

    def seconds(self):
        """Return what a tile takes, in seconds: of all after the first ones."""
        with torch.inference_mode():
            for number, tokens in enumerate(self.tiles):
                if number == WARM:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                self(tokens.to(GPU, non_blocking=True))
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / (len(self.tiles) - WARM)

    def parts(self):
        """Return seconds per tile of the model and of the encoder alone."""
        tokens = self.tiles[0].to(GPU)
        with torch.inference_mode():
            x = self.model(tokens)
            return _each(lambda: self.model(tokens)), _each(lambda: self.encode(x))

    def __call__(self, tokens):
        self.encode(self.model(tokens))

    def encode(self, x):
        """Make dense activations, some rows at a time."""
        for some in (x.to(self.dtype) - self.b_dec).split(self.rows):
            torch.addmm(self.b, some, self.w, out=self.pre)
            if self.k is None:
                torch.gt(self.pre, self.bound, out=self.mask)
                torch.where(self.mask, self.pre, self.zero, out=self.acts)
            else:
                best = self.pre.topk(self.k, dim=1)
                self.acts.zero_().scatter_(1, best.indices, best.values.relu_())


def _each(work, n=5):
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(n):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / n


class Watch:
    """Seconds per tile of a running extraction; profiles some tiles if asked to."""

    def __init__(self, profiler=None):
        self.n, self.profiler, self.seconds = 0, profiler, None

    def __call__(self, progress):
        if progress.phase == "finishing" and self.seconds is None and self.n > WARM:
            torch.cuda.synchronize()
            self.seconds = (time.perf_counter() - self.began) / (self.n - WARM)
        if progress.phase != "extracting" or not progress.n_tokens_done:
            return
        self.n += 1
        if self.n == WARM:
            torch.cuda.synchronize()
            self.began = time.perf_counter()
            if self.profiler is not None:
                self.profiler.start()
        if self.profiler is not None and self.n == N_TILES - 1:
            torch.cuda.synchronize()
            self.profiler.stop()
            raise StopAfterCheckpoint


def run(training, corpus, config, watch):
    """Extract; return the result, None if it was stopped."""
    try:
        return extract(
            training, corpus, config=config, settings=SETTINGS, on_progress=watch
        )
    except StopAfterCheckpoint:
        return None


def profiled(training, corpus, config):
    """Return per tile: waits for the GPU, copies back, GPU seconds, the longest kernels."""
    profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
    run(training, corpus, config, Watch(profiler))
    n = N_TILES - 1 - WARM
    events = profiler.key_averages()
    counts = {event.key: event.count / n for event in events}
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    on_gpu = [event for event in events if event.device_type.name == "CUDA"]
    longest = sorted(on_gpu, key=lambda event: -event.self_device_time_total)[:25]
    return {
        "waits_per_tile": {name: counts[name] for name in waits if name in counts},
        "back_per_tile": {name: n for name, n in counts.items() if "DtoH" in name},
        "gpu_ms_per_tile": sum(e.self_device_time_total for e in on_gpu) / n / 1e3,
        "kernels": [
            [event.key[:100], event.count / n, event.self_device_time_total / n / 1e3]
            for event in longest
        ],
    }


def measure(architecture, d_sae, dtype):
    """Return the figures of one row."""
    parts = GpuParts(PARTS).make()
    training = parts.training(architecture, d_sae)
    config = ExtractionConfig(
        n_tokens=N_TILES * TILE, context_size=CONTEXT_SIZE, dtype="bfloat16",
        sae_dtype=dtype, n_neighbours=0, n_logits=0,
    )  # fmt: skip
    corpus = parts.long_corpus(training, config)
    baseline = Baseline(training, corpus, getattr(torch, dtype))
    model_s, encoder_s = baseline.parts()
    engine, limit = [], []
    for _ in range(ROUNDS):
        limit.append(baseline.seconds())
        watch = Watch()
        result = run(training, corpus, config, watch)
        engine.append(watch.seconds)
    row = {
        "name": "whole engine on a GPU",
        "architecture": architecture,
        "d_sae": d_sae,
        "sae_dtype": dtype,
        "l0": round(result.summary["l0"], 1),
        "ratio_to_limit": round(statistics.median(engine) / statistics.median(limit), 3),
        "engine_ms": [round(1e3 * each, 1) for each in engine],
        "limit_ms": [round(1e3 * each, 1) for each in limit],
        "model_ms": round(1e3 * model_s, 1),
        "encoder_ms": round(1e3 * encoder_s, 1),
        "tokens_per_s": round(TILE / statistics.median(engine)),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated() / 2**20),
    }
    return row | profiled(training, corpus, config)


def test_engine_on_a_gpu_against_the_limit():
    assert torch.cuda.is_available(), "this benchmark needs a CUDA device"
    rows = []
    for row in ROWS:
        rows.append(measure(*row))
        shown = {name: value for name, value in rows[-1].items() if name != "kernels"}
        print(shown, flush=True)  # noqa: T201 - the table
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(json.dumps(rows, indent=1))
    print(torch.cuda.get_device_name(), "torch", torch.__version__)  # noqa: T201 - the table


if __name__ == "__main__":
    architecture, d_sae, dtype = sys.argv[1:]
    print(json.dumps(measure(architecture, int(d_sae), dtype)))  # noqa: T201 - the answer
