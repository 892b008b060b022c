"""Where every token of a source went: into the statistics, into a context, or away and why.

Two identities hold exactly::

    read + added = in_contexts + discarded
    in_contexts  = counted + masked
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool

from extraction_kit.corpora.packing import Block, DocumentTokens

DISCARDED = ("padding", "document_bos", "truncated", "after_n_tokens")
MASKED = ("special_tokens", "ignore_tokens", "ignore_positions")


@dataclass(kw_only=True)
class Tally:
    """Counts tokens while documents become contexts.

    Documents are counted up to the last one of which a token is used: how far ahead the
    source was read does not show.
    """

    special: Bool[np.ndarray, " vocab"]
    """True for the ids that are excluded because they are special tokens."""
    ignored: Bool[np.ndarray, " vocab"]
    """True for the ids of ``ignore_tokens``."""
    read: int = 0
    n_documents: int = 0
    n_empty_documents: int = 0
    in_contexts: int = 0
    counted: int = 0
    added: dict[str, int] = field(default_factory=lambda: {"bos": 0, "eos": 0})
    discarded: dict[str, int] = field(default_factory=lambda: dict.fromkeys(DISCARDED, 0))
    masked: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MASKED, 0))
    _waiting: deque[DocumentTokens] = field(default_factory=deque)  # not wholly in contexts
    _padding: dict[int, int] = field(default_factory=dict)

    def dropped_padding(self, number: int, n_tokens: int) -> None:
        """Note padding that was taken from a document before it was packed."""
        if n_tokens:
            self._padding[number] = n_tokens

    def document(self, document: DocumentTokens) -> None:
        """Note a document, in the order of the source."""
        self._waiting.append(document)

    def block(self, block: Block, valid: Bool[np.ndarray, "context position"]) -> None:
        """Note finished contexts."""
        present = block.present
        n_present, n_source = int(present.sum()), int(block.from_source[present].sum())
        self.in_contexts += n_present
        self.counted += int(valid.sum())
        n_bos = len(block.tokens) if block.has_bos else 0
        self.added["bos"] += n_bos
        self.added["eos"] += n_present - n_source - n_bos
        self._mask(block.tokens[present & ~valid])
        self._settle(int(block.owner[present][-1]))

    def _mask(self, tokens: np.ndarray) -> None:
        special = self.special[tokens]
        ignored = self.ignored[tokens] & ~special
        self.masked["special_tokens"] += int(special.sum())
        self.masked["ignore_tokens"] += int(ignored.sum())
        self.masked["ignore_positions"] += int((~special & ~ignored).sum())

    def _settle(self, before: int | None) -> None:
        """Count the documents before number `before`; None counts all."""
        while self._waiting and (before is None or self._waiting[0].number < before):
            document = self._waiting.popleft()
            padding = self._padding.pop(document.number, 0)
            self.n_documents += 1
            self.n_empty_documents += not document.n_tokens
            self.read += document.n_tokens + padding
            self.discarded["padding"] += padding
            self.discarded["document_bos"] += document.n_bos
            self.discarded["truncated"] += document.n_truncated

    def finish(self, *, cut_in: int | None) -> Mapping[str, Any]:
        """Return the account.

        Parameters
        ----------
        cut_in : int or None
            Number of the document in which ``n_tokens`` were reached; None if the source
            was used up.
        """
        self._settle(None if cut_in is None else cut_in + 1)
        gone = sum(self.discarded.values())
        self.discarded["after_n_tokens"] = (
            self.read + sum(self.added.values()) - self.in_contexts - gone
        )
        return {
            "documents": self.n_documents,
            "empty_documents": self.n_empty_documents,
            "read": self.read,
            "added": self.added,
            "in_contexts": self.in_contexts,
            "discarded": self.discarded,
            "counted": self.counted,
            "masked": self.masked,
        }
