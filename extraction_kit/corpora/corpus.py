"""A prepared corpus: how it lies on disk and how it is read."""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int32, Int64

from extraction_kit import atomic
from extraction_kit.corpora.vocabulary import vocabulary_digest
from extraction_kit.errors import BadCorpus
from extraction_kit.lifecycle import digest_of
from extraction_kit.trainings.files import read_json

CORPUS_FORMAT = 1
ROWS_PER_GROUP = 1024
KEPT_TOKENS = 2**22
"""Tokens of read row groups that are kept, at least two groups: 24 MiB."""
CONTEXTS = "contexts.parquet"
SPEC = "corpus.json"
VOCAB_DIGEST = "vocab_digest"
SCHEMA = pa.schema(
    [
        pa.field("context", pa.int64(), nullable=False),
        pa.field("n_tok", pa.int32(), nullable=False),
        pa.field("doc", pa.int64(), nullable=False),
        pa.field("tokens", pa.binary(), nullable=False),
    ]
)


def corpus_digest(
    tokens: Sequence[str],
    *,
    context_size: int,
    tokenizer_digest: str,
    masks: Mapping[str, Any],
) -> str:
    """Return what names a corpus: a digest of its contexts and of how they are to be read.

    Parameters
    ----------
    tokens : sequence of str
        Digests of all token ids and of the contexts' lengths.
    context_size, tokenizer_digest, masks
        As in `Corpus`.
    """
    return digest_of(
        {
            "format": CORPUS_FORMAT,
            "tokens": list(tokens),
            "context_size": context_size,
            "tokenizer_digest": tokenizer_digest,
            "masks": dict(masks),
        }
    )


def asked_for(folder: Path) -> float:
    """Return when the corpus in a folder was prepared or last asked for, in UNIX seconds."""
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return math.inf  # it has just gone: there is nothing to take


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the little-endian type in which the ids of a context are stored."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


@dataclass(frozen=True)
class ContextBatch:
    """Some contexts, as the model and the statistics need them."""

    tokens: Int32[np.ndarray, "context position"]
    """Token ids, padded on the right with the corpus's ``pad_id``."""
    present: Bool[np.ndarray, "context position"]
    """False on padding."""
    valid: Bool[np.ndarray, "context position"]
    """True on the tokens that the statistics count."""

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.tokens)

    def __getitem__(self, rows: slice | np.ndarray) -> "ContextBatch":
        """Return a copy of some contexts."""
        return ContextBatch(
            self.tokens[rows].copy(), self.present[rows].copy(), self.valid[rows].copy()
        )


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which tokens of a context the statistics count."""

    context_size: int
    excluded: tuple[int, ...]
    ignore_positions: tuple[int, ...]
    vocab_size: int
    _counted: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the table that is looked up per token."""
        counted = np.ones(self.vocab_size, dtype=bool)
        counted[[token for token in self.excluded if token < self.vocab_size]] = False
        object.__setattr__(self, "_counted", counted)

    def valid(
        self,
        tokens: Int32[np.ndarray, "context position"],
        present: Bool[np.ndarray, "context position"],
    ) -> Bool[np.ndarray, "context position"]:
        """Return True where a token is present, not excluded, at a position that counts."""
        valid: np.ndarray = present & self._counted[tokens]
        valid[:, [at for at in self.ignore_positions if at < self.context_size]] = False
        return valid


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared corpus. It never changes: its folder is named by its digest."""

    digest: str
    """sha256 over tokens, lengths, masks, context size and tokenizer."""
    path: Path
    """Folder with ``contexts.parquet`` and ``corpus.json``."""
    n_contexts: int
    n_tokens: int
    """Valid tokens: those that the statistics count."""
    n_tokens_total: int
    """All tokens in the contexts; padding is none."""
    context_size: int
    source: str
    """What it was made from, in words."""
    tokenizer_digest: str
    vocab: Path
    """Texts of the tokens: ``token_id``, ``text``, ``bytes``."""
    vocab_size: int
    pad_id: int
    masks: Mapping[str, Any]
    """``packing``, ``prepend_bos``, ``exclude_special_tokens``, ``excluded``,
    ``ignore_positions``."""
    accounting: Mapping[str, Any] | None = None
    """Where every token of the source went, see :mod:`extraction_kit.corpora.accounting`;
    None for a corpus that was prepared before this was kept."""
    _groups: dict[int, ContextBatch] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def contexts(self) -> Path:
        """The file with the token ids of each context."""
        return self.path / CONTEXTS

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Open a prepared corpus.

        Raises
        ------
        BadCorpus
            The folder is missing, damaged, or was written by a newer version.
        """
        folder = Path(folder).absolute()
        advice = "delete the folder, then prepare the corpus again"
        values = read_json(folder / SPEC, BadCorpus, advice)
        values.pop(VOCAB_DIGEST, None)  # see `extraction_kit.corpora.checking`
        if values.pop("format", None) != CORPUS_FORMAT:
            raise BadCorpus(
                f"{folder} has another format than {CORPUS_FORMAT}, the one this version "
                f"reads: {advice}"
            )
        try:
            vocab = folder.parent.parent / values.pop("vocab")
            corpus = cls(path=folder, vocab=vocab, **values)
            n_rows = pq.read_metadata(corpus.contexts).num_rows
        except (KeyError, TypeError, OSError, ValueError, pa.ArrowException) as cause:
            raise BadCorpus(f"corpus {folder} is damaged ({cause}): {advice}") from cause
        if n_rows != corpus.n_contexts:
            raise BadCorpus(
                f"corpus {folder} is damaged ({n_rows} contexts instead of "
                f"{corpus.n_contexts}): {advice}"
            )
        return corpus

    def save_spec(self, folder: Path) -> None:
        """Write ``corpus.json`` into `folder`, the last file of a corpus."""
        spec = {
            "format": CORPUS_FORMAT,
            # below the shared part of the workspace, so that it can be moved as a whole
            "vocab": f"{self.vocab.parent.name}/{self.vocab.name}",
            "masks": dict(self.masks),
            VOCAB_DIGEST: vocabulary_digest(self.vocab),
        }
        for name in (
            "digest", "n_contexts", "n_tokens", "n_tokens_total", "context_size", "source",
            "tokenizer_digest", "vocab_size", "pad_id", "accounting",
        ):  # fmt: skip
            spec[name] = getattr(self, name)
        atomic.write_json(folder / SPEC, spec)

    def mark_asked_for(self) -> None:
        """Note that somebody wants it: a purge takes what nobody wanted for long."""
        with suppress(OSError):  # not ours: then nor does our purge take it
            os.utime(self.path)

    def read(self, start: int, n: int) -> ContextBatch:
        """Return `n` contexts from number `start` on; fewer where the corpus ends.

        Reads whole row groups and keeps the last ones, so that reading on is cheap.
        """
        if not 0 <= start < self.n_contexts or n < 1:
            msg = (
                f"contexts {start} to {start + n}: this corpus has {self.n_contexts}, "
                f"0 to {self.n_contexts - 1}"
            )
            raise IndexError(msg)
        stop = min(start + n, self.n_contexts)
        parts = []
        for group in range(start // ROWS_PER_GROUP, (stop - 1) // ROWS_PER_GROUP + 1):
            first = group * ROWS_PER_GROUP
            rows = slice(max(start - first, 0), min(stop - first, ROWS_PER_GROUP))
            parts.append(self._group(group)[rows])
        if len(parts) == 1:
            return parts[0]
        return ContextBatch(
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.present for part in parts]),
            np.concatenate([part.valid for part in parts]),
        )

    def read_at(self, numbers: Int64[np.ndarray, " context"], length: int) -> ContextBatch:
        """Return the contexts with these numbers, ascending, cut to `length` tokens."""
        group = numbers // ROWS_PER_GROUP
        parts = [
            self._group(int(each))[numbers[group == each] - each * ROWS_PER_GROUP]
            for each in np.unique(group)
        ]
        return ContextBatch(
            *(
                np.concatenate([getattr(part, name)[:, :length] for part in parts])
                for name in ("tokens", "present", "valid")
            )
        )

    def tokens_at(self, number: int) -> Int32[np.ndarray, " position"]:
        """Return the token ids of one context; whoever reads the corpus is not disturbed."""
        group, row = divmod(number, ROWS_PER_GROUP)
        batch = self._groups.get(group)  # what is held is used, nothing else is pushed out
        if batch is not None:
            held: np.ndarray = batch.tokens[row][batch.present[row]]
            return held
        with pq.ParquetFile(self.contexts) as file:
            table = file.read_row_group(group, columns=["tokens"])
        blob = table["tokens"][row].as_py()
        return np.frombuffer(blob, dtype=token_dtype(self.vocab_size)).astype(np.int32)

    def lengths(self) -> Int32[np.ndarray, " context"]:
        """Return the number of tokens of each context."""
        column = pq.read_table(self.contexts, columns=["n_tok"])["n_tok"]
        found: np.ndarray = column.to_numpy()
        return found

    def _group(self, group: int) -> ContextBatch:
        batch = self._groups.get(group)
        if batch is None:
            batch = self._read_group(group)
            kept = max(2, KEPT_TOKENS // (ROWS_PER_GROUP * self.context_size))
            for old in list(self._groups)[: 1 - kept]:
                self._groups.pop(old, None)
            self._groups[group] = batch
        return batch

    def _read_group(self, group: int) -> ContextBatch:
        with pq.ParquetFile(self.contexts) as file:
            table = file.read_row_group(group, columns=["n_tok", "tokens"])
        n_tok = table["n_tok"].to_numpy()
        flat = np.frombuffer(
            b"".join(table["tokens"].to_pylist()), dtype=token_dtype(self.vocab_size)
        )
        present = np.arange(self.context_size) < n_tok[:, None]
        tokens = np.full(present.shape, self.pad_id, dtype=np.int32)
        tokens[present] = flat
        masks = Masks(
            context_size=self.context_size,
            excluded=tuple(self.masks["excluded"]),
            ignore_positions=tuple(self.masks["ignore_positions"]),
            vocab_size=self.vocab_size,
        )
        return ContextBatch(tokens, present, masks.valid(tokens, present))
