"""Contexts in which a feature is silent, to score explanations with."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from extraction_kit.results import GROUPS, Examples
from extraction_kit.stats.activations import Activations, flat_nonzero, picked, starts
from extraction_kit.stats.hashing import LARGEST, Draw, mixed
from extraction_kit.stats.statistic import FeatureStatistic

POOL = 64
"""Contexts from which the silent examples of all features are drawn, at least."""
POOL_PER_K = 4
MANY = 2**20
"""Contexts and active pairs buffered before the pool is trimmed."""
_BLOCK = 2**22  # cells of a block of the draw: 32 MiB


class SilentExamples(FeatureStatistic):
    """`k` contexts per feature in which it is active on no valid token.

    All features share one uniform sample of the corpus's contexts (the `pool` with the
    smallest hashes); of those in which a feature is silent the ones with the smallest hash
    of (seed, feature, context) are its examples. A feature has fewer than `k`, if it is
    silent in fewer contexts of the pool. The position is any valid one of the context, the
    same for all features.

    Parameters
    ----------
    d_sae : int
        Number of features.
    k : int
        Examples per feature.
    before : int
        Tokens of the window before the position.
    seed : int
        Of the draw.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "context", "pos", "token", "pair_context", "pair_feature",
    )  # fmt: skip
    context: Int64[Tensor, " pool"]
    pos: Int64[Tensor, " pool"]
    token: Int32[Tensor, " pool"]
    pair_context: Int64[Tensor, " pair"]
    pair_feature: Int32[Tensor, " pair"]

    def __init__(
        self,
        d_sae: int,
        *,
        k: int,
        before: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.d_sae, self.k, self.before = d_sae, k, before
        self.pool = max(POOL, POOL_PER_K * k)
        self._seed = seed
        self._bound = LARGEST
        wide = torch.zeros(0, dtype=torch.int64, device=device)
        narrow = torch.zeros(0, dtype=torch.int32, device=device)
        self.context, self.pos, self.token = wide, wide.clone(), narrow
        self.pair_context, self.pair_feature = wide.clone(), narrow.clone()
        self._pending: list[dict[str, Tensor]] = []
        self._n_pending = 0

    def update(self, batch: Activations) -> "SilentExamples":
        """Take in the contexts of `batch` that could be in the pool, and who is active."""
        known = batch.contexts
        number = known.number
        enters = (self._hash(number) <= self._bound) & known.valid.any(dim=1)
        local = flat_nonzero(enters)
        if not local.numel():
            return self
        pos = self._positions(number[local], known.valid[local])
        pairs = flat_nonzero(picked(enters, batch.peaks.local))
        self._take(
            {
                "context": number[local],
                "pos": pos,
                "token": known.tokens[local, pos].to(torch.int32),
                "pair_context": picked(batch.peaks.context, pairs),
                "pair_feature": picked(batch.peaks.feature, pairs).to(torch.int32),
            }
        )
        return self

    def _hash(self, context: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        return mixed(Draw.SILENT_CONTEXTS.seed(self._seed), context)

    def _positions(
        self, context: Int64[Tensor, " n"], valid: Bool[Tensor, "n pos"]
    ) -> Int64[Tensor, " n"]:
        place = torch.arange(valid.shape[1], device=valid.device)
        drawn = mixed(Draw.SILENT_POSITIONS.seed(self._seed), context[:, None], place[None])
        return drawn.masked_fill(~valid, LARGEST).argmin(dim=1)

    def _take(self, part: dict[str, Tensor]) -> None:
        self._pending.append(part)
        # every feature tile names its contexts: they count as well
        self._n_pending += part["context"].numel() + part["pair_context"].numel()
        if self._n_pending > MANY:
            self._settle()

    def _settle(self) -> None:
        if not self._pending:
            return
        joined = self.joined()
        context, first = _first_of_each(joined["context"])
        order = torch.argsort(self._hash(context), stable=True)[: self.pool]
        self.context = context[order]
        self.pos, self.token = joined["pos"][first[order]], joined["token"][first[order]]
        kept = torch.isin(joined["pair_context"], self.context)
        self.pair_context = joined["pair_context"][kept]
        self.pair_feature = joined["pair_feature"][kept]
        self._pending, self._n_pending = [], 0
        self._raise_bound()

    def _raise_bound(self) -> None:
        full = self.context.numel() == self.pool
        self._bound = int(self._hash(self.context[-1:])) if full else LARGEST

    def joined(self) -> dict[str, Tensor]:
        """Return the pool and what is buffered."""
        parts = [super().state_dict(), *self._pending]
        return {name: torch.cat([part[name] for part in parts]) for name in self.STATE}

    def merge(self, other: "SilentExamples") -> "SilentExamples":
        """Take in the pool of `other`; what it has buffered is read, not emptied."""
        device = self.context.device
        theirs = other.joined()
        self._pending.append({name: tensor.to(device) for name, tensor in theirs.items()})
        self._settle()
        return self

    def compute(self) -> Examples:
        """Return the examples, ordered by feature and rank; their activation is 0."""
        self._settle()
        active = torch.zeros(self.context.numel(), self.d_sae, dtype=torch.bool)
        order = torch.argsort(self.context)
        row = torch.searchsorted(self.context[order], self.pair_context)
        active[order[row].cpu(), self.pair_feature.cpu().long()] = True
        feature, member, rank = self._drawn(active)
        pos = self.pos.cpu().numpy()[member]
        n = feature.size
        return Examples(
            feature=feature.astype(np.int32),
            group=np.full(n, GROUPS.index("silent"), dtype=np.int8),
            rank=rank.astype(np.int16),
            context=self.context.cpu().numpy()[member],
            pos=pos.astype(np.int32),
            start=np.maximum(pos - self.before, 0).astype(np.int32),
            act=np.zeros(n, dtype=np.float32),
            peak_token=self.token.cpu().numpy()[member],
            offsets=np.zeros(n + 1, dtype=np.int64),
            act_off=np.zeros(0, dtype=np.int32),
            act_val=np.zeros(0, dtype=np.float32),
        )

    def _drawn(
        self, active: Bool[Tensor, "pool feature"]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return feature, place in the pool and rank of each example."""
        context = self.context.cpu()
        k = min(self.k, context.numel())
        found = []
        size = max(1, _BLOCK // max(1, context.numel()))
        for first in range(0, self.d_sae, size):
            feature = torch.arange(first, min(first + size, self.d_sae))
            drawn = mixed(Draw.SILENT.seed(self._seed), feature[:, None], context[None])
            drawn.masked_fill_(active[:, feature].T, LARGEST)
            # a full sort: deterministic, and the pool is small
            value, member = torch.sort(drawn, dim=1, stable=True)
            row, rank = torch.nonzero(value[:, :k] < LARGEST, as_tuple=True)
            found.append(torch.stack([feature[row], member[row, rank], rank]))
        feature, member, rank = torch.cat(found, dim=1).numpy()
        return feature, member, rank

    def state_dict(self) -> dict[str, Tensor]:
        """Return the pool and who is active in it; the buffer is taken in first."""
        self._settle()
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the pool by a copy of the one in `state`."""
        for name in self.STATE:
            setattr(self, name, state[name].detach().clone().to(self.context.device))
        self._pending, self._n_pending = [], 0
        self._raise_bound()


def _first_of_each(
    number: Int64[Tensor, " n"],
) -> tuple[Int64[Tensor, " unique"], Int64[Tensor, " unique"]]:
    """Return the different numbers, ascending, and the first place of each."""
    order = torch.argsort(number, stable=True)
    ascending = number[order]
    new = starts(ascending)
    return ascending[new], order[new]
