"""All activations of a uniform sample of contexts, for what needs more than running sums.

How often two features are active together, or a feature on a token, would need a counter
per pair: more of them than tokens, for most pairs are rare, and L0^2 steps per token.
Keeping the activations themselves takes 8 bytes each, costs next to nothing while the corpus
is read, and the pairs are counted once at the end.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from torch import Tensor

from extraction_kit.results import KINDS
from extraction_kit.stats.activations import (
    POSITION_BITS,
    Activations,
    flat_nonzero,
    spans,
)
from extraction_kit.stats.hashing import LARGEST, Draw, mixed
from extraction_kit.stats.pairs import PAIRS, coactivation, top_tokens
from extraction_kit.stats.statistic import FeatureStatistic

BUDGET = 2**25
"""Activations kept at most: 671 000 tokens with 50 active features each."""
_CONTEXT_COLUMNS = ("context", "n_valid")
_ROW_COLUMNS = ("place", "token", "length")
_ENTRY_COLUMNS = ("feature", "value")


class ActivationSample(FeatureStatistic):
    """The activations of the contexts with the smallest hashes, as many as fit `budget`.

    While the whole corpus fits, what is counted in it is exact. Beyond, it is a uniform
    sample of whole contexts: those from the smallest hash of (seed, context) upwards until
    the next one would exceed the budget. The weight of a context only grows with what was
    seen of it, so a context that did not fit once never will; which contexts are kept in
    the end depends on the set of contexts alone, not on batches, order, shards or merges.
    Everything is computed from the kept activations in the order of the corpus: equal to
    the last bit, sums too.

    Counts are those of the sample and never scaled. With share p of the tokens, n / p
    estimates the count in the corpus, with a relative standard error of about
    sqrt((1 - p) m / n), where m = sum(n_c^2) / sum(n_c) over the contexts' own counts n_c
    (1 if no context holds more than one). Of a Jaccard index J with n features' tokens in
    the union, the standard error is about sqrt((1 - p) m J (1 - J) / n).

    The state takes 8 bytes per activation and 24 per token: 270 MiB when the budget is
    full, at 50 active features per token; several times as much while it is sorted.

    Parameters
    ----------
    d_sae : int
        Number of features.
    n_top_tokens : int
        Token ids per feature, see `top_tokens`.
    n_coactive : int
        Partners per feature, see `coactivation`.
    seed : int
        Of the draw.
    budget : int
        Activations kept, and contexts counted like one each.
    pairs : int
        Pairs counted, see `coactivation`.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        *_CONTEXT_COLUMNS, *_ROW_COLUMNS, *_ENTRY_COLUMNS, "bound", "seen",
    )  # fmt: skip
    context: Int64[Tensor, " context"]
    n_valid: Int64[Tensor, " context"]
    place: Int64[Tensor, " row"]  # context * 2^POSITION_BITS + position, ascending
    token: Int32[Tensor, " row"]
    length: Int64[Tensor, " row"]  # active features
    feature: Int32[Tensor, " entry"]
    value: Float32[Tensor, " entry"]
    bound: Int64[Tensor, ""]  # largest hash of a context that can be kept
    seen: Int64[Tensor, " 2"]  # contexts with a valid token, and valid tokens, of all

    def __init__(
        self,
        d_sae: int,
        *,
        n_top_tokens: int,
        n_coactive: int,
        seed: int,
        budget: int = BUDGET,
        pairs: int = PAIRS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.d_sae, self.budget, self.pairs = d_sae, budget, pairs
        self.n_top_tokens, self.n_coactive = n_top_tokens, n_coactive
        self._seed = Draw.SAMPLE.seed(seed)
        wide = torch.zeros(0, dtype=torch.int64, device=device)
        narrow = torch.zeros(0, dtype=torch.int32, device=device)
        self.context, self.n_valid = wide, wide
        self.place, self.token, self.length = wide, narrow, wide
        self.feature, self.value = narrow, narrow.to(torch.float32)
        self.bound = torch.tensor(LARGEST, device=device)
        self.seen = torch.zeros(2, dtype=torch.int64, device=device)
        self._pending: list[dict[str, Tensor]] = []
        self._n_pending = 0

    # --- while the corpus is read ---

    def update(self, batch: Activations) -> "ActivationSample":
        """Take in the contexts of `batch` that could be in the sample.

        Each context comes once with the tile that begins with feature 0.
        """
        contexts = batch.contexts
        number = contexts.number
        n_valid = contexts.valid.sum(dim=1)
        enters = (n_valid > 0) & (self._hash(number) <= self.bound)
        active = flat_nonzero(enters[batch.context])
        row, length = torch.unique_consecutive(batch.row[active], return_counts=True)
        local = torch.div(row, contexts.size, rounding_mode="floor")
        pos = row - local * contexts.size
        part = {
            "context": number[:0],
            "n_valid": n_valid[:0],
            "place": (number[local] << POSITION_BITS) | pos,
            "token": contexts.tokens[local, pos].to(torch.int32),
            "length": length,
            "feature": batch.feature[active].to(torch.int32),
            "value": batch.value[active],
        }
        if batch.first_feature == 0:
            self.seen += torch.stack([(n_valid > 0).sum(), n_valid.sum()])
            part |= {"context": number[enters], "n_valid": n_valid[enters]}
        self._take(part)
        return self

    def _hash(self, context: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return mixed(self._seed, context)

    def _take(self, part: dict[str, Tensor]) -> None:
        self._pending.append(part)
        self._n_pending += part["context"].numel() + part["feature"].numel()
        kept = self.context.numel() + self.feature.numel()
        if kept + self._n_pending > self.budget + self.budget // 4:
            self._settle()

    def _settle(self) -> None:
        """Sort what is buffered in, and drop the contexts that do not fit."""
        if not self._pending:
            return
        joined = self.joined()
        by_context = self._hash(joined["context"])
        by_row = self._hash(joined["place"] >> POSITION_BITS)
        weight = torch.cat([torch.ones_like(by_context), joined["length"]])
        fits = bound(torch.cat([by_context, by_row]), weight, self.budget)
        self.bound = torch.minimum(self.bound, fits)
        self._keep_contexts(joined, by_context <= self.bound)
        self._keep_rows(joined, by_row <= self.bound)
        self._pending, self._n_pending = [], 0

    def _keep_contexts(self, joined: dict[str, Tensor], keep: Tensor) -> None:
        order = torch.argsort(joined["context"])
        order = order[keep[order]]
        self.context, self.n_valid = joined["context"][order], joined["n_valid"][order]

    def _keep_rows(self, joined: dict[str, Tensor], keep: Tensor) -> None:
        """Order rows by place; those of one place, of different tiles, become one."""
        order = torch.argsort(joined["place"], stable=True)
        order = order[keep[order]]
        length = joined["length"]
        begin = torch.cumsum(length, 0) - length
        entry = spans(begin[order], length[order])
        self.feature, self.value = joined["feature"][entry], joined["value"][entry]
        self.place, row = torch.unique_consecutive(
            joined["place"][order], return_inverse=True
        )
        self.length = torch.zeros_like(self.place).index_add_(0, row, length[order])
        self.token = torch.zeros_like(self.place, dtype=torch.int32)
        self.token[row] = joined["token"][order]

    def joined(self) -> dict[str, Tensor]:
        """Return the columns of the sample and of what is buffered."""
        columns = (*_CONTEXT_COLUMNS, *_ROW_COLUMNS, *_ENTRY_COLUMNS)
        parts = [{name: getattr(self, name) for name in columns}, *self._pending]
        return {name: torch.cat([part[name] for part in parts]) for name in columns}

    def merge(self, other: "ActivationSample") -> "ActivationSample":
        """Take in the sample of `other`; what it has buffered is read, not emptied."""
        device = self.place.device
        self.seen += other.seen.to(device)
        self.bound = torch.minimum(self.bound, other.bound.to(device))
        theirs = other.joined()
        self._pending.append({name: tensor.to(device) for name, tensor in theirs.items()})
        self._settle()
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sample; the buffer is sorted in first."""
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sample by a copy of the one in `state`."""
        device = self.place.device
        for name in self.STATE:
            setattr(self, name, state[name].detach().clone().to(device))
        self._pending, self._n_pending = [], 0

    # --- after the last context ---

    def compute(self) -> dict[str, dict[str, Any]]:
        """Return the tables ``tokens`` and ``neighbours`` (columns), and a ``summary``.

        The summary says of both which share of the valid tokens was counted, 1.0 if all
        were, and in how many contexts they are: ``tokens_share`` and ``tokens_contexts``,
        ``coactivation_share`` and ``coactivation_contexts``.
        """
        self._settle()
        found: dict[str, dict[str, Any]] = {"summary": {}}
        if self.n_top_tokens:
            found["tokens"] = self._top_tokens()
            found["summary"] |= self._counted("tokens", self.bound)
        if self.n_coactive:
            found["neighbours"], upto = self._coactivation()
            found["summary"] |= self._counted("coactivation", upto)
        return found

    def _top_tokens(self) -> dict[str, np.ndarray]:
        return top_tokens(
            torch.repeat_interleave(self.token, self.length).cpu().numpy(),
            self.feature.cpu().numpy(),
            self.value.cpu().numpy(),
            k=self.n_top_tokens,
        )

    def _coactivation(self) -> tuple[dict[str, np.ndarray], Int64[Tensor, ""]]:
        """Return the columns, and the largest hash of the contexts that were counted."""
        by_row = self._hash(self.place >> POSITION_BITS)
        upto = bound(by_row, self.length.square(), self.pairs)
        inside = by_row <= upto
        columns = coactivation(
            self.feature[torch.repeat_interleave(inside, self.length)].cpu().numpy(),
            self.length[inside].cpu().numpy(),
            d_sae=self.d_sae,
            k=self.n_coactive,
        )
        kind = np.full(columns["rank"].size, KINDS.index("coactivation"), dtype=np.int8)
        return columns | {"kind": kind}, upto

    def _counted(self, name: str, upto: Int64[Tensor, ""]) -> dict[str, Any]:
        inside = self._hash(self.context) <= upto
        n_tokens, seen = int(self.n_valid[inside].sum()), int(self.seen[1])
        return {
            f"{name}_share": n_tokens / seen if seen else 1.0,
            f"{name}_contexts": int(inside.sum()),
        }


def bound(
    hashed: Int64[Tensor, " n"], weight: Int64[Tensor, " n"], budget: int
) -> Int64[Tensor, ""]:
    """Return the largest hash up to which the weights add up to no more than `budget`."""
    order = torch.argsort(hashed)
    over = torch.nonzero(torch.cumsum(weight[order], 0) > budget).squeeze(1)
    if not over.numel():
        return torch.tensor(LARGEST, device=hashed.device)
    return hashed[order[over[0]]] - 1
