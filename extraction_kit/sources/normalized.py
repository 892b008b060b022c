"""Activations as an SAE was trained to see them, and the way back."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Normalized:
    """Input as the SAE sees it; ``x * scale + shift`` is the original."""

    x: Float[Tensor, "row d_in"]
    scale: Float[Tensor, "row 1"] | None = None
    shift: Float[Tensor, "row 1"] | None = None

    def undo(self, x_hat: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_in"]:
        """Return `x_hat` in the space of the original."""
        if self.scale is not None:
            x_hat = x_hat * self.scale
        return x_hat if self.shift is None else x_hat + self.shift
