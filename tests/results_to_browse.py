"""Results of any size that look like an extraction's, made from a seed in seconds."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit import ExtractionConfig, LocalResult
from extraction_kit.catalog.listing import Named
from extraction_kit.catalog.publish import stage
from extraction_kit.catalog.relations import literal
from extraction_kit.corpora import Corpus
from extraction_kit.corpora.corpus import ROWS_PER_GROUP, SCHEMA
from extraction_kit.results import GROUPS, N_BINS, Examples, ExtractionResult, bin_edges
from extraction_kit.widgets.browser import FeatureBrowser
from extraction_kit.workbench import corpus_record

CONTEXT_SIZE = 64
CONFIG = ExtractionConfig(context_size=CONTEXT_SIZE)
DEAD = 3
"""This feature is dead, like a few others."""
LOUD = 7
"""The examples of this feature hold every one of `HOSTILE`."""
AROUND = np.array([-3, -1, 0, 1, 2])  # the active tokens of an example, from its peak
WORDS = (
    " the", " of", " and", " tensor", " returns", " value", ",", ".", " not", " import",
    " Paris", " river", "ing", " 1987", " function", "(", ")", " self", " light", " was",
)  # fmt: skip
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "</td></div><b>bold</b> &amp; &lt;",
    "\u202eltr\u2066 \u05d0\u05d1\u05d2 \x00\x07\x1b[31m\x7f",
    "\n",
    "\t",
    " 東京",
    "'; DROP TABLE features; --",
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a result is."""

    d_sae: int = 600
    n_contexts: int = 400
    n_words: int = 400
    tables: tuple[str, ...] = ("logits", "neighbours", "tokens")
    seed: int = 0
    name: str = "synthetic"
    sae: str = "5ae"
    """Digest of the SAE."""


def write_result(folder: Path, shape: Shape | None = None) -> LocalResult:
    """Write corpus and result into `folder` as `extract_here` does, and open it."""
    shape = shape or Shape()
    chance = np.random.default_rng(shape.seed)
    texts = [*HOSTILE, *WORDS, *(f" word{i}" for i in range(shape.n_words))]
    tokens = chance.integers(
        len(HOSTILE), len(texts), (shape.n_contexts, CONTEXT_SIZE), dtype=np.int32
    )
    tokens[0, : len(HOSTILE)] = np.arange(len(HOSTILE))
    corpus = _write_corpus(folder, tokens, texts)
    manifest = {
        "training": {
            "training_id": shape.name,
            "model": {"source": "made/for-tests", "digest": "0de1"},
            "sae": {
                "digest": shape.sae,
                "path": "made",
                "architecture": "topk",
                "d_in": 8,
                "d_out": None,
                "d_sae": shape.d_sae,
            },
            "hookpoint": {"hook_name": "blocks.5.hook_resid_post"},
        },
        "corpus": {**corpus_record(corpus), "path": str(corpus.path)},
        "config": CONFIG.to_dict(),
        "n_tokens": corpus.n_tokens,
    }
    stage(folder / "results", _result(shape, tokens, chance), manifest)
    return LocalResult(folder)


def write_two(folder: Path) -> tuple[LocalResult, LocalResult]:
    """Write two results of one SAE, the second on other texts, in which others are dead."""
    return (
        write_result(folder / "a"),
        write_result(folder / "b", Shape(seed=1, n_contexts=300)),
    )


def labelled(result: LocalResult, text: str, **facts: object) -> FeatureBrowser:
    """A browser of the same result where feature `LOUD` is called `text`, and 8 is "eight"."""
    browsed = result._browsed()
    inner = browsed.names["features"].select(
        f"*, CASE feature WHEN {LOUD} THEN {literal(text)} WHEN 8 THEN 'eight' END AS label, "
        f"CASE feature WHEN {LOUD} THEN {literal(text)} END AS description"
    )
    names = {**browsed.names, "features": Named(f"({inner})")}
    return FeatureBrowser(replace(browsed, names=names, **facts), LOUD)


def _write_corpus(folder: Path, tokens: np.ndarray, texts: list[str]) -> Corpus:
    path, vocab = folder / "corpora" / "c0ffee", folder / "vocab" / "beef.parquet"
    for parent in (path, vocab.parent):
        parent.mkdir(parents=True)
    n = len(tokens)
    rows = [
        pa.array(range(n), pa.int64()),
        pa.array([CONTEXT_SIZE] * n, pa.int32()),
        pa.array(range(n), pa.int64()),
        pa.array([row.astype("<u2").tobytes() for row in tokens]),
    ]
    table = pa.table(rows, schema=SCHEMA)
    pq.write_table(table, path / "contexts.parquet", row_group_size=ROWS_PER_GROUP)
    spelled = {"token_id": pa.array(range(len(texts)), pa.int32()), "text": texts}
    spelled["bytes"] = [text.encode() for text in texts]
    pq.write_table(pa.table(spelled), vocab)
    corpus = Corpus(
        digest="c0ffee", path=path, n_contexts=n, n_tokens=tokens.size,
        n_tokens_total=tokens.size, context_size=CONTEXT_SIZE, source="made for tests",
        tokenizer_digest="beef", vocab=vocab, vocab_size=len(texts), pad_id=0,
        masks={"excluded": [], "ignore_positions": []},
    )  # fmt: skip
    corpus.save_spec(path)
    return corpus


def _result(
    shape: Shape, tokens: np.ndarray, chance: np.random.Generator
) -> ExtractionResult:
    d_sae = shape.d_sae
    dead = chance.random(d_sae) < 0.02
    dead[DEAD], dead[LOUD] = True, False
    n_active = np.exp(chance.normal(5, 1.5, d_sae)).astype(np.int64) + 100
    n_active = np.where(dead, 0, np.minimum(n_active, tokens.size // 2))
    max_act = np.exp(chance.normal(2.5, 0.7, d_sae)).astype(np.float32)
    max_act[dead] = 0
    examples = _examples(np.flatnonzero(~dead), max_act, tokens, chance)
    features = {
        "n_active": n_active,
        "n_contexts": np.minimum(n_active, shape.n_contexts),
        "sum_act": n_active * max_act.astype(np.float64) / 4,
        "sum_sq_act": n_active * max_act.astype(np.float64) ** 2 / 10,
        "max_act": max_act,
        "max_context": np.where(dead, -1, 0).astype(np.int64),
        "max_pos": np.where(dead, -1, 0).astype(np.int32),
        "last_context": np.where(dead, -1, 0).astype(np.int64),
        "decoder_norm": chance.uniform(0.5, 1, d_sae).astype(np.float32),
        "encoder_norm": chance.uniform(0.5, 1, d_sae).astype(np.float32),
        "enc_dec_cos": chance.uniform(0, 1, d_sae).astype(np.float32),
    }
    made = {
        "logits": _logits, "neighbours": _neighbours, "tokens": _tokens,
    }  # fmt: skip
    n_vocab = int(tokens.max()) + 1
    return ExtractionResult(
        features=features,
        histograms=_histograms(n_active, max_act),
        examples=examples,
        held_out=examples.context % 5 == 0,
        summary={
            "n_tokens": tokens.size, "n_tokens_total": tokens.size, "d_sae": d_sae,
            "n_contexts": len(tokens), "l0": float(n_active.sum() / tokens.size),
            "fvu": 0.18, "n_dead": int(dead.sum()),
        },
        provenance={
            name: {"absent_because": f"n_{name} is 0"}
            for name in ("logits", "tokens")
            if name not in shape.tables
        }
        | {
            "neighbours": {
                "decoder": {} if "neighbours" in shape.tables
                else {"absent_because": "n_neighbours is 0"},
                "coactivation": {"absent_because": "n_coactive is 0: pass n_coactive=10"},
            }
        },
        tables={name: made[name](d_sae, n_vocab, chance) for name in shape.tables},
    )  # fmt: skip


def _histograms(n_active: np.ndarray, max_act: np.ndarray) -> np.ndarray:
    """Half of the active tokens in the octave below the maximum, then halves of the rest."""
    found = np.zeros((len(n_active), N_BINS), dtype=np.int64)
    top = np.searchsorted(bin_edges(), max_act, side="right") - 1
    left = n_active.copy()
    for step in range(0, 48, 4):
        take = -(-left // 3) if step < 44 else left
        found[np.arange(len(top)), np.clip(top - step, 0, N_BINS - 1)] += take
        left = left - take
    return found


def _examples(
    alive: np.ndarray, max_act: np.ndarray, tokens: np.ndarray, chance: np.random.Generator
) -> Examples:
    sizes = [CONFIG.top_k, *[CONFIG.per_band] * 4, CONFIG.n_random, CONFIG.n_silent]
    group = np.tile(np.repeat(np.arange(len(GROUPS)), sizes), len(alive)).astype(np.int8)
    rank = np.tile(np.concatenate([np.arange(size) for size in sizes]), len(alive))
    feature = np.repeat(alive, sum(sizes)).astype(np.int32)
    n = len(feature)
    context = chance.integers(0, len(tokens), n)
    context[feature == LOUD] = 0
    pos = chance.integers(4, CONTEXT_SIZE, n).astype(np.int32)
    pos[feature == LOUD] = 4
    start = np.maximum(0, pos - CONFIG.window[0]).astype(np.int32)
    fall = np.choose(group, [1 - rank / 25, 0.9, 0.4, 0.2, 0.1, 0.3, 0.0])
    act = (max_act[feature] * fall).astype(np.float32)
    at = pos[:, None] - start[:, None] + AROUND
    inside = (at >= 0) & (pos[:, None] + AROUND < CONTEXT_SIZE) & (act > 0)[:, None]
    strength = act[:, None] * np.array([0.2, 0.5, 1, 0.7, 0.1], dtype=np.float32)
    offsets = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(inside.sum(axis=1), out=offsets[1:])
    return Examples(
        feature=feature, group=group, rank=rank.astype(np.int16), context=context, pos=pos,
        start=start, act=act, peak_token=tokens[context, pos], offsets=offsets,
        act_off=at[inside].astype(np.int32), act_val=strength[inside],
    )  # fmt: skip


def _logits(d_sae: int, n_vocab: int, chance: np.random.Generator) -> dict:
    k = CONFIG.n_logits
    value = -np.sort(-chance.random((d_sae, k)), axis=1) * 0.5
    return {
        "feature": np.repeat(np.arange(d_sae, dtype=np.int32), 2 * k),
        "sign": np.tile(np.repeat(np.arange(2, dtype=np.int8), k), d_sae),
        "rank": np.tile(np.arange(k, dtype=np.int16), 2 * d_sae),
        "token": chance.integers(0, n_vocab, 2 * k * d_sae, dtype=np.int32),
        "value": np.stack([value, -value], axis=1).reshape(-1).astype(np.float32),
    }


def _neighbours(d_sae: int, n_vocab: int, chance: np.random.Generator) -> dict:  # noqa: ARG001 - as the others
    k = CONFIG.n_neighbours
    step = 1 + np.arange(k)
    return {
        "feature": np.repeat(np.arange(d_sae, dtype=np.int32), k),
        "kind": np.zeros(d_sae * k, np.int8),
        "rank": np.tile(np.arange(k, dtype=np.int16), d_sae),
        "other": ((np.arange(d_sae)[:, None] + step) % d_sae).reshape(-1).astype(np.int32),
        "value": np.tile((1 - step / 12).astype(np.float32), d_sae),
        "n_both": np.full(d_sae * k, -1, np.int64),
    }


def _tokens(d_sae: int, n_vocab: int, chance: np.random.Generator) -> dict:
    k = 5
    n_active = np.tile(np.arange(50, 50 - 10 * k, -10, dtype=np.int64), d_sae)
    return {
        "feature": np.repeat(np.arange(d_sae, dtype=np.int32), k),
        "rank": np.tile(np.arange(k, dtype=np.int16), d_sae),
        "token": chance.integers(0, n_vocab, k * d_sae, dtype=np.int32),
        "n_active": n_active,
        "sum_act": n_active * 2.0,
        "mean_act": np.full(k * d_sae, 2.0),
        "max_act": np.full(k * d_sae, 5.0, np.float32),
    }
