"""Which decoder rows of two SAEs point the same way: exact, in bounded memory.

A program of its own, because it imports torch: `comparison` starts it for a notebook.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from extraction_kit.sources.products import BLOCK_ELEMENTS, Products
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.trainings import SaeSpec

_ROWS = 4096  # of a decoder that are in float64 at a time
_TINY = 1e-30  # a norm that is none

Found = dict[str, np.ndarray]


def nearest(
    decoder: Float[Tensor, "feature width"],
    other: Float[Tensor, "other width"],
    *,
    device: torch.device,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each row, the row of `other` with the largest cosine, and the cosine.

    Parameters
    ----------
    decoder, other : Tensor [feature, width], [other, width]
        Decoder rows; a row of zeros has cosine 0 with every other.
    device : torch.device
        What computes.
    block_elements : int
        Numbers in a block; changes the memory, not the result.

    Returns
    -------
    ndarray int64 [feature], ndarray float32 [feature]
        Of equal cosines the first one.
    """
    products = Products(
        other,
        k=1,
        device=device,
        scale=_inverse_norms(other),
        block_elements=block_elements,
    )
    index, value = [], []
    for rows, factor in zip(
        torch.split(decoder, products.n_rows),
        torch.split(_inverse_norms(decoder), products.n_rows),
        strict=True,
    ):
        [(found, cosine)] = products.largest(rows.double() * factor[:, None])
        index.append(found[:, 0].cpu())
        value.append(cosine[:, 0].cpu())
    return torch.cat(index).numpy(), torch.cat(value).numpy()


def same(
    decoder: Float[Tensor, "feature width"], other: Float[Tensor, "feature width"]
) -> np.ndarray:
    """Return the cosine of each row with the row of the same number, float32 [feature]."""
    scale = _inverse_norms(decoder) * _inverse_norms(other)
    parts = [
        (a.double() * b.double()).sum(dim=1)
        for a, b in zip(torch.split(decoder, _ROWS), torch.split(other, _ROWS), strict=True)
    ]
    cosine: np.ndarray = (torch.cat(parts) * scale).to(torch.float32).numpy()
    return cosine


def _inverse_norms(decoder: Tensor) -> Tensor:
    parts = [
        torch.linalg.vector_norm(part.double(), dim=1)
        for part in torch.split(decoder, _ROWS)
    ]
    norm = torch.cat(parts)
    return torch.where(norm > _TINY, 1 / norm, 0.0)


def match(a: SaeSpec, b: SaeSpec, *, by_number: bool) -> Found:
    """Return ``other`` and ``cosine`` for each feature of `a`, and ``back`` for those of `b`.

    With `by_number` only ``cosine``, of the features with the same number.
    """
    first, second = load_weights(a)["W_dec"], load_weights(b)["W_dec"]
    if by_number:
        return {"cosine": same(first, second)}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    other, cosine = nearest(first, second, device=device)
    back, _ = nearest(second, first, device=device)
    return {"other": other, "cosine": cosine, "back": back}


def main(target: str) -> None:
    """Match the two SAEs that are described on standard input, into `target` (``.npz``)."""
    asked = json.load(sys.stdin)
    specs = [SaeSpec(**asked[name]) for name in ("a", "b")]
    found = match(*specs, by_number=asked["by_number"])
    with Path(target).open("wb") as file:
        np.savez(file, allow_pickle=False, **found)
        file.flush()
        os.fsync(file.fileno())
