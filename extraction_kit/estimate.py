"""What an extraction will take, said before it is launched: time, memory and disk.

Without torch. Time comes from a run that was measured; else, on a CPU, from its arithmetic
and this machine's own speed at it. Memory and disk are formulas over what is kept.
"""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extraction_kit.checkpoints import KEPT
from extraction_kit.config import (
    TILE_TOKENS,
    TILE_TOKENS_OF_OTHERS,
    ExtractionConfig,
    Settings,
)
from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadModel
from extraction_kit.ledger import records
from extraction_kit.lifecycle import RunState
from extraction_kit.liveness import ProcessIdentity
from extraction_kit.results import N_BANDS, N_BINS
from extraction_kit.trainings import ModelSpec, Training, resolve_target
from extraction_kit.trainings.files import read_tensor_headers
from extraction_kit.trainings.model_folder import weight_files
from extraction_kit.workbench import Workbench

CPU_EFFICIENCY = 0.4
"""Share of the speed of a large matrix product that an extraction reaches on a CPU: seen at
d_in 256 and d_sae 8192 on two threads. Wide models reach more (0.6 at d_in 512), narrow ones
less (0.15 at d_in 64)."""
START_S = 12.0
"""Seconds from the claim to the first batch: importing torch, loading, checking."""
_LIBRARIES = 500 * 2**20  # resident with torch and transformers imported
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
_ROW, _ENTRY = 40, 8  # an example's numbers, and an active token of its window, in bytes
_ENTRIES = 4  # of these in a window, as a rule
_FEATURE = 88 + 8 * N_BINS  # counts, sums, maximum, bounds and the histogram, in bytes


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """What an extraction will take."""

    n_tokens: int
    """Valid tokens to measure."""
    seconds: float | None
    """None where nothing is known of this SAE on this hardware."""
    how: str
    """How the time is known, or why not."""
    memory_bytes: int
    """Resident memory of the process at its peak; on a GPU most of it is the GPU's."""
    disk_bytes: int
    """Disk space at the peak: checkpoints, and the result before they go."""

    def __repr__(self) -> str:
        """Return one line."""
        takes = "time not known" if self.seconds is None else f"about {_time(self.seconds)}"
        return (
            f"{takes} for {self.n_tokens:,} tokens ({self.how}), "
            f"{_size(self.memory_bytes)} memory, {_size(self.disk_bytes)} disk"
        )


def estimate(
    bench: Workbench, training: Training, *, corpus: Corpus, config: ExtractionConfig
) -> Estimate:
    """Estimate what a launch will take.

    Time is `START_S` + the first of these that is known:

    1. tokens / (tokens/s of the newest completed run of this training),
    2. the same of another training of equal model, layer, `d_in`, `d_sae` and architecture,
       on this machine,
    3. on a CPU: positions * `flops_per_token` / (`CPU_EFFICIENCY` * rate), with the rate of
       a float32 matrix product of 1024 x 1024, measured now in some 50 ms;
    4. on a GPU, or with workers elsewhere: not known.

    The CE loss of ``n_ce_contexts``, measured after the pass, is not in the time.

    Parameters
    ----------
    bench : Workbench
        The workspace, for its runs and settings.
    training, corpus, config
        What would be launched.
    """
    seconds, how = _measured(bench, training, corpus)
    if seconds is None:
        seconds, how = _computed(bench, training, corpus, config=config)
    return Estimate(
        n_tokens=corpus.n_tokens,
        seconds=seconds,
        how=how,
        memory_bytes=memory_bytes(training, corpus, config, settings=bench.settings),
        disk_bytes=disk_bytes(training, corpus, config),
    )


# --- time ---------------------------------------------------------------------------------


def _measured(
    bench: Workbench, training: Training, corpus: Corpus
) -> tuple[float | None, str]:
    with bench.store.read() as connection:
        known = records.runs_in(connection, [RunState.COMPLETED])[::-1]  # the newest first
        specs = {one.training_id: one.spec for one in records.all_trainings(connection)}
    here = ProcessIdentity.of_this_process().host
    own = [run for run in known if run.training_id == training.training_id]
    alike = [
        run
        for run in known
        if _is_alike(specs[run.training_id], training)
        and (run.process or {}).get("host") == here
    ]
    for run in (*own, *alike):
        speed = (run.summary or {}).get("tokens_per_s")
        if speed:
            host = (run.process or {}).get("host")
            where = "" if host == here else f" on {host}"
            how = f"{speed:,.0f} tokens/s in run {run.run_id}{where} of {run.created_at:%Y-%m-%d}"
            after_pass_s = (run.summary or {}).get("after_pass_s") or 0.0
            return START_S + corpus.n_tokens / speed + after_pass_s, how
    return None, ""


def _is_alike(spec: Mapping[str, Any], training: Training) -> bool:
    return (
        spec["model"]["digest"] == training.model.digest
        and spec["hookpoint"]["layer"] == training.hookpoint.layer
        and all(
            spec["sae"][name] == getattr(training.sae, name)
            for name in ("d_in", "d_sae", "architecture")
        )
    )


def _computed(
    bench: Workbench, training: Training, corpus: Corpus, *, config: ExtractionConfig
) -> tuple[float | None, str]:
    if bench.uses_own_server:
        return None, "workers elsewhere: the first minute of the run shows it"
    if not _computes_on_cpu(bench.settings):
        return None, "never measured on this GPU: the first minute of the run shows it"
    n_positions = corpus.n_contexts * corpus.context_size
    flops = flops_per_token(training, context_size=corpus.context_size)
    rate = CPU_EFFICIENCY * matmul_rate()
    how = f"computed: {flops / 1e6:.3g} MFLOP per token at {rate / 1e9:,.0f} GFLOP/s on this CPU"
    work = n_positions * flops + flops_after_pass(training, config)
    return START_S + work / rate, how


def flops_after_pass(training: Training, config: ExtractionConfig) -> float:
    """Return the floating-point operations of what is read off the weights.

    2 * d_in * d_sae * (d_sae + vocab_size): every decoder row with every other one
    (``n_neighbours``), and with every token (``n_logits``).
    """
    rows = training.sae.d_sae * (config.n_neighbours > 0)
    rows += training.model.vocab_size * (config.n_logits > 0)
    return 2.0 * training.sae.d_in * training.sae.d_sae * rows


def flops_per_token(training: Training, *, context_size: int) -> float:
    """Return the floating-point operations per position, of what is computed densely.

    2 * (matrix parameters of the layers up to the hook) + 4 * layers * context_size *
    hidden_size (scores and sums of the attention) + 2 * d_in * d_sae (the encoder; decoding
    is sparse).
    """
    layers = _layers(training)
    matrices = sum(
        n
        for n, layer, is_matrix in _weights(training.model)
        if layer < layers and is_matrix
    )
    attention = 4 * layers * context_size * training.model.hidden_size
    return 2.0 * matrices + attention + 2.0 * training.sae.d_in * training.sae.d_sae


def matmul_rate(seconds: float = 0.05) -> float:
    """Return the floating-point operations per second of numpy's float32 matrix product."""
    a = np.ones((1024, 1024), dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)
    best, end = float("inf"), time.perf_counter() + seconds
    while (now := time.perf_counter()) < end or best == float("inf"):
        np.matmul(a, a, out=out)
        best = min(best, time.perf_counter() - now)
    return float(2 * 1024**3 / best)


def _computes_on_cpu(settings: Settings) -> bool:
    if settings.device != "auto":
        return settings.device == "cpu"
    return sys.platform != "darwin" and not any(Path("/dev").glob("nvidia[0-9]*"))


def _tile_tokens(settings: Settings) -> int:
    usual = TILE_TOKENS["cpu"] if _computes_on_cpu(settings) else TILE_TOKENS_OF_OTHERS
    return settings.tile_tokens or usual


# --- memory and disk ------------------------------------------------------------------------


def memory_bytes(
    training: Training, corpus: Corpus, config: ExtractionConfig, *, settings: Settings
) -> int:
    """Return the memory that an extraction needs at its peak, within a factor of 2.

    Libraries (500 MiB) + the model's weights up to the hook, in `config.dtype` + the larger
    of loading the SAE (24 d_in d_sae: its weights, and both norms in float64) and computing
    with it: its weights twice, the tile, and the statistics (`state_bytes`, three times
    while they are sorted or saved). With ``n_ce_contexts`` the whole model, and the logits
    of a tile in float32, twice.
    """
    sae, width = training.sae, _BYTES[config.dtype]
    layers, logits = _layers(training), 0
    if config.n_ce_contexts:
        layers = training.model.n_layers
        logits = 2 * 4 * _tile_tokens(settings) * training.model.vocab_size
    model = sum(n for n, layer, _ in _weights(training.model) if layer < layers) * width
    pairs = sae.d_in * sae.d_sae
    tile = _tile_tokens(settings) * (min(sae.d_sae, 8192) * 5 + 16 * sae.d_in)
    working = 16 * pairs + tile + 3 * state_bytes(training, corpus, config)
    return int(_LIBRARIES + model + max(24 * pairs, working, 16 * pairs + logits))


def state_bytes(training: Training, corpus: Corpus, config: ExtractionConfig) -> int:
    """Return the bytes of the statistics: per feature and per example kept.

    d_sae * (1384 + rows * (40 + 8 * entries)), with rows = top_k + 4 per_band + n_random,
    each at most the number of contexts, and 4 active tokens in a window if it is as long.
    Silent examples are drawn after the pass.
    """
    kept = (config.top_k, *[config.per_band] * N_BANDS, config.n_random)
    rows = sum(min(n, corpus.n_contexts) for n in kept)
    entries = min(_ENTRIES, sum(config.window) + 1)
    return training.sae.d_sae * (_FEATURE + rows * (_ROW + _ENTRY * entries))


def disk_bytes(training: Training, corpus: Corpus, config: ExtractionConfig) -> int:
    """Return the disk space that a run needs at its peak, within a factor of 2.

    Three checkpoints (the last two, and one that is being written), see `state_bytes`, and
    the result: d_sae * (200 + 24 * examples), compressed. A run that ends before its second
    checkpoint needs a third of it.
    """
    rows = config.top_k + N_BANDS * config.per_band + config.n_random + config.n_silent
    rows = min(rows, 6 * corpus.n_contexts)
    result = training.sae.d_sae * (200 + 24 * rows)
    return (KEPT + 1) * state_bytes(training, corpus, config) + result


def _layers(training: Training) -> int:
    """Return how many layers of the model are computed."""
    target, _ = resolve_target(training)
    places = [training.hookpoint] if target is None else [training.hookpoint, target]
    known = [place.layer for place in places if place.layer is not None]
    return max(known) + 1 if len(known) == len(places) else training.model.n_layers


def _weights(model: ModelSpec) -> Iterator[tuple[int, int, bool]]:
    """Yield of each weight its size, its layer (-1 outside), and if a layer multiplies by it.

    Of weights that are not in safetensors files only the usual size is known: 12 hidden_size^2
    per layer.
    """
    files = weight_files(Path(model.path))
    if any(file.suffix != ".safetensors" for file in files):
        yield model.vocab_size * model.hidden_size, -1, False
        for layer in range(model.n_layers):
            yield 12 * model.hidden_size**2, layer, True
        return
    for file in files:
        headers = read_tensor_headers(file, BadModel, "copy the model again")
        for name, header in headers.items():
            found = _LAYER.search(name)
            layer = -1 if found is None else int(found[1])
            size = int(np.prod(header.shape, dtype=np.int64))
            yield size, layer, layer >= 0 and len(header.shape) > 1


def _time(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004 - a minute and a half
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004 - two hours


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:,.0f} MiB"
