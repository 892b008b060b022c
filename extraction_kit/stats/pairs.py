"""Counts of pairs, from the activations of whole contexts: feature and token, two features."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64

from extraction_kit.results import spans

PAIRS = 2**30
"""Pairs of features counted at most: 430 000 tokens with 50 active features each."""
_BLOCK = 16  # features that are gathered as one, a cache line
_AT_ONCE = 2**16  # blocks counted at a time: 12 MiB
_SPARSE = 64  # share of the features up to which sorting pairs beats a counter per feature


def top_tokens(
    token: Int32[np.ndarray, " entry"],
    feature: Int32[np.ndarray, " entry"],
    value: Float32[np.ndarray, " entry"],
    *,
    k: int,
) -> dict[str, np.ndarray]:
    """Return for each feature the `k` token ids on which it is active most often.

    Parameters
    ----------
    token, feature, value : ndarray [entry]
        Token id, feature and activation of each active (token, feature) pair.
    k : int
        Token ids per feature; fewer if it is active on fewer.

    Returns
    -------
    dict of str to ndarray [row]
        ``feature``, ``rank`` (by ``n_active``, of equal ones the smaller token id first),
        ``token``, ``n_active`` (how often it is active there), and over these occurrences
        ``sum_act`` (float64), ``mean_act`` and ``max_act``.
    """
    order = _order(feature, token)
    feature, token, value = feature[order], token[order], value[order]
    begin = _begins(feature, token)
    n_active = np.diff(begin, append=token.size)
    best = _order(feature[begin], -n_active.astype(np.int32))
    rank = _ranks(feature[begin][best])
    best, rank = best[rank < k], rank[rank < k]
    # of no entries at all there are no sums either
    sum_act = np.add.reduceat(value, begin, dtype=np.float64) if begin.size else value
    max_act = np.maximum.reduceat(value, begin) if begin.size else value
    sum_act = sum_act[best].astype(np.float64)
    return {
        "feature": feature[begin][best],
        "rank": rank.astype(np.int16),
        "token": token[begin][best],
        "n_active": n_active[best],
        "sum_act": sum_act,
        "mean_act": sum_act / n_active[best],
        "max_act": max_act[best],
    }


def coactivation(
    feature: Int32[np.ndarray, " entry"],
    length: Int64[np.ndarray, " row"],
    *,
    d_sae: int,
    k: int,
) -> dict[str, np.ndarray]:
    """Return for each feature the `k` others that are active on the same tokens.

    Strength is the Jaccard index: n_both / (n_a + n_b - n_both), where n_both is the number
    of tokens on which both are active, n_a and n_b on which each is.

    Parameters
    ----------
    feature : ndarray [entry]
        Active features, one token (row) after another.
    length : ndarray [row]
        Active features of each token.
    d_sae : int
        Number of features.
    k : int
        Partners per feature; fewer if it has fewer.

    Returns
    -------
    dict of str to ndarray [row]
        ``feature``, ``rank`` (by strength, of equal ones the smaller index first),
        ``other``, ``value`` (the Jaccard index, float32) and ``n_both``.
    """
    n_active = np.bincount(feature, minlength=d_sae)
    end = np.cumsum(n_active)
    row_of = np.repeat(np.arange(length.size, dtype=np.int32), length)[_order(feature)]
    blocks = _Blocks.of(feature, length, d_sae=d_sae)
    k = min(k, d_sae)
    partner = np.full((d_sae, k), -1, dtype=np.int32)
    n_both = np.zeros((d_sae, k), dtype=np.int64)
    for one in np.flatnonzero(n_active):
        rows = row_of[end[one] - n_active[one] : end[one]]
        other, n = blocks.counted(rows)
        other, n = other[other != one], n[other != one]
        best = _largest(n / (n_active[one] + n_active[other] - n), k)
        partner[one, : best.size], n_both[one, : best.size] = other[best], n[best]
    found, rank = np.nonzero(partner >= 0)
    other, both = partner[found, rank], n_both[found, rank]
    jaccard = both / (n_active[found] + n_active[other] - both)
    return {
        "feature": found.astype(np.int32),
        "rank": rank.astype(np.int16),
        "other": other,
        "value": jaccard.astype(np.float32),
        "n_both": both,
    }


@dataclass(frozen=True)
class _Blocks:
    """The features of each row, cut into blocks of equal size: gathered without an index each.

    The last block of a row is filled up with `d_sae`, which is no feature.
    """

    feature: Int32[np.ndarray, "block entry"]
    begin: Int64[np.ndarray, " row"]
    n: Int64[np.ndarray, " row"]
    d_sae: int

    @classmethod
    def of(
        cls,
        feature: Int32[np.ndarray, " entry"],
        length: Int64[np.ndarray, " row"],
        *,
        d_sae: int,
    ) -> "_Blocks":
        n = -(-length // _BLOCK)
        begin = np.cumsum(n) - n
        filled = np.full((int(n.sum()), _BLOCK), d_sae, dtype=np.int32)
        filled.reshape(-1)[spans(begin * _BLOCK, length)] = feature
        return cls(filled, begin, n, d_sae)

    def counted(self, rows: Int32[np.ndarray, " some"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of `rows`, ascending, and in how many rows each is."""
        block = spans(self.begin[rows], self.n[rows])
        if block.size * _BLOCK < self.d_sae // _SPARSE:
            other, n = np.unique(self.feature[block], return_counts=True)
            return other[other < self.d_sae], n[other < self.d_sae]
        total = self._total(block[:_AT_ONCE])
        for first in range(_AT_ONCE, block.size, _AT_ONCE):
            total += self._total(block[first : first + _AT_ONCE])
        other = np.flatnonzero(total[:-1] > 0)  # of truth values it is found faster
        return other, total[other]

    def _total(self, block: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, " feature"]:
        return np.bincount(self.feature[block].reshape(-1), minlength=self.d_sae + 1)


def _largest(value: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the `k` largest, the first of equal ones first."""
    place = np.arange(value.size)
    if value.size > k:  # sort those only that can be among them
        place = np.flatnonzero(value >= np.partition(value, value.size - k)[-k])
    return place[np.argsort(-value[place], kind="stable")][:k]


def _order(*keys: Int32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the stable order by the first key, then by the next."""
    # torch sorts 32-bit integers by their digits, four times faster than NumPy compares
    order = torch.argsort(torch.from_numpy(keys[-1]), stable=True)
    for key in reversed(keys[:-1]):
        order = order[torch.argsort(torch.from_numpy(key)[order], stable=True)]
    return order.numpy()


def _begins(*keys: Int32[np.ndarray, " n"]) -> Int64[np.ndarray, " group"]:
    """Return where a row differs from the one before; 0 is the first."""
    new = np.zeros(keys[0].size, dtype=bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(new)


def _ranks(slot: Int32[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the rank of each row among its slot's; `slot` is ascending."""
    return np.arange(slot.size) - np.searchsorted(slot, slot)
