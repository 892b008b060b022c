"""Everything that one pass measures, as one statistic."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from extraction_kit.results import DENSE, Examples
from extraction_kit.stats.activations import Activations
from extraction_kit.stats.histogram import Histogram
from extraction_kit.stats.moments import LastFired, Maximum, Moments
from extraction_kit.stats.quality import Quality
from extraction_kit.stats.sample import ActivationSample
from extraction_kit.stats.samples import BandExamples, RandomExamples, held_out
from extraction_kit.stats.silent import SilentExamples
from extraction_kit.stats.statistic import FeatureStatistic, Statistic
from extraction_kit.stats.topk import TopK


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many examples of each kind a feature gets, and how much text around them."""

    top_k: int
    """The largest."""
    window: tuple[int, int]
    """Tokens kept (before, after) the peak."""
    per_band: int = 0
    """Of each octave, see `BandExamples`; 0 leaves them out."""
    n_random: int = 0
    """Of all contexts, see `RandomExamples`; 0 leaves them out."""
    n_silent: int = 0
    """Where it is silent, see `SilentExamples`; 0 leaves them out."""
    held_out_share: float = 0.0
    """Share of the contexts that `held_out` marks."""
    dedupe: bool = False
    """Whether the largest are of different windows, see `TopK`."""
    n_top_tokens: int = 0
    """Token ids, see `pairs.top_tokens`; 0 leaves them out."""
    n_coactive: int = 0
    """Partners, see `pairs.coactivation`; 0 leaves them out."""
    seed: int = 0
    """Of what is drawn."""


class Collection(Statistic):
    """All statistics of a run; keys of the state are ``<statistic>.<tensor>``.

    Parameters
    ----------
    d_in, d_sae : int
        Width of what the SAE reconstructs, and number of its features.
    sizes : Sizes
        Of the examples.
    compared : bool
        Whether reconstructions are compared with what they should be; see `Quality`.
    """

    def __init__(
        self,
        *,
        d_in: int,
        d_sae: int,
        sizes: Sizes,
        compared: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes = sizes
        self.moments = Moments(d_sae, device=device)
        self.maximum = Maximum(d_sae, device=device)
        self.histogram = Histogram(d_sae, device=device)
        self.last_fired = LastFired(d_sae, device=device)
        self.topk = TopK(
            d_sae, k=sizes.top_k, window=sizes.window, dedupe=sizes.dedupe, device=device
        )
        if sizes.per_band:
            self.bands = BandExamples(
                d_sae, k=sizes.per_band, window=sizes.window, seed=sizes.seed, device=device
            )
        if sizes.n_random:
            self.random = RandomExamples(
                d_sae, k=sizes.n_random, window=sizes.window, seed=sizes.seed, device=device
            )
        if sizes.n_silent:
            self.silent = SilentExamples(
                d_sae, k=sizes.n_silent, before=sizes.window[0], seed=sizes.seed,
                device=device,
            )  # fmt: skip
        if sizes.n_top_tokens or sizes.n_coactive:
            self.sample = ActivationSample(
                d_sae, n_top_tokens=sizes.n_top_tokens, n_coactive=sizes.n_coactive,
                seed=sizes.seed, device=device,
            )  # fmt: skip
        self.quality = Quality(d_in, compared=compared, device=device)

    @property
    def per_feature(self) -> tuple[FeatureStatistic, ...]:
        """The statistics fed with sparse activations."""
        return tuple(
            statistic
            for statistic in self.members().values()
            if isinstance(statistic, FeatureStatistic)
        )

    @property
    def device(self) -> torch.device:
        """Where the state is."""
        return self.quality.sum_x.device

    def members(self) -> dict[str, Statistic]:
        """Return the statistics by name."""
        return {
            name: statistic
            for name, statistic in vars(self).items()
            if isinstance(statistic, Statistic)
        }

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
        """Return ``features`` (columns), ``histograms``, ``quality``, and examples.

        ``held_out`` says of each row of ``examples`` whether its context is held out.
        ``tables`` has the columns of ``tokens`` and ``neighbours`` if they are asked for,
        ``sampled`` says what part of the corpus was counted for them.
        """
        columns = (self.moments, self.maximum, self.last_fired)
        kinds = (TopK, BandExamples, RandomExamples, SilentExamples)
        examples = Examples.joined(
            [each.compute() for each in self.members().values() if isinstance(each, kinds)]
        )
        drawn = held_out(
            torch.from_numpy(examples.context),
            share=self.sizes.held_out_share,
            seed=self.sizes.seed,
        )
        tables = self.sample.compute() if hasattr(self, "sample") else {}
        return {
            "sampled": tables.pop("summary", {}),
            "tables": tables,
            "features": {
                name: column
                for statistic in columns
                for name, column in statistic.compute().items()
            },
            "histograms": self.histogram.compute(),
            "examples": examples,
            "held_out": drawn.numpy(),
            "quality": self.quality.compute(),
        }

    def n_dense(self) -> int:
        """Return how many features are active on more than `DENSE` of the valid tokens."""
        return int((self.moments.n_active > DENSE * int(self.quality.counts[0])).sum())

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
