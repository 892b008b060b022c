"""Whether a prepared corpus is what it was: its tokens make its digest, which names it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.corpora.corpus import (
    CONTEXTS,
    SPEC,
    VOCAB_DIGEST,
    Corpus,
    corpus_digest,
    token_dtype,
)
from extraction_kit.corpora.vocabulary import vocabulary_digest
from extraction_kit.errors import BadCorpus
from extraction_kit.trainings.files import read_json


def problems_of(folder: Path, on_bytes: Callable[[int], None]) -> Iterator[str]:
    """Yield what is wrong with a prepared corpus and its vocabulary; reads all of both.

    Parameters
    ----------
    folder : Path
        ``corpora/<digest>``.
    on_bytes : callable
        Given the bytes of each file once it is read.
    """
    try:
        corpus = Corpus.load(folder)
        spec = read_json(folder / SPEC, BadCorpus, "prepare the corpus again")
        found = _digest(corpus)
    except (BadCorpus, pa.ArrowException, OSError, ValueError) as error:
        yield f"{folder / CONTEXTS} or {SPEC} beside it cannot be read: {error}"
        return
    on_bytes((folder / CONTEXTS).stat().st_size)
    if found != folder.name:
        yield f"{folder / CONTEXTS} holds other tokens than those that were prepared"
    yield from _of_vocabulary(corpus.vocab, spec.get(VOCAB_DIGEST))
    if corpus.vocab.exists():
        on_bytes(corpus.vocab.stat().st_size)


def _of_vocabulary(vocab: Path, recorded: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    try:
        found = vocabulary_digest(vocab)
    except FileNotFoundError:
        yield f"{vocab} is missing"
    except (pa.ArrowException, OSError, ValueError) as error:
        yield f"{vocab} cannot be read: {error}"
    else:
        if recorded is not None and found != recorded:
            yield f"{vocab} holds other texts than those that were prepared"


def _digest(corpus: Corpus) -> str:
    """Return the digest of what is in the file, as `prepare` makes it."""
    tokens, lengths = hashlib.sha256(), hashlib.sha256()
    dtype = token_dtype(corpus.vocab_size)
    with pq.ParquetFile(corpus.path / CONTEXTS) as file:
        for batch in file.iter_batches(columns=["n_tok", "tokens"]):
            ids = np.frombuffer(b"".join(batch["tokens"].to_pylist()), dtype=dtype)
            tokens.update(ids.astype("<i4").tobytes())
            lengths.update(batch["n_tok"].to_numpy().astype("<i4").tobytes())
    return corpus_digest(
        [tokens.hexdigest(), lengths.hexdigest()],
        context_size=corpus.context_size,
        tokenizer_digest=corpus.tokenizer_digest,
        masks=corpus.masks,
    )
