"""Weights of SAEs, from each library's file to one set of names and shapes.

Nothing is unpickled: safetensors, ``np.load(allow_pickle=False)``, and
``torch.load(weights_only=True)`` for pt files, whose pickle may name tensors only.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from extraction_kit.errors import BadSae
from extraction_kit.trainings import SaeSpec
from extraction_kit.trainings.sae_formats.spec import tensor_shapes

_UNREADABLE = (
    OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError,
    BadZipFile,
)  # fmt: skip


def load_weights(spec: SaeSpec) -> dict[str, Tensor]:
    """Return the tensors of an SAE in float32, by our names and in our shapes.

    ``W_enc`` [d_in, d_sae], ``W_dec`` [d_sae, d_out], ``b_enc`` [d_sae], ``b_dec`` [d_out];
    ``threshold`` [d_sae] of a jumprelu SAE; ``b_gate``, ``b_mag``, ``r_mag`` [d_sae] in
    place of ``b_enc`` of a gated one; ``W_skip`` [d_out, d_in] of a transcoder with a skip
    connection. A scale of the input is folded in.

    Raises
    ------
    BadSae
        The file is missing or torn, a tensor is absent or of another shape than `spec`
        says, or a number is not finite.
    """
    path = spec.file
    try:
        found = _read(path)
    except pickle.UnpicklingError:  # its words advise to run the pickle
        raise BadSae(
            f"{path} cannot be read: its pickle holds more than tensors, or is torn. Only "
            "weights are loaded: torch.save(sae.state_dict(), path)"
        ) from None
    except _UNREADABLE as error:
        raise BadSae(
            f"{path} cannot be read ({error}): copy the SAE's folder again"
        ) from error
    weights = {}
    for name, shape in tensor_shapes(spec).items():
        theirs, transposed = spec.named(name)
        weight = _shaped(found.get(theirs), name, shape=shape, transposed=transposed)
        weights[name] = _checked(path, theirs, weight, found=found.get(theirs), shape=shape)
    if spec.architecture == "jumprelu" and spec.threshold is not None:
        weights["threshold"] = torch.full((spec.d_sae,), spec.threshold)
    return _folded(weights, spec.input_scale)


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    found = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(found, Mapping):
        raise TypeError(f"it holds a {type(found).__name__}, not tensors by name")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _shaped(
    weight: Tensor | None, name: str, *, shape: tuple[int, ...], transposed: bool
) -> Tensor | None:
    """Return `weight` as we hold it; one threshold for all features becomes one for each."""
    if weight is None:
        return None
    if transposed and weight.ndim == 2:  # noqa: PLR2004 - a matrix
        return weight.T
    if name == "threshold" and weight.numel() == 1:
        return weight.reshape(1).expand(shape)
    return weight


def _checked(
    path: Path,
    name: str,
    weight: Tensor | None,
    *,
    found: Tensor | None,
    shape: tuple[int, ...],
) -> Tensor:
    if weight is None or found is None or tuple(weight.shape) != shape:
        said = "is absent" if found is None else f"has shape {list(found.shape)}"
        raise BadSae(
            f"{path}: {name} {said}, {list(shape)} (or its transpose) is needed: the SAE has "
            "changed since it was registered, copy its folder again"
        )
    finite: Bool[Tensor, ...] = torch.isfinite(found)
    if not finite.all():
        place = torch.nonzero(~finite)[0].tolist()
        raise BadSae(
            f"{path}: {name}{place} is {float(found[tuple(place)])}, every weight must be "
            "finite: save the SAE again from a sound checkpoint"
        )
    return weight.to(torch.float32)


def _folded(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    if scale == 1:
        return weights
    return weights | {
        "W_enc": weights["W_enc"] * scale,
        "W_dec": weights["W_dec"] / scale,
        "b_dec": weights["b_dec"] / scale,
    }
