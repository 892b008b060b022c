"""A workspace with completed runs, real corpora and vocabularies; no process is started."""

import functools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit import ExtractionConfig, service
from extraction_kit.atomic import move_folder, remove_folder, write_file
from extraction_kit.catalog.publish import publish, stage
from extraction_kit.config import STATISTICS_FORMAT
from extraction_kit.corpora import Corpus
from extraction_kit.corpora.corpus import corpus_digest, token_dtype
from extraction_kit.corpora.packing import Block
from extraction_kit.corpora.writer import ContextWriter
from tests.unit.lab import Lab, training_named
from tests.unit.synthetic import CONTEXT_SIZE, N_VOCAB, WINDOW, synthetic

NEIGHBOURS = {
    "feature": np.repeat(np.arange(16, dtype=np.int32), 2),
    "kind": np.tile(np.array([0, 1], dtype=np.int8), 16),
    "rank": np.zeros(32, np.int16),
    "other": np.tile(np.array([4, 9], dtype=np.int32), 16),
    "value": np.tile(np.array([0.5, 0.25], dtype=np.float32), 16),
    "n_both": np.tile(np.array([-1, 30]), 16),
}
LOGITS = {
    "feature": np.repeat(np.arange(16, dtype=np.int32), 2),
    "sign": np.tile(np.array([0, 1], dtype=np.int8), 16),
    "rank": np.zeros(32, np.int16),
    "token": np.tile(np.array([7, 3], dtype=np.int32), 16),
    "value": np.tile(np.array([2.5, -4], dtype=np.float32), 16),
}


@functools.cache
def made_with(seed):
    """A synthetic result with logits and neighbours, as this release would summarise it."""
    made = synthetic(seed=seed)
    result = replace(
        made.result,
        summary={
            **made.result.summary,
            "statistics_format": STATISTICS_FORMAT,
            "d_sae": 16,
        },
        tables={"neighbours": NEIGHBOURS, "logits": LOGITS},
    )
    return replace(made, result=result)


class PublishedRuns(Lab):
    """`completed(training_id, seed=...)` publishes a run whose numbers are `made_with(seed)`."""

    def __init__(self, home):
        super().__init__(home)
        self.made = {}

    def content(self, training_id="tiny", seed=0):
        training = training_named(training_id)
        service.register(self.bench, training)
        config = ExtractionConfig(context_size=CONTEXT_SIZE, window=WINDOW)
        corpus = self._corpus(training, made_with(seed).tokens)
        return service.content_of(self.bench, training, corpus=corpus, config=config)

    def _corpus(self, training, tokens):
        vocab = self.bench.paths.vocab / f"{training.tokenizer.digest}.parquet"
        if not vocab.exists():
            texts = [f"tok{token}" for token in range(N_VOCAB)]
            table = pa.table(
                {
                    "token_id": pa.array(range(N_VOCAB), pa.int32()),
                    "text": texts,
                    "bytes": pa.array([text.encode() for text in texts], pa.binary()),
                }
            )
            write_file(vocab, lambda path: pq.write_table(table, path))
        facts = {
            "context_size": tokens.shape[1],
            "tokenizer_digest": training.tokenizer.digest,
            "masks": {"packing": "pack", "excluded": [], "ignore_positions": []},
        }
        return write_corpus(self.bench.paths, vocab, tokens, vocab_size=N_VOCAB, **facts)

    def completed(self, training_id="tiny", *, seed=0, **options):
        self.made[training_id] = made_with(seed)
        return super().completed(training_id, seed=seed, **options)

    def publish(self, run_id):
        run = self.record(run_id)
        staged, final = self.bench.paths.staging_of(run_id, 1), self.folder(run_id)
        stage(staged, self.made[run.training_id].result, self.bench.manifest_of(run))
        assert publish(staged, final)


def write_corpus(paths, vocab, tokens, *, vocab_size, **facts):
    """Write contexts as the preparation of a corpus does; return the corpus."""
    folder = paths.corpora / ".staged"
    n, length = tokens.shape
    with ContextWriter(folder, token_dtype(vocab_size)) as writer:
        block = Block(
            tokens=tokens.astype(np.int32),
            n_tok=np.full(n, length, np.int32),
            doc=np.arange(n, dtype=np.int64),
            owner=np.zeros((n, length), np.int64),
            from_source=np.ones((n, length), bool),
            has_bos=False,
        )
        writer.add(block, n * length)
    digest = corpus_digest(writer.digest(), **facts)
    corpus = Corpus(
        digest=digest,
        path=paths.corpora / digest,
        n_contexts=writer.n_contexts,
        n_tokens=writer.n_total,
        n_tokens_total=writer.n_total,
        source="texts",
        vocab=vocab,
        vocab_size=vocab_size,
        pad_id=0,
        **facts,
    )
    corpus.save_spec(folder)
    if not move_folder(folder, corpus.path):
        remove_folder(folder)
    return corpus
