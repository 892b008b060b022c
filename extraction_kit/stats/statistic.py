"""The contract of everything that is measured: update, merge, compute, state_dict."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from extraction_kit.stats.activations import Activations


class Statistic(ABC):
    """A streaming statistic whose state is a commutative monoid.

    Updating with the same contexts in any batches and any order, or merging the states of
    any shards, gives the same state: integers and maxima to the last bit, float64 sums to
    1e-12 relative.
    """

    STATE: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that hold the state, all of them tensors."""

    @abstractmethod
    def merge(self, other: Any) -> "Statistic":  # noqa: ANN401 - each takes its own kind
        """Take in what `other` has seen; `other` stays as it is."""

    @abstractmethod
    def compute(self) -> Any:  # noqa: ANN401 - each statistic has its own result
        """Return what was measured so far, as NumPy arrays or plain numbers."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state; the tensors are the statistic's own, not copies."""
        return {name: getattr(self, name) for name in self.STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state by a copy of `state`, on this statistic's device.

        Raises
        ------
        KeyError, ValueError
            A tensor is missing, or has another shape or dtype than this statistic's.
        """
        for name in self.STATE:
            own, new = getattr(self, name), state[name]
            if own.shape != new.shape or own.dtype != new.dtype:
                msg = (
                    f"{type(self).__name__}.{name} is {own.dtype} {tuple(own.shape)}, "
                    f"the state to load has {new.dtype} {tuple(new.shape)}"
                )
                raise ValueError(msg)
            setattr(self, name, new.detach().clone().to(own.device))


class FeatureStatistic(Statistic):
    """A statistic of every feature, fed with sparse activations of whole contexts."""

    @abstractmethod
    def update(self, batch: Activations) -> "FeatureStatistic":
        """Count the active tokens of `batch`."""


def count_into(total: Tensor, index: Tensor) -> None:
    """Add one to ``total[i]`` for each i of `index`; exact for repeated indices."""
    total.scatter_add_(0, index, torch.ones_like(index))
