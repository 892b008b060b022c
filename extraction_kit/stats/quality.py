"""How well the SAE describes the activations it is given: L0 and FVU."""

from typing import ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from extraction_kit.stats.statistic import Statistic


class Quality(Statistic):
    """L0, mean squared error and fraction of variance unexplained, over valid tokens.

    MSE = sum ||x - x_hat||^2 / n_tokens: summed over `d_in`, not divided by it.
    FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2, both in the space of the original
    activations, from float64 sums. Explained variance = 1 - FVU.

    Parameters
    ----------
    d_in : int
        Width of what is reconstructed.
    compared : bool
        False where there is nothing to compare a reconstruction with: FVU is None then.
    """

    STATE: ClassVar[tuple[str, ...]] = ("counts", "sum_sq_error", "sum_sq_x", "sum_x")
    counts: Int64[Tensor, "2"]  # valid tokens, active pairs
    sum_sq_error: Float64[Tensor, ""]
    sum_sq_x: Float64[Tensor, ""]
    sum_x: Float64[Tensor, " d_in"]

    def __init__(
        self, d_in: int, *, compared: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.compared = compared
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        self.sum_sq_error = torch.zeros((), dtype=torch.float64, device=device)
        self.sum_sq_x = torch.zeros((), dtype=torch.float64, device=device)
        self.sum_x = torch.zeros(d_in, dtype=torch.float64, device=device)

    def update(
        self,
        x: Float[Tensor, "token d_in"],
        x_hat: Float[Tensor, "token d_in"] | None,
        *,
        n_active: int,
    ) -> "Quality":
        """Take in valid tokens, their reconstructions (if compared) and active pairs."""
        device = self.sum_x.device
        self.counts[0] += x.shape[0]
        self.counts[1] += n_active
        if x_hat is not None:
            self.sum_sq_error += _sum_sq(x - x_hat).to(device)
        self.sum_sq_x += _sum_sq(x).to(device)
        self.sum_x += x.sum(0, dtype=_widest(x)).to(device)
        return self

    @property
    def finite(self) -> bool:
        """Whether all that was seen was finite."""
        return bool(torch.isfinite(self.sum_sq_error + self.sum_sq_x))

    def merge(self, other: "Quality") -> "Quality":
        """Add the counts and sums of `other`."""
        for name in self.STATE:
            mine = getattr(self, name)
            mine += getattr(other, name).to(mine.device)
        return self

    def compute(self) -> dict[str, float | int | None]:
        """Return ``n_tokens``, ``l0``, ``mse``, ``fvu``, ``explained_variance``.

        None where nothing was seen. ``mse`` is None too where nothing was compared, the two
        others also where the activations have no variance.
        """
        n_tokens, n_active = (int(count) for count in self.counts)
        if not n_tokens:
            return {"n_tokens": 0} | dict.fromkeys(
                ("l0", "mse", "fvu", "explained_variance")
            )
        spread = float(self.sum_sq_x - self.sum_x.square().sum() / n_tokens)
        fvu = float(self.sum_sq_error) / spread if self.compared and spread > 0 else None
        return {
            "n_tokens": n_tokens,
            "l0": n_active / n_tokens,
            "mse": float(self.sum_sq_error) / n_tokens if self.compared else None,
            "fvu": fvu,
            "explained_variance": None if fvu is None else 1 - fvu,
        }


def _widest(x: Tensor) -> torch.dtype:
    # MPS has no float64; a batch's sum in float32 is the best it can do.
    return torch.float32 if x.device.type == "mps" else torch.float64


def _sum_sq(x: Tensor) -> Tensor:
    wide = _widest(x)
    norm: Tensor = torch.linalg.vector_norm(x, dtype=wide)
    return norm.square()
