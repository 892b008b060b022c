"""A small extraction whose activations are known, so that every number can be checked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.results import Examples, ExtractionResult, bin_edges

CONTEXT_SIZE = 24
WINDOW = (4, 2)
TOP_K = 5
DEAD = 3
N_VOCAB = 50


@dataclass(frozen=True)
class Synthetic:
    """Activations [context, position, feature], tokens [context, position], the result."""

    acts: np.ndarray
    tokens: np.ndarray
    result: ExtractionResult

    @property
    def manifest(self) -> dict:
        return {
            "run_id": "0123456789abcdef",
            "attempt": 1,
            "config": {"window": list(WINDOW), "context_size": CONTEXT_SIZE},
        }

    def write_corpus(self, folder: Path) -> tuple[Path, Path]:
        """Write contexts and vocabulary as the corpus preparation does; return both."""
        n = len(self.tokens)
        contexts = folder / "corpora" / "c0ffee" / "contexts.parquet"
        contexts.parent.mkdir(parents=True)
        table = {
            "context": pa.array(range(n), pa.int64()),
            "n_tok": pa.array([CONTEXT_SIZE] * n, pa.int32()),
            "doc": pa.array(range(n), pa.int64()),
            "tokens": pa.array([row.astype("<u2").tobytes() for row in self.tokens]),
        }
        pq.write_table(pa.table(table), contexts)
        vocab = folder / "vocab" / "beef.parquet"
        vocab.parent.mkdir()
        texts = [f"tok{token}" for token in range(N_VOCAB)]
        table = {
            "token_id": pa.array(range(N_VOCAB), pa.int32()),
            "text": pa.array(texts),
            "bytes": pa.array([text.encode() for text in texts]),
        }
        pq.write_table(pa.table(table), vocab)
        return contexts, vocab


def synthetic(*, d_sae: int = 16, n_contexts: int = 40, seed: int = 0) -> Synthetic:
    """Return a result computed naively from random sparse activations; `DEAD` is dead."""
    random = np.random.default_rng(seed)
    shape = (n_contexts, CONTEXT_SIZE, d_sae)
    acts = np.exp2(random.uniform(-12, 4, shape)).astype(np.float32)
    acts *= random.random(shape) < 0.2
    acts[:, :, DEAD] = 0
    tokens = random.integers(0, N_VOCAB, shape[:2]).astype(np.int32)
    examples = _examples(acts, tokens)
    result = ExtractionResult(
        features=_features(acts),
        histograms=_histograms(acts),
        examples=examples,
        held_out=examples.context % 5 == 0,
        summary={
            "n_tokens": n_contexts * CONTEXT_SIZE,
            "n_tokens_total": n_contexts * CONTEXT_SIZE,
            "n_contexts": n_contexts,
            "l0": np.float64((acts > 0).sum() / (n_contexts * CONTEXT_SIZE)),
            "fvu": float("nan"),
            "n_dead": 1,
        },
        provenance={"units": "activation of the SAE"},
    )
    return Synthetic(acts, tokens, result)


def _features(acts: np.ndarray) -> dict[str, np.ndarray]:
    active = acts > 0
    dead = ~active.any(axis=(0, 1))
    flat = acts.reshape(-1, acts.shape[2])
    peak = flat.argmax(axis=0)
    context, pos = np.divmod(peak, acts.shape[1])
    wide = acts.astype(np.float64)
    return {
        "n_active": active.sum(axis=(0, 1)).astype(np.int64),
        "n_contexts": active.any(axis=1).sum(axis=0).astype(np.int64),
        "sum_act": wide.sum(axis=(0, 1)),
        "sum_sq_act": (wide**2).sum(axis=(0, 1)),
        "max_act": flat.max(axis=0),
        "max_context": np.where(dead, -1, context).astype(np.int64),
        "max_pos": np.where(dead, -1, pos).astype(np.int32),
        "last_context": np.where(
            dead, -1, active.shape[0] - 1 - active.any(axis=1)[::-1].argmax(axis=0)
        ),
        "decoder_norm": np.ones(acts.shape[2], np.float32),
    }


def _histograms(acts: np.ndarray) -> np.ndarray:
    columns = [
        np.histogram(column[column > 0], bin_edges())[0]
        for column in acts.reshape(-1, acts.shape[2]).T
    ]
    return np.stack(columns).astype(np.int64)


def _examples(acts: np.ndarray, tokens: np.ndarray) -> Examples:
    rows, offsets, act_off, act_val = [], [0], [], []
    for feature in range(acts.shape[2]):
        peaks = acts[:, :, feature].max(axis=1)
        order = [c for c in np.argsort(-peaks, kind="stable")[:TOP_K] if peaks[c] > 0]
        for rank, context in enumerate(order):
            row = acts[context, :, feature]
            pos = int(row.argmax())
            start = max(0, pos - WINDOW[0])
            window = row[start : pos + WINDOW[1] + 1]
            rows.append(
                (feature, rank, context, pos, start, row[pos], tokens[context, pos])
            )
            act_off.extend(np.flatnonzero(window))
            act_val.extend(window[window > 0])
            offsets.append(len(act_off))
    columns = list(zip(*rows, strict=True))
    return Examples(
        feature=np.array(columns[0], np.int32),
        group=np.zeros(len(rows), np.int8),
        rank=np.array(columns[1], np.int16),
        context=np.array(columns[2], np.int64),
        pos=np.array(columns[3], np.int32),
        start=np.array(columns[4], np.int32),
        act=np.array(columns[5], np.float32),
        peak_token=np.array(columns[6], np.int32),
        offsets=np.array(offsets, np.int64),
        act_off=np.array(act_off, np.int32),
        act_val=np.array(act_val, np.float32),
    )
