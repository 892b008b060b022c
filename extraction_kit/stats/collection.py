"""Everything that one pass measures, as one statistic."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from extraction_kit.stats.activations import Activations
from extraction_kit.stats.histogram import Histogram
from extraction_kit.stats.moments import Maximum, Moments
from extraction_kit.stats.quality import Quality
from extraction_kit.stats.statistic import FeatureStatistic, Statistic
from extraction_kit.stats.topk import TopK


class Collection(Statistic):
    """All statistics of a run; keys of the state are ``<statistic>.<tensor>``.

    Parameters
    ----------
    d_in, d_sae : int
        Width of what the SAE reconstructs, and number of its features.
    top_k : int
        Examples per feature.
    window : (int, int)
        Tokens kept (before, after) the peak of an example.
    compared : bool
        Whether reconstructions are compared with what they should be; see `Quality`.
    """

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        top_k: int,
        window: tuple[int, int],
        compared: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.moments = Moments(d_sae, device=device)
        self.maximum = Maximum(d_sae, device=device)
        self.histogram = Histogram(d_sae, device=device)
        self.topk = TopK(d_sae, k=top_k, window=window, device=device)
        self.quality = Quality(d_in, compared=compared, device=device)

    @property
    def per_feature(self) -> tuple[FeatureStatistic, ...]:
        """The statistics fed with sparse activations."""
        return (self.moments, self.maximum, self.histogram, self.topk)

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        return self.quality.sum_x.device

    def members(self) -> dict[str, Statistic]:
        """Return the statistics by name."""
        return dict(vars(self))

    def update(self, batch: Activations) -> "Collection":
        """Count the active tokens of `batch`."""
        for statistic in self.per_feature:
            statistic.update(batch)
        return self

    def update_quality(
        self,
        x: Float[Tensor, "token d_in"],
        x_hat: Float[Tensor, "token d_in"] | None,
        *,
        n_active: int,
    ) -> "Collection":
        """Take in valid tokens, their reconstructions and their active pairs."""
        self.quality.update(x, x_hat, n_active=n_active)
        return self

    def merge(self, other: "Collection") -> "Collection":
        """Take in what `other` has seen; `other` stays as it is."""
        theirs = other.members()
        for name, statistic in self.members().items():
            statistic.merge(theirs[name])
        return self

    def compute(self) -> dict[str, Any]:
        """Return ``features`` (columns), ``histograms``, ``examples`` and ``quality``."""
        return {
            "features": self.moments.compute() | self.maximum.compute(),
            "histograms": self.histogram.compute(),
            "examples": self.topk.compute(),
            "quality": self.quality.compute(),
        }

    def n_dead(self) -> int:
        """Return how many features have not fired so far."""
        return int((self.moments.n_active == 0).sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of all statistics."""
        return {
            f"{name}.{key}": tensor
            for name, statistic in self.members().items()
            for key, tensor in statistic.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state of all statistics by a copy of `state`."""
        for name, statistic in self.members().items():
            prefix = f"{name}."
            statistic.load_state_dict(
                {
                    key.removeprefix(prefix): tensor
                    for key, tensor in state.items()
                    if key.startswith(prefix)
                }
            )
