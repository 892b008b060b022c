"""How often, how much and where at most: counts, sums and the maximum of every feature."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from extraction_kit.stats.activations import (
    Activations,
    flat_nonzero,
    ordered_bits,
    picked,
    starts,
)
from extraction_kit.stats.statistic import FeatureStatistic, count_into


class Moments(FeatureStatistic):
    """Active tokens, active contexts, sum and sum of squares of the activations.

    Counts are int64 and sums float64: a float32 counter stops at 16 777 216.
    """

    STATE: ClassVar[tuple[str, ...]] = ("n_active", "n_contexts", "sum_act", "sum_sq_act")
    n_active: Int64[Tensor, " feature"]
    n_contexts: Int64[Tensor, " feature"]
    sum_act: Float64[Tensor, " feature"]
    sum_sq_act: Float64[Tensor, " feature"]

    def __init__(self, d_sae: int, *, device: torch.device | str = "cpu") -> None:
        self.n_active = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.n_contexts = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self.sum_act = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.sum_sq_act = torch.zeros(d_sae, dtype=torch.float64, device=device)

    def update(self, batch: Activations) -> "Moments":
        """Count the active tokens of `batch`."""
        value = batch.value.to(torch.float64)
        count_into(self.n_active, batch.feature)
        count_into(self.n_contexts, batch.peaks.feature)
        self.sum_act.index_add_(0, batch.feature, value)
        self.sum_sq_act.index_add_(0, batch.feature, value.square())
        return self

    def merge(self, other: "Moments") -> "Moments":
        """Add the counts and sums of `other`."""
        for name in self.STATE:
            mine = getattr(self, name)
            mine += getattr(other, name).to(mine.device)
        return self

    def compute(self) -> dict[str, np.ndarray]:
        """Return the four columns, each [d_sae]."""
        return {name: getattr(self, name).cpu().numpy().copy() for name in self.STATE}


class Maximum(FeatureStatistic):
    """Largest activation of every feature, and its first place.

    Of equal values the smallest context counts, then the smallest position, whatever the
    order in which they were seen. 0 and -1 where a feature never fired.
    """

    STATE: ClassVar[tuple[str, ...]] = ("max_act", "max_context", "max_pos")
    max_act: Float32[Tensor, " feature"]
    max_context: Int64[Tensor, " feature"]
    max_pos: Int64[Tensor, " feature"]

    def __init__(self, d_sae: int, *, device: torch.device | str = "cpu") -> None:
        self.max_act = torch.zeros(d_sae, dtype=torch.float32, device=device)
        self.max_context = torch.full((d_sae,), -1, dtype=torch.int64, device=device)
        self.max_pos = torch.full((d_sae,), -1, dtype=torch.int64, device=device)

    def update(self, batch: Activations) -> "Maximum":
        """Look for larger activations in `batch`."""
        peaks = batch.peaks
        # An equal value of an earlier context may come later: >= and not >.
        rivals = flat_nonzero(peaks.value >= picked(self.max_act, peaks.feature))
        if rivals.numel():
            peaks = peaks.select(rivals)
            self._challenge(peaks.feature, peaks.value, peaks.context, pos=peaks.pos)
        return self

    def merge(self, other: "Maximum") -> "Maximum":
        """Take over the larger maxima of `other`."""
        fired = flat_nonzero(other.max_context >= 0)
        device = self.max_act.device
        self._challenge(
            fired.to(device),
            other.max_act[fired].to(device),
            other.max_context[fired].to(device),
            pos=other.max_pos[fired].to(device),
        )
        return self

    def _challenge(
        self, feature: Tensor, value: Tensor, context: Tensor, *, pos: Tensor
    ) -> None:
        held = torch.unique(feature)
        held = held[self.max_context[held] >= 0]
        feature = torch.cat([held, feature])
        value = torch.cat([self.max_act[held], value])
        context = torch.cat([self.max_context[held], context])
        pos = torch.cat([self.max_pos[held], pos])
        order = best_first(feature, value, context)
        feature = feature[order]
        first = starts(feature)
        winner = order[first]
        feature = feature[first]
        self.max_act[feature] = value[winner]
        self.max_context[feature] = context[winner]
        self.max_pos[feature] = pos[winner]

    def compute(self) -> dict[str, np.ndarray]:
        """Return the three columns, each [d_sae]."""
        return {
            "max_act": self.max_act.cpu().numpy().copy(),
            "max_context": self.max_context.cpu().numpy().copy(),
            "max_pos": self.max_pos.cpu().numpy().astype(np.int32),
        }


class LastFired(FeatureStatistic):
    """The last context in which each feature is active; -1 where it never was."""

    STATE: ClassVar[tuple[str, ...]] = ("last_context",)
    last_context: Int64[Tensor, " feature"]

    def __init__(self, d_sae: int, *, device: torch.device | str = "cpu") -> None:
        self.last_context = torch.full((d_sae,), -1, dtype=torch.int64, device=device)

    def update(self, batch: Activations) -> "LastFired":
        """Look for later contexts in `batch`."""
        peaks = batch.peaks
        self.last_context.scatter_reduce_(0, peaks.feature, peaks.context, "amax")
        return self

    def merge(self, other: "LastFired") -> "LastFired":
        """Take the later contexts of `other`."""
        theirs = other.last_context.to(self.last_context.device)
        torch.maximum(self.last_context, theirs, out=self.last_context)
        return self

    def compute(self) -> dict[str, np.ndarray]:
        """Return the column, [d_sae]."""
        return {"last_context": self.last_context.cpu().numpy().copy()}


def best_first(
    feature: Int64[Tensor, " n"], value: Float32[Tensor, " n"], context: Int64[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """Return the order (feature asc, value desc, context asc).

    Each (feature, context) pair occurs once, so no position is needed to decide.
    """
    by_context = torch.argsort(context, stable=True)
    largest_first = (1 << 31) - 1 - ordered_bits(picked(value, by_context))
    key = (picked(feature, by_context) << 32) | largest_first
    return picked(by_context, torch.argsort(key, stable=True))
