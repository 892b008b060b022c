"""Documents made into token ids, a batch ahead of whoever packs them.

The `tokenizers` library spreads the texts of a batch over its own threads (unless
``TOKENIZERS_PARALLELISM=false``) and lets go of the interpreter meanwhile, so that one
thread here is enough to tokenise the next batch while the last is packed and written.
"""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from extraction_kit.corpora.chat import ChatTemplate
from extraction_kit.corpora.rows import Conversation, Document, PaddedIds
from extraction_kit.errors import BadCorpus
from extraction_kit.trainings import TokenizerSpec

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 2**20


@dataclass(frozen=True)
class TokenisedBatch:
    """Documents one after the other."""

    first: int
    """Number of the first."""
    ids: list[np.ndarray]
    n_padding: list[int]
    """Padding that was taken from each."""


class Tokenising:
    """Tokenises documents of all kinds; checks that their ids are the model's.

    Parameters
    ----------
    spec : TokenizerSpec
        The tokenizer of the training.
    tokenizer : Tokenizer
        It, loaded.
    chat : ChatTemplate
        Its template for conversations.
    """

    def __init__(
        self, spec: TokenizerSpec, tokenizer: Tokenizer, chat: ChatTemplate
    ) -> None:
        self._spec, self._tokenizer, self._chat = spec, tokenizer, chat

    def batches(
        self, documents: Iterator[Document]
    ) -> Generator[TokenisedBatch, None, None]:
        """Yield the documents as ids, in order.

        An error in a document is raised when its turn comes, not when it is read ahead.
        """
        source = self._numbered(documents)
        with ThreadPoolExecutor(1, "tokenise") as pool:
            ahead = _submit(pool, self, source)
            while ahead is not None:
                now, ahead = ahead, None
                late: Exception | None = None
                try:
                    ahead = _submit(pool, self, source)
                except Exception as error:  # noqa: BLE001 - raised below, in its turn
                    late = error
                yield now.result()
                if late is not None:
                    raise late

    def _numbered(
        self, documents: Iterator[Document]
    ) -> Iterator[tuple[int, list[Document]]]:
        first = 0
        for batch in batched(documents):
            yield first, batch
            first += len(batch)

    def encode(self, first: int, batch: list[Document]) -> TokenisedBatch:
        """Return one batch as ids; `first` is the number of its first document.

        Raises
        ------
        BadCorpus
            An id is not the model's, padding cannot be told from text, or a conversation
            does not fit the template; the row is named.
        """
        rows = [
            self._chat.render(row, number) if isinstance(row, Conversation) else row
            for number, row in enumerate(batch, first)
        ]
        texts = [row for row in rows if isinstance(row, str)]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        made = TokenisedBatch(first, [], [])
        for number, row in enumerate(rows, first):
            if isinstance(row, str):
                ids, n_padding = np.array(next(encoded).ids, dtype=np.int64), 0
            else:
                ids, n_padding = self._without_padding(row, number)
                self._check_ids(ids, number)
            made.ids.append(ids)
            made.n_padding.append(n_padding)
        return made

    def _without_padding(
        self, row: np.ndarray | PaddedIds, number: int
    ) -> tuple[np.ndarray, int]:
        """Return ids without the padding around them, and how much there was."""
        if isinstance(row, PaddedIds):
            ids = row.ids[row.present]
            return ids, len(row.ids) - len(ids)
        pad = self._spec.pad_id
        if pad is None or not len(row) or pad not in (row[0], row[-1]):
            return row, 0
        there = np.flatnonzero(row != pad)
        first, stop = (there[0], there[-1] + 1) if len(there) else (0, 0)
        if pad in (self._spec.bos_id, self._spec.eos_id):
            if max(first, len(row) - stop) > 1:
                self._refuse_ambiguous(number, max(int(first), int(len(row) - stop)))
            return row, 0
        return row[first:stop], len(row) - int(stop - first)

    def _refuse_ambiguous(self, number: int, n: int) -> None:
        raise BadCorpus(
            f"row {number} begins or ends with {n} times the token {self._spec.pad_id}, "
            "which this tokenizer uses both for padding and as BOS or EOS: pass rows without "
            "padding (lists of their own lengths), or a dataset with the columns input_ids "
            "and attention_mask"
        )

    def _check_ids(self, ids: np.ndarray, number: int) -> None:
        limit = self._spec.vocab_size
        if len(ids) and not 0 <= ids.min() <= ids.max() < limit:
            wrong = int(ids[(ids < 0) | (ids >= limit)][0])
            raise BadCorpus(
                f"row {number} has the token id {wrong}: 0 to {limit - 1} are the ids of "
                "this tokenizer and model. Was it tokenised for another model?"
            )


def _submit(
    pool: ThreadPoolExecutor,
    tokenising: Tokenising,
    source: Iterator[tuple[int, list[Document]]],
) -> "Future[TokenisedBatch] | None":
    batch = next(source, None)
    return None if batch is None else pool.submit(tokenising.encode, *batch)


def batched(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Yield documents in batches of bounded count and size (one large one is alone)."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
