"""Sparse autoencoders as `torch` runs them: dense activations to sparse features.

Formulas as in SAELens 6: ``h = x W_enc + b_enc`` on the (normalised, centred) input, then
relu, jumprelu ``relu(h) * (h > threshold)``, or the k largest h, then relu. Dense feature
activations are never kept: each tile of pre-activations is scanned and forgotten.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from extraction_kit.errors import BadSae
from extraction_kit.stats import Activations, Contexts
from extraction_kit.stats.activations import flat_nonzero
from extraction_kit.trainings import SaeSpec
from extraction_kit.trainings.sae_folder import WEIGHTS

FEATURE_TILE = 2048
"""Features encoded at once where they do not compete with each other."""
TILE_ELEMENTS = 2**23
"""Pre-activations held at most: 32 MiB in float32."""
GROUPS_PER_K = 4
"""Groups of features, per k, whose maxima bound the k-th largest pre-activation."""


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


class SparseAutoencoder:
    """An SAE on one device, with its buffers.

    Parameters
    ----------
    spec : SaeSpec
        What its files say.
    weights : mapping of str to Tensor
        ``W_enc`` [d_in, d_sae], ``W_dec`` [d_sae, d_in], ``b_enc``, ``b_dec`` and, for
        jumprelu, ``threshold``. They are copied, not changed.
    """

    def __init__(
        self,
        spec: SaeSpec,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.weight_columns = weight_columns(weights)
        w_enc, w_dec, b_enc = weights["W_enc"], weights["W_dec"], weights["b_enc"]
        if spec.rescale_acts_by_decoder_norm:
            # The same as scaling each pre-activation, and undoing it before decoding.
            norm = torch.linalg.vector_norm(w_dec, dim=1)
            w_enc, b_enc, w_dec = w_enc * norm, b_enc * norm, w_dec / norm[:, None]
        self._width = spec.d_sae if spec.architecture == "topk" else FEATURE_TILE
        self._w_enc = [
            part.to(device, dtype).contiguous()
            for part in torch.split(w_enc, self._width, dim=1)
        ]
        self._b_enc = [part.to(device, dtype) for part in torch.split(b_enc, self._width)]
        self._w_dec = w_dec.to(device, dtype).contiguous()
        self._b_dec = weights["b_dec"].to(device, dtype)
        self._bound = [
            part.to(device, dtype)
            for part in torch.split(self._lower_bounds(weights), self._width)
        ]
        self._pre = torch.empty(0, dtype=dtype, device=device)
        self._mask = torch.empty(0, dtype=torch.bool, device=device)

    def _lower_bounds(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return what each pre-activation must exceed to be active."""
        if self.spec.architecture == "jumprelu":
            return weights["threshold"].clamp(min=0)
        return torch.zeros(self.spec.d_sae)

    def normalize(self, x: Float[Tensor, "row d_in"]) -> Normalized:
        """Return `x` as the SAE was trained to see it."""
        x = x.to(self._w_dec.dtype)
        match self.spec.normalize_activations:
            case "layer_norm":
                shift = x.mean(dim=1, keepdim=True)
                x = x - shift
                scale = x.std(dim=1, keepdim=True) + 1e-5
                return Normalized(x / scale, scale, shift)
            case "constant_norm_rescale":
                norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
                scale = norm / self.spec.d_in**0.5
                return Normalized(x / scale, scale)
            case _:
                return Normalized(x)

    def encode(
        self, x: Float[Tensor, "row d_in"], contexts: Contexts
    ) -> Iterator[Activations]:
        """Yield the active (row, feature) pairs of valid rows, one tile at a time.

        Parameters
        ----------
        x : Tensor [row, d_in]
            Normalised activations of all tokens of `contexts`.
        contexts : Contexts
            Where the rows are and which are valid.
        """
        if self.spec.apply_b_dec_to_input:
            x = x - self._b_dec
        masked = flat_nonzero(~contexts.valid.reshape(-1))
        first = 0
        for tile, w_enc in enumerate(self._w_enc):
            width = w_enc.shape[1]
            row, feature, value = self._encode_tile(x, masked, tile=tile)
            yield Activations(contexts, row, feature + first, value, first, width)
            first += width

    def _encode_tile(
        self, x: Tensor, masked: Tensor, *, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        width = self._w_enc[tile].shape[1]
        n_rows = max(1, min(x.shape[0], TILE_ELEMENTS // width))
        parts = []
        for start in range(0, x.shape[0], n_rows):
            some = x[start : start + n_rows]
            pre, mask = self._buffers(some.shape[0], width)
            torch.addmm(self._b_enc[tile], some, self._w_enc[tile], out=pre)
            self._mark(pre, mask, tile)
            inside = masked[(masked >= start) & (masked < start + some.shape[0])] - start
            mask.index_fill_(0, inside, False)
            row, feature, value = self._collect(pre, mask)
            parts.append((row + start, feature, value))
        if len(parts) == 1:
            return parts[0]
        row, feature, value = (torch.cat(column) for column in zip(*parts, strict=True))
        return row, feature, value

    def _buffers(self, n_rows: int, width: int) -> tuple[Tensor, Tensor]:
        # Fresh memory would cost more than the scan: page faults on every tile.
        n = n_rows * width
        if self._pre.numel() < n:
            self._pre = torch.empty(n, dtype=self._pre.dtype, device=self._pre.device)
            self._mask = torch.empty(n, dtype=torch.bool, device=self._pre.device)
        return self._pre[:n].view(n_rows, width), self._mask[:n].view(n_rows, width)

    def _mark(self, pre: Tensor, mask: Tensor, tile: int) -> None:
        """Set `mask` where `pre` is active; for topk, wherever it may be."""
        if self.spec.k is None:
            torch.gt(pre, self._bound[tile], out=mask)
        else:
            floor = floor_of_largest(pre, self.spec.k).clamp_(min=0)
            torch.ge(pre, floor[:, None], out=mask)

    def _collect(self, pre: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = flat_nonzero(mask)
        row = torch.div(index, mask.shape[1], rounding_mode="floor")
        feature = index - row * mask.shape[1]
        value = pre.view(-1).take(index)
        if self.spec.k is not None:
            best = largest_per_row(row, value, k=self.spec.k, n_rows=mask.shape[0])
            row, feature, value = row[best], feature[best], value[best]
        return row, feature, value.to(torch.float32)

    def decode(self, batch: Activations, *, n_rows: int) -> Float[Tensor, "row d_in"]:
        """Return what the features of `batch` add to each row; without `b_dec`."""
        ends = torch.arange(n_rows + 1, device=batch.row.device)
        decoded: Tensor = functional.embedding_bag(
            batch.feature,
            self._w_dec,
            torch.searchsorted(batch.row, ends),
            mode="sum",
            per_sample_weights=batch.value.to(self._w_dec.dtype),
            include_last_offset=True,
        )
        return decoded

    @property
    def b_dec(self) -> Tensor:
        """Bias of the reconstruction, in the space of the normalised input."""
        return self._b_dec


def floor_of_largest(pre: Float[Tensor, "row feature"], k: int) -> Float[Tensor, " row"]:
    """Return a lower bound of the k-th largest number of each row.

    The maxima of any k or more groups of numbers are k different numbers, so that the k-th
    largest of them is at most the k-th largest of all: what is below it is not among the k.
    """
    n_groups = GROUPS_PER_K * k
    size = pre.shape[1] // n_groups
    if size > 1:
        pre = pre[:, : size * n_groups].view(-1, size, n_groups).amax(1)
    floor: Tensor = pre.topk(k, dim=1).values[:, -1]
    return floor.clone()


def largest_per_row(
    row: Int64[Tensor, " n"], value: Float[Tensor, " n"], *, k: int, n_rows: int
) -> Int64[Tensor, " kept"]:
    """Return the indices of the `k` largest positive values of each row, ascending.

    `row` is ascending. Of equal values the one that comes first is kept.
    """
    length = torch.bincount(row, minlength=n_rows)
    begin = torch.cumsum(length, 0) - length
    column = torch.arange(row.numel(), device=row.device) - begin[row]
    widest = int(length.max()) if length.numel() else 0
    table = value.new_zeros((n_rows, widest))
    table[row, column] = value
    order = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(table, dtype=torch.bool).scatter_(1, order, True)
    kept &= table > 0
    return torch.nonzero(kept[row, column]).squeeze(1)


def weight_columns(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return ``decoder_norm``, ``encoder_norm`` and ``enc_dec_cos``, float32 [d_sae]."""
    enc, dec = weights["W_enc"].T.double(), weights["W_dec"].double()
    columns = {
        "decoder_norm": torch.linalg.vector_norm(dec, dim=1),
        "encoder_norm": torch.linalg.vector_norm(enc, dim=1),
        "enc_dec_cos": functional.cosine_similarity(enc, dec, dim=1),
    }
    return {name: column.float().cpu().numpy() for name, column in columns.items()}


def load_sae(
    spec: SaeSpec, *, device: torch.device, dtype: torch.dtype
) -> SparseAutoencoder:
    """Load the weights of an SAE in SAELens format; nothing is unpickled.

    Raises
    ------
    BadSae
        The file is missing or torn, a tensor is absent or of another shape than `spec`
        says, or a number is not finite.
    """
    path = Path(spec.path) / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BadSae(
            f"{path} cannot be read ({error}): copy the SAE's folder again"
        ) from error
    shapes = {
        "W_enc": (spec.d_in, spec.d_sae),
        "W_dec": (spec.d_sae, spec.d_in),
        "b_enc": (spec.d_sae,),
        "b_dec": (spec.d_in,),
    }
    if spec.architecture == "jumprelu":
        shapes["threshold"] = (spec.d_sae,)
    checked = {
        name: _checked(path, name, weights.get(name), shape=shape)
        for name, shape in shapes.items()
    }
    return SparseAutoencoder(spec, checked, device=device, dtype=dtype)


def _checked(
    path: Path, name: str, weight: Tensor | None, *, shape: tuple[int, ...]
) -> Tensor:
    if weight is None or tuple(weight.shape) != shape:
        found = "is absent" if weight is None else f"has shape {list(weight.shape)}"
        raise BadSae(
            f"{path}: {name} {found}, {list(shape)} is needed: the SAE has changed since "
            "it was registered, copy its folder again"
        )
    finite: Bool[Tensor, ...] = torch.isfinite(weight)
    if not finite.all():
        place = torch.nonzero(~finite)[0].tolist()
        raise BadSae(
            f"{path}: {name}{place} is {float(weight[tuple(place)])}, every weight must be "
            "finite: save the SAE again from a sound checkpoint"
        )
    return weight.to(torch.float32)
