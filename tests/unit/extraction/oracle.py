"""What extractions of the tiny training are compared with: naive loops in float64."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.results import GROUPS, N_BANDS, N_BINS, bin_edges
from tests.devices import DEVICE

SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=24)
CONFIG = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
CONFIGS = {
    "packed": CONFIG,
    "documents": CONFIG.replace(packing="document"),
    "masked": CONFIG.replace(
        packing="document", ignore_positions=(1, 5), ignore_tokens=(7, 8), n_tokens=150
    ),
    "specials count": CONFIG.replace(exclude_special_tokens=False, n_tokens=211),
}
CLOSE = {"rel": 1e-5, "abs": 1e-4}
"""Float32 against float64; the residual stream reaches 40, and 2e-5 are lost on the way."""


def naive_activations(training, corpus):
    """Return per context (tokens, valid, acts [pos, d_sae], x, x_hat) in float64.

    Each context goes through the whole model alone and without padding.
    """
    model = AutoModelForCausalLM.from_pretrained(training.model.path, dtype=torch.float64)
    model.eval().model.norm = (
        torch.nn.Identity()
    )  # else the last hidden state is a normed one
    sae = load_file(training.sae.path + "/sae_weights.safetensors")
    sae = {name: tensor.double().numpy() for name, tensor in sae.items()}
    batch = corpus.read(0, corpus.n_contexts)
    for tokens, present, valid in zip(
        batch.tokens, batch.present, batch.valid, strict=True
    ):
        known = torch.from_numpy(tokens[present]).long()[None]
        with torch.no_grad():
            states = model(known, output_hidden_states=True).hidden_states
        x = states[training.hookpoint.layer + 1][0].numpy()
        h = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
        acts = np.zeros_like(h)
        for pos in range(len(h)):
            allowed = np.ones(len(h[pos]), dtype=bool)
            if training.sae.k:
                allowed[np.argsort(-h[pos])[training.sae.k :]] = False
            if "threshold" in sae:
                allowed &= h[pos] > sae["threshold"]
            acts[pos] = np.where(allowed, np.maximum(h[pos], 0), 0)
        yield tokens, valid, acts, x, acts @ sae["W_dec"] + sae["b_dec"]


def naive_result(training, corpus, config):
    """Return columns, histogram, examples, L0 and FVU, counted in Python loops."""
    d_sae, (before, after) = training.sae.d_sae, config.window
    columns = {name: [0] * d_sae for name in ("n_active", "n_contexts")}
    columns |= {name: [0.0] * d_sae for name in ("sum_act", "sum_sq_act")}
    histogram = np.zeros((d_sae, N_BINS), dtype=np.int64)
    peaks = [[] for _ in range(d_sae)]
    xs, errors, n_active, n_tokens = [], 0.0, 0, 0
    stream = naive_activations(training, corpus)
    for context, (tokens, valid, acts, x, x_hat) in enumerate(stream):
        counted = [pos for pos in range(len(x)) if valid[pos]]
        n_tokens += len(counted)
        for pos in counted:
            xs.append(x[pos])
            errors += ((x[pos] - x_hat[pos]) ** 2).sum()
        for feature in range(d_sae):
            active = [
                (pos, acts[pos, feature]) for pos in counted if acts[pos, feature] > 0
            ]
            if not active:
                continue
            n_active += len(active)
            columns["n_active"][feature] += len(active)
            columns["n_contexts"][feature] += 1
            for _, act in active:
                columns["sum_act"][feature] += act
                columns["sum_sq_act"][feature] += act * act
                histogram[feature, np.searchsorted(bin_edges(), act, side="right") - 1] += 1
            pos, act = max(active, key=lambda each: (each[1], -each[0]))
            start = max(0, pos - before)
            window = [(at - start, v) for at, v in active if start <= at <= pos + after]
            peaks[feature].append((-act, context, pos, start, int(tokens[pos]), window))
    centred = np.array(xs) - np.mean(xs, axis=0)
    quality = {"l0": n_active / n_tokens, "fvu": errors / (centred**2).sum()}
    return columns, histogram, peaks, quality


def assert_examples(found, expected, top_k):
    """Compare examples; equal prefixes give equal values but for the last bit."""
    rows, features = found.examples, found.features
    for feature, peaks in enumerate(expected):
        by_context = {peak[1]: peak for peak in peaks}
        groups = {group: [] for group in GROUPS}
        for place in np.flatnonzero(rows.feature == feature):
            group, context = groups[GROUPS[rows.group[place]]], int(rows.context[place])
            assert rows.rank[place] == len(group)
            assert context not in {each[1] for each in group}
            if GROUPS[rows.group[place]] == "silent":
                assert context not in by_context
                group.append((0.0, context, 0))
            else:
                assert_example(rows, place, by_context[context])
                group.append((-float(rows.act[place]), context, int(rows.pos[place])))
        top = groups["top"]
        assert top == sorted(top)
        best_acts = [peak[0] for peak in sorted(peaks)[:top_k]]
        assert [act for act, *_ in top] == pytest.approx(best_acts, **CLOSE)
        best = top[0] if top else (0.0, -1, -1)
        columns = ("max_act", "max_context", "max_pos")
        assert tuple(features[name][feature] for name in columns) == (-best[0], *best[1:])
        assert features["last_context"][feature] == max(by_context, default=-1)
        assert_drawn(groups, peaks)


def assert_example(rows, place, peak):
    act, _, pos, start, token, window = peak
    assert rows.act[place] == pytest.approx(-act, **CLOSE)
    assert rows.pos[place] == pos
    assert rows.start[place] == start
    assert rows.peak_token[place] == token
    entries = slice(*rows.offsets[place : place + 2])
    assert rows.act_off[entries].tolist() == [at for at, _ in window]
    assert rows.act_val[entries] == pytest.approx([v for _, v in window], **CLOSE)


def assert_drawn(groups, peaks):
    """Bands are octaves below the largest activation, as full as they can be."""
    octaves = [int(np.floor(np.log2(-peak[0]))) for peak in peaks]
    for band in range(N_BANDS):
        there = octaves.count(max(octaves, default=0) - band)
        assert len(groups[f"band_{band + 1}"]) == min(there, ExtractionConfig().per_band)
    assert len(groups["random"]) == min(len(peaks), ExtractionConfig().n_random)
