"""A result of the size that the catalog is built for, in a second: no model, no SAE.

Tokens are drawn from Zipf's law over a vocabulary of 50,257. Each live feature has a few
tokens of its own, drawn from the same law, on which most of its examples peak, as features of
trained SAEs do (`make demo`: 3.7 distinct peak tokens per feature); the others peak anywhere.
Values are random floats, which no compression makes smaller. A window has 2.5 active tokens:
fewer than the 3.3 of the demo's SAE, whose 2,048 features are each active ten times as often.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.results import N_BINS, Examples, ExtractionResult, bin_edges

D_SAE = 32_768
DEAD_SHARE = 0.08
TOP_K = 20
N_CONTEXTS, CONTEXT_SIZE = 20_000, 128
N_VOCAB = 50_257
WINDOW = (32, 16)
ACTIVE_PER_WINDOW = 2.5
OWN_TOKENS = 3
OWN_SHARE = 0.95
"""Share of a feature's examples that peak on one of its own tokens."""
N_LOGITS = N_NEIGHBOURS = 10


@dataclass(frozen=True)
class Shared:
    """What all runs share: one corpus and one vocabulary."""

    tokens: np.ndarray  # uint16 [context, position]

    def write(self, contexts: Path, vocab: Path) -> None:
        """Write contexts and vocabulary as the corpus preparation does."""
        contexts.parent.mkdir(parents=True, exist_ok=True)
        n = len(self.tokens)
        columns = {
            "context": pa.array(range(n), pa.int64()),
            "n_tok": pa.array([CONTEXT_SIZE] * n, pa.int32()),
            "doc": pa.array(range(n), pa.int64()),
            "tokens": pa.array([row.tobytes() for row in self.tokens]),
        }
        pq.write_table(
            pa.table(columns),
            contexts,
            compression="zstd",
            use_dictionary=False,
            row_group_size=1024,
        )
        vocab.parent.mkdir(parents=True, exist_ok=True)
        texts = [text_of(token) for token in range(N_VOCAB)]
        columns = {
            "token_id": pa.array(range(N_VOCAB), pa.int32()),
            "text": pa.array(texts),
            "bytes": pa.array([text.encode() for text in texts]),
        }
        pq.write_table(pa.table(columns), vocab, compression="zstd")


def text_of(token: int) -> str:
    """Return the text of a token, with its space."""
    return f" word{token}"


def shared(seed: int = 0) -> Shared:
    """Return the contexts of all runs."""
    chance = np.random.default_rng(seed)
    shape = (N_CONTEXTS, CONTEXT_SIZE)
    return Shared(zipf_tokens(chance, N_CONTEXTS * CONTEXT_SIZE).reshape(shape))


def zipf_tokens(chance: np.random.Generator, n: int) -> np.ndarray:
    """Return `n` token ids, the i-th most frequent with probability proportional to 1/i."""
    weights = 1 / np.arange(1, N_VOCAB + 1)
    upto = np.cumsum(weights / weights.sum())
    return np.searchsorted(upto, chance.random(n)).clip(0, N_VOCAB - 1).astype("<u2")


def large_result(seed: int, *, d_sae: int = D_SAE) -> ExtractionResult:
    """Return a run of `d_sae` features with 20 top examples for each that is not dead."""
    chance = np.random.default_rng(1000 + seed)
    live = chance.random(d_sae) >= DEAD_SHARE
    n_active = np.where(live, chance.lognormal(7, 2, d_sae).astype(np.int64) + TOP_K, 0)
    max_act = np.where(live, chance.lognormal(2, 0.6, d_sae), 0).astype(np.float32)
    mean = max_act.astype(np.float64) * chance.uniform(0.1, 0.5, d_sae)
    examples = _examples(chance, np.flatnonzero(live), max_act)
    best = examples.rank == 0
    context, pos, last = (np.full(d_sae, -1, np.int64) for _ in range(3))
    context[live], pos[live] = examples.context[best], examples.pos[best]
    last[live] = chance.integers(N_CONTEXTS // 2, N_CONTEXTS, int(live.sum()))
    features = {
        "n_active": n_active,
        "n_contexts": np.minimum(n_active, N_CONTEXTS),
        "sum_act": mean * n_active,
        "sum_sq_act": mean**2 * n_active * chance.uniform(1.2, 2, d_sae),
        "max_act": max_act,
        "max_context": context,
        "max_pos": pos.astype(np.int32),
        "last_context": last,
        **{
            name: chance.normal(1, 0.1, d_sae).astype(np.float32)
            for name in ("decoder_norm", "encoder_norm", "enc_dec_cos")
        },
    }
    return ExtractionResult(
        features=features,
        histograms=_histograms(n_active, max_act),
        examples=examples,
        held_out=examples.context % 5 == 0,
        summary={
            "n_tokens": N_CONTEXTS * CONTEXT_SIZE,
            "n_tokens_total": N_CONTEXTS * CONTEXT_SIZE,
            "n_contexts": N_CONTEXTS,
            "l0": float(n_active.sum() / (N_CONTEXTS * CONTEXT_SIZE)),
            "fvu": 0.2,
            "n_dead": int((~live).sum()),
            "statistics_format": STATISTICS_FORMAT,
        },
        provenance={},
    )


def with_weights(result: ExtractionResult, seed: int = 0) -> ExtractionResult:
    """Return `result` with logits and neighbours as the default config has them."""
    chance = np.random.default_rng(seed)
    d_sae = result.d_sae
    per = 2 * N_LOGITS
    logits = {
        "feature": np.repeat(np.arange(d_sae, dtype=np.int32), per),
        "sign": np.tile(np.repeat(np.array([0, 1], np.int8), N_LOGITS), d_sae),
        "rank": np.tile(np.arange(N_LOGITS, dtype=np.int16), 2 * d_sae),
        "token": zipf_tokens(chance, d_sae * per).astype(np.int32),
        "value": chance.normal(size=d_sae * per).astype(np.float32),
    }
    n = d_sae * N_NEIGHBOURS
    neighbours = {
        "feature": np.repeat(np.arange(d_sae, dtype=np.int32), N_NEIGHBOURS),
        "kind": np.zeros(n, np.int8),
        "rank": np.tile(np.arange(N_NEIGHBOURS, dtype=np.int16), d_sae),
        "other": chance.integers(0, d_sae, n).astype(np.int32),
        "value": chance.random(n).astype(np.float32),
        "n_both": np.full(n, -1, np.int64),
    }
    return replace(result, tables={"logits": logits, "neighbours": neighbours})


def _examples(
    chance: np.random.Generator, features: np.ndarray, max_act: np.ndarray
) -> Examples:
    n = len(features) * TOP_K
    feature = np.repeat(features.astype(np.int32), TOP_K)
    share = np.sort(chance.uniform(0.5, 1, (len(features), TOP_K)))[:, ::-1]
    share[:, 0] = 1
    act = (max_act[features, None] * share).astype(np.float32).reshape(-1)
    own = zipf_tokens(chance, len(features) * OWN_TOKENS).reshape(-1, OWN_TOKENS)
    mine = own[np.arange(n) // TOP_K, chance.integers(0, OWN_TOKENS, n)]
    token = np.where(chance.random(n) < OWN_SHARE, mine, zipf_tokens(chance, n))
    pos = chance.integers(0, CONTEXT_SIZE, n).astype(np.int32)
    start = np.maximum(pos - WINDOW[0], 0).astype(np.int32)
    extra = chance.poisson(ACTIVE_PER_WINDOW - 1, n)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(1 + extra, out=offsets[1:])
    row = np.repeat(np.arange(n), 1 + extra)
    width = np.minimum(pos + WINDOW[1], CONTEXT_SIZE - 1) - start + 1
    return Examples(
        feature=feature,
        group=np.zeros(n, np.int8),
        rank=np.tile(np.arange(TOP_K, dtype=np.int16), len(features)),
        context=chance.integers(0, N_CONTEXTS, n),
        pos=pos,
        start=start,
        act=act,
        peak_token=token.astype(np.int32),
        offsets=offsets,
        act_off=(chance.random(len(row)) * width[row]).astype(np.int32),
        act_val=(act[row] * chance.random(len(row))).astype(np.float32),
    )


def _histograms(n_active: np.ndarray, max_act: np.ndarray) -> np.ndarray:
    """Return a few dozen bins below the maximum of each feature, which sum up to its count."""
    last = np.digitize(max_act, bin_edges()) - 1
    hist = np.zeros((len(n_active), N_BINS), np.int64)
    left = n_active.copy()
    rows = np.arange(len(n_active))
    for step in range(24):
        part = left // 8
        hist[rows, np.maximum(last - step, 0)] += part
        left -= part
    hist[rows, np.maximum(last, 0)] += left
    return hist
