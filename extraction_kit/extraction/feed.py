"""The contexts of a corpus as tensors on a device, read ahead of the model.

The shape of a tile depends on the length of its contexts alone (the last one of a kind is
padded), so that the numbers do not depend on where the work was interrupted.
"""

from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from extraction_kit.corpora import ContextBatch, Corpus, ReadingOrder, TilePlan
from extraction_kit.errors import BadCorpus
from extraction_kit.sources.devices import sent
from extraction_kit.stats import Contexts
from extraction_kit.trainings import Hookpoint


@dataclass(frozen=True, kw_only=True)
class Fed:
    """Contexts that the model is to read."""

    batch: ContextBatch
    """As they are in the corpus."""
    contexts: Contexts
    """On the device, filled up to the rows of their tile."""
    present: Bool[Tensor, "context pos"]
    """Where no padding is."""


@dataclass(frozen=True, kw_only=True)
class Tile(Fed):
    """Contexts with what the model computed for them."""

    activations: Mapping[Hookpoint, Tensor]
    """At each place that is read, (row, width)."""


class Feed:
    """Reads a corpus.

    Parameters
    ----------
    corpus : Corpus
        Prepared with the tokenizer of the model.
    device : torch.device
        Where the contexts go.
    vocab_size : int
        Token ids that the model knows.
    """

    def __init__(self, corpus: Corpus, *, device: torch.device, vocab_size: int) -> None:
        self.corpus, self.device, self._vocab_size = corpus, device, vocab_size

    def order(self, tile: int) -> ReadingOrder:
        """Return the tiles of `tile` full contexts, in the order in which they are computed."""
        size = self.corpus.context_size
        return ReadingOrder(
            self.corpus.lengths(), context_size=size, tile_tokens=tile * size
        )

    def after(self, n_done: int, *, tile: int) -> Generator[Fed, None, None]:
        """Yield the tiles after the first `n_done` contexts.

        The next tile is read from the disk while the one before is computed.
        """
        plans = self.order(tile).after(n_done)
        with ThreadPoolExecutor(1, thread_name_prefix="xk-read") as reader:
            plan = next(plans, None)
            waiting = reader.submit(self._read, plan)
            while plan is not None:
                batch = waiting.result()
                assert batch is not None  # noqa: S101 - only None for no plan
                following = next(plans, None)
                waiting = reader.submit(self._read, following)
                yield self._fed(plan, batch)
                plan = following

    def gather(self, numbers: np.ndarray, *, rows: int) -> Contexts:
        """Return the contexts of some `numbers`, at most `rows` of them."""
        plan = TilePlan(np.sort(numbers), rows, self.corpus.context_size)
        return self._fed(plan, self.corpus.read_at(plan.contexts, plan.length)).contexts

    def beginning(self, n_tokens: int) -> Tensor:
        """Return the first token ids of a context: int64 [1, pos], at most `n_tokens`."""
        plan = next(iter(self.order(1)))
        batch = self.corpus.read_at(plan.contexts[:1], plan.length)
        return self._fed(plan, batch).contexts.tokens[:1, :n_tokens]

    def _read(self, plan: TilePlan | None) -> ContextBatch | None:
        return None if plan is None else self.corpus.read_at(plan.contexts, plan.length)

    def _fed(self, plan: TilePlan, batch: ContextBatch) -> Fed:
        shape = (plan.rows, plan.length)
        number = np.full(plan.rows, -1, dtype=np.int64)
        tokens = np.zeros(shape, dtype=np.int64)
        valid, present = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
        # The pad id may lie outside the model's vocabulary; the model never looks back
        # from padding, so any known id will do.
        number[: len(batch)] = plan.contexts[: len(batch)]
        tokens[: len(batch)] = np.where(batch.present, batch.tokens, 0)
        valid[: len(batch)], present[: len(batch)] = batch.valid, batch.present
        self._check_known(number, tokens)
        contexts = Contexts(
            sent(number, self.device),
            tokens=sent(tokens, self.device),
            valid=sent(valid, self.device),
            masked=np.flatnonzero(~valid),
        )
        return Fed(batch=batch, contexts=contexts, present=sent(present, self.device))

    def _check_known(self, number: np.ndarray, tokens: np.ndarray) -> None:
        largest = int(tokens.max())
        if largest >= self._vocab_size:
            context = number[np.argmax(tokens.max(axis=1))]
            raise BadCorpus(
                f"token id {largest} in context {context}: the model has vocab_size="
                f"{self._vocab_size}. Prepare the corpus with its tokenizer"
            )
