"""Documents of token ids made into contexts, block by block."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int32, Int64

from extraction_kit.config import Packing


@dataclass(frozen=True)
class DocumentTokens:
    """What was done with the tokens of one document."""

    number: int
    n_tokens: int
    """As it came, padding aside."""
    n_bos: int
    """1 if its own BOS gave way to that of the context."""
    n_truncated: int
    """Beyond the one context that ``packing="truncate"`` leaves to it."""


@dataclass(frozen=True)
class Block:
    """Some finished contexts."""

    tokens: Int32[np.ndarray, "context position"]
    """Padded on the right."""
    n_tok: Int32[np.ndarray, " context"]
    """Tokens that are no padding."""
    doc: Int64[np.ndarray, " context"]
    """Number of the document in which the context begins, BOS aside."""
    owner: Int64[np.ndarray, "context position"]
    """Document of each token; an EOS put between two belongs to the first of them."""
    from_source: Bool[np.ndarray, "context position"]
    """False on BOS, EOS and padding that were added."""
    has_bos: bool
    """Whether each context begins with an added BOS."""

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

    def blocks(
        self,
        batches: Iterable[list[np.ndarray]],
        on_document: Callable[[DocumentTokens], None] | None = None,
    ) -> Iterator[Block]:
        """Yield contexts, each as soon as it is full, for batches of documents' ids.

        `on_document` is called for each document before a context with its tokens comes.
        """
        tell = on_document or _tell_nobody
        if self.packing == "pack":
            return self._packed(batches, tell)
        return self._by_document(batches, tell)

    def _packed(
        self,
        batches: Iterable[list[np.ndarray]],
        tell: Callable[[DocumentTokens], None],
    ) -> Iterator[Block]:
        stream, first, last = _Stream(), 0, None
        for batch in batches:
            parts = [stream]
            for number, document in enumerate(batch, first):
                ids = self._without_bos(document)
                tell(_fate(number, document, n_kept=len(ids), n_left=len(ids)))
                last = self._join(parts, number, ids, last=last)
            first += len(batch)
            stream = _Stream.joined(parts)
            full = len(stream.ids) // self.content * self.content
            if full:
                yield self._block(
                    stream[:full], np.full(full // self.content, self.content)
                )
                stream = stream[full:]
        if len(stream.ids):
            yield self._block(stream, np.array([len(stream.ids)]))

    def _join(
        self, parts: "list[_Stream]", number: int, ids: np.ndarray, *, last: int | None
    ) -> int | None:
        """Append one document after EOS; return the stream's last token, None before any."""
        if not len(ids):
            return last
        if last is not None and self.eos_id not in (None, last):
            parts.append(_Stream.of(np.array([self.eos_id]), number - 1, added=True))
        parts.append(_Stream.of(ids, number))
        return int(ids[-1])

    def _by_document(
        self,
        batches: Iterable[list[np.ndarray]],
        tell: Callable[[DocumentTokens], None],
    ) -> Iterator[Block]:
        first = 0
        for batch in batches:
            rows: list[_Stream] = []
            for number, document in enumerate(batch, first):
                ids = self._without_bos(document)
                kept = ids[: self.content] if self.packing == "truncate" else ids
                tell(_fate(number, document, n_kept=len(kept), n_left=len(ids)))
                cuts = range(0, len(kept), self.content)
                rows += [_Stream.of(kept[cut : cut + self.content], number) for cut in cuts]
            first += len(batch)
            if rows:
                lengths = np.array([len(row.ids) for row in rows])
                yield self._block(_Stream.joined(rows), lengths)

    def _without_bos(self, document: np.ndarray) -> np.ndarray:
        if self.bos_id is not None and len(document) and document[0] == self.bos_id:
            return document[1:]
        return document

    def _block(self, stream: "_Stream", lengths: np.ndarray) -> Block:
        """Lay tokens out as contexts, `lengths` of them after the BOS of each."""
        shape = (len(lengths), self.context_size)
        position = np.arange(self.context_size) - self._prefix
        here = (position >= 0) & (position < lengths[:, None])
        begins = np.cumsum(lengths) - lengths
        doc = stream.owner[begins]
        tokens = np.full(shape, self.pad_id, dtype=np.int32)
        owner = np.repeat(doc[:, None], self.context_size, axis=1)
        from_source = np.zeros(shape, dtype=bool)
        tokens[here], owner[here] = stream.ids, stream.owner
        from_source[here] = ~stream.added
        if self.bos_id is not None:
            tokens[:, 0] = self.bos_id
        n_tok = (lengths + self._prefix).astype(np.int32)
        return Block(tokens, n_tok, doc, owner, from_source, self.bos_id is not None)


@dataclass(frozen=True)
class _Stream:
    """Tokens in a row, with the document of each, and whether it was added by us."""

    ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    owner: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    added: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    @classmethod
    def of(cls, ids: np.ndarray, number: int, *, added: bool = False) -> "_Stream":
        n = len(ids)
        return cls(
            ids.astype(np.int32), np.full(n, number, dtype=np.int64), np.full(n, added)
        )

    @classmethod
    def joined(cls, parts: "list[_Stream]") -> "_Stream":
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.owner for part in parts]),
            np.concatenate([part.added for part in parts]),
        )

    def __getitem__(self, which: slice) -> "_Stream":
        return _Stream(
            self.ids[which].copy(), self.owner[which].copy(), self.added[which].copy()
        )


def _fate(number: int, document: np.ndarray, *, n_kept: int, n_left: int) -> DocumentTokens:
    """Return what became of a document of which `n_left` tokens stay without its BOS."""
    return DocumentTokens(number, len(document), len(document) - n_left, n_left - n_kept)


def _tell_nobody(_: DocumentTokens) -> None:
    pass


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
    kept = slice(row + 1)
    return Block(
        block.tokens[kept],
        n_tok,
        block.doc[kept],
        block.owner[kept],
        block.from_source[kept],
        block.has_bos,
    )
