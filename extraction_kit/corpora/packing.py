"""Documents of token ids made into contexts, block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int32, Int64

from extraction_kit.config import Packing


@dataclass(frozen=True)
class Block:
    """Some finished contexts."""

    tokens: Int32[np.ndarray, "context position"]
    """Padded on the right."""
    n_tok: Int32[np.ndarray, " context"]
    """Tokens that are no padding."""
    doc: Int64[np.ndarray, " context"]
    """Number of the document in which the context begins, BOS aside."""

    @property
    def present(self) -> Bool[np.ndarray, "context position"]:
        """False on padding."""
        return np.arange(self.tokens.shape[1]) < self.n_tok[:, None]


@dataclass(frozen=True, kw_only=True)
class Packer:
    """How documents become contexts.

    A document that begins with BOS or ends with EOS already gets no second one.
    """

    context_size: int
    packing: Packing
    bos_id: int | None
    """Put before each context; None puts nothing."""
    eos_id: int | None
    """Put between packed documents; None puts nothing."""
    pad_id: int
    _prefix: int = field(init=False)

    def __post_init__(self) -> None:
        """Note how many positions BOS takes."""
        object.__setattr__(self, "_prefix", 0 if self.bos_id is None else 1)

    @property
    def content(self) -> int:
        """Tokens of documents that a context holds."""
        return self.context_size - self._prefix

    def blocks(self, batches: Iterable[list[np.ndarray]]) -> Iterator[Block]:
        """Yield contexts, each as soon as it is full, for batches of documents' ids."""
        if self.packing == "pack":
            return self._packed(batches)
        return self._by_document(batches)

    def _packed(self, batches: Iterable[list[np.ndarray]]) -> Iterator[Block]:
        ids = np.empty(0, dtype=np.int32)
        docs = np.empty(0, dtype=np.int64)
        first, last = 0, None
        for batch in batches:
            parts, owners = [ids], [docs]
            for number, document in enumerate(batch, first):
                last = self._join(parts, owners, (number, document), last=last)
            first += len(batch)
            ids, docs = np.concatenate(parts), np.concatenate(owners)
            full = len(ids) // self.content * self.content
            if full:
                yield self._block(
                    ids[:full].reshape(-1, self.content), docs[: full : self.content]
                )
                ids, docs = ids[full:].copy(), docs[full:].copy()
        if len(ids):
            yield self._block(ids[None, :], docs[:1])

    def _join(
        self,
        parts: list[np.ndarray],
        owners: list[np.ndarray],
        numbered: tuple[int, np.ndarray],
        *,
        last: int | None,
    ) -> int | None:
        """Append one document after EOS; return the stream's last token, None before any."""
        number, document = numbered
        document = self._without_bos(document)
        if not len(document):
            return last
        if last is not None and self.eos_id not in (None, last):
            parts.append(np.array([self.eos_id], dtype=np.int32))
            owners.append(np.array([number - 1], dtype=np.int64))
        parts.append(document.astype(np.int32))
        owners.append(np.full(len(document), number, dtype=np.int64))
        return int(document[-1])

    def _by_document(self, batches: Iterable[list[np.ndarray]]) -> Iterator[Block]:
        first = 0
        for batch in batches:
            rows: list[np.ndarray] = []
            docs: list[int] = []
            for number, document in enumerate(batch, first):
                ids = self._without_bos(document).astype(np.int32)
                cuts = range(0, len(ids), self.content)
                rows += [ids[cut : cut + self.content] for cut in cuts]
                docs += [number] * len(cuts)
            first += len(batch)
            if rows:
                yield self._ragged(rows, docs)

    def _without_bos(self, document: np.ndarray) -> np.ndarray:
        if self.bos_id is not None and len(document) and document[0] == self.bos_id:
            return document[1:]
        return document

    def _ragged(self, rows: list[np.ndarray], docs: list[int]) -> Block:
        lengths = np.array([len(row) for row in rows], dtype=np.int32)
        content = np.full((len(rows), self.content), self.pad_id, dtype=np.int32)
        content[np.arange(self.content) < lengths[:, None]] = np.concatenate(rows)
        return self._block(content, np.array(docs, dtype=np.int64), lengths)

    def _block(
        self, content: np.ndarray, docs: np.ndarray, lengths: np.ndarray | None = None
    ) -> Block:
        n, width = content.shape
        tokens = np.full((n, self.context_size), self.pad_id, dtype=np.int32)
        tokens[:, self._prefix : self._prefix + width] = content
        if self.bos_id is not None:
            tokens[:, 0] = self.bos_id
        if lengths is None:
            lengths = np.full(n, width, dtype=np.int32)
        n_tok = (lengths + self._prefix).astype(np.int32)
        return Block(tokens, n_tok, np.ascontiguousarray(docs))


def cut_to(
    block: Block, valid: Bool[np.ndarray, "context position"], n_wanted: int
) -> Block:
    """Return the beginning of `block` with exactly `n_wanted` valid tokens.

    The last context ends at its last wanted token: what follows cannot influence it.
    """
    ends = np.flatnonzero(valid)[n_wanted - 1]
    row, position = divmod(int(ends), block.tokens.shape[1])
    n_tok = block.n_tok[: row + 1].copy()
    n_tok[row] = position + 1
    return Block(block.tokens[: row + 1], n_tok, block.doc[: row + 1])
