"""An SAE of the user's own code, behind the interface of `SparseAutoencoder`."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extraction_kit.errors import BadSae
from extraction_kit.sources.normalized import Normalized
from extraction_kit.stats import Activations, Contexts
from extraction_kit.trainings import SaeSpec

ROWS_AT_ONCE = 2**23
"""Activations of the user's ``encode`` held at most: 32 MiB in float32."""


@runtime_checkable
class EncodesAndDecodes(Protocol):
    """What a factory returns."""

    def encode(self, x: Tensor) -> Tensor:
        """Return activations [row, d_sae], not negative."""

    def decode(self, f: Tensor) -> Tensor:
        """Return the reconstruction [row, d_in], biases included."""


class CustomAutoencoder:
    """Runs an object of the user's; its dense activations are scanned and forgotten.

    Parameters
    ----------
    spec : SaeSpec
        Of architecture ``custom``.
    sae : object
        With ``encode`` and ``decode``, on `device`.
    """

    def __init__(
        self,
        spec: SaeSpec,
        sae: EncodesAndDecodes,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self._sae = sae
        self._zero = torch.zeros(spec.d_in, device=device, dtype=dtype)
        # Its decoder is a function: no rows to take norms of.
        self.weight_columns: dict[str, np.ndarray] = {}
        self.decoder: None = None
        self.shortcuts: dict[str, str] = {}  # the user's code runs as it is

    def normalize(self, x: Float[Tensor, "row d_in"]) -> Normalized:
        """Return `x`: normalising is up to the user's code."""
        return Normalized(x.to(self._zero.dtype))

    def baseline(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, " d_in"]:
        """Return zeros: ``decode`` adds the biases itself."""
        del x
        return self._zero

    def encode(
        self, x: Float[Tensor, "row d_in"], contexts: Contexts, *, aside: bool = False
    ) -> Iterator[Activations]:
        """Yield the active (row, feature) pairs of valid rows, all features at once.

        Whoever uses them `aside` waits for all that was queued before.
        """
        del aside
        valid = contexts.valid.reshape(-1)
        n_rows = max(1, ROWS_AT_ONCE // self.spec.d_sae)
        parts = []
        for start in range(0, x.shape[0], n_rows):
            some = x[start : start + n_rows]
            acts = self._encoded(some) * valid[start : start + n_rows, None]
            row, feature = torch.nonzero(acts, as_tuple=True)
            parts.append((row + start, feature, acts[row, feature].to(torch.float32)))
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
        yield Activations(contexts, row, feature, value, 0, self.spec.d_sae)

    def _encoded(self, x: Tensor) -> Tensor:
        acts = self._sae.encode(x.clone())  # the user's code may change its argument
        expected = (x.shape[0], self.spec.d_sae)
        if not isinstance(acts, Tensor) or tuple(acts.shape) != expected:
            found = list(acts.shape) if isinstance(acts, Tensor) else type(acts).__name__
            raise BadSae(
                f"encode of {self.spec.factory!r} returns {found}, a tensor of shape "
                f"{list(expected)} (row, d_sae) is needed"
            )
        lowest = float(acts.min()) if acts.numel() else 0.0
        if not lowest >= 0:
            raise BadSae(
                f"encode of {self.spec.factory!r} returns {lowest:g}: activations must not be "
                "negative or NaN"
            )
        return acts

    def decode(self, batch: Activations, *, n_rows: int) -> Float[Tensor, "row d_in"]:
        """Return the reconstruction of each row."""
        step = max(1, ROWS_AT_ONCE // self.spec.d_sae)
        ends = torch.searchsorted(
            batch.row, torch.arange(0, n_rows + step, step, device=batch.row.device)
        ).tolist()
        parts = []
        for number, start in enumerate(range(0, n_rows, step)):
            some = slice(ends[number], ends[number + 1])
            f = self._zero.new_zeros((min(step, n_rows - start), self.spec.d_sae))
            f[batch.row[some] - start, batch.feature[some]] = batch.value[some].to(f.dtype)
            parts.append(self._decoded(f))
        return torch.cat(parts)

    def _decoded(self, f: Tensor) -> Tensor:
        x_hat = self._sae.decode(f)
        expected = (f.shape[0], self.spec.d_in)
        if not isinstance(x_hat, Tensor) or tuple(x_hat.shape) != expected:
            raise BadSae(
                f"decode of {self.spec.factory!r} must return a tensor of shape "
                f"{list(expected)} (row, d_in)"
            )
        return x_hat


def load_custom(
    spec: SaeSpec, *, device: torch.device, dtype: torch.dtype
) -> CustomAutoencoder:
    """Import the factory of an SAE and give it its weights, on `device`.

    Raises
    ------
    BadSae
        The weights cannot be read, or the factory cannot be imported, fails, or returns
        something without ``encode`` and ``decode``.
    """
    try:
        weights = load_file(spec.file)
    except (OSError, SafetensorError) as error:
        raise BadSae(
            f"{spec.file} cannot be read ({error}): copy the SAE's folder again"
        ) from error
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BadSae(f"{spec.file}: {name} has numbers that are not finite")
    there = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for name, tensor in weights.items()
    }
    try:
        made = _factory(str(spec.factory))(there)
    except Exception as error:
        raise BadSae(
            f"factory={spec.factory!r} failed with {type(error).__name__}: {error}. Try it: it "
            "is called with the tensors of the weight file by name"
        ) from error
    if not isinstance(made, EncodesAndDecodes):
        raise BadSae(
            f"factory={spec.factory!r} returns a {type(made).__name__} without encode and decode"
        )
    return CustomAutoencoder(spec, made, device=device, dtype=dtype)


def _factory(name: str) -> Callable[[Mapping[str, Tensor]], object]:
    module, _, function = name.partition(":")
    found: Callable[[Mapping[str, Tensor]], object] = getattr(
        importlib.import_module(module), function
    )
    return found
