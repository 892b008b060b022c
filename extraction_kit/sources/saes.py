"""Sparse autoencoders and transcoders as `torch` runs them: to sparse features.

``h = x W_enc + b_enc`` on the (normalised, centred) input, then relu; jumprelu
``relu(h) * (h > threshold)``; the k largest h, then relu; the largest h of each of k groups,
then relu; or gated, ``(x W_enc + b_gate > 0) * relu(exp(r_mag) * x W_enc + b_mag)``. Dense
feature activations are never kept: each tile of pre-activations is scanned and forgotten.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from extraction_kit.sources.custom_sae import CustomAutoencoder, load_custom
from extraction_kit.sources.normalized import Normalized
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.sources.selection import (
    AboveBound,
    Largest,
    LargestOfGroups,
    Selection,
)
from extraction_kit.stats import Activations, Contexts
from extraction_kit.stats.activations import flat_nonzero
from extraction_kit.trainings import SaeSpec
from extraction_kit.trainings.sae_formats.spec import INPUT

FEATURE_TILE = 2048
"""Features encoded at once where they do not compete with each other."""
COMPETING = ("topk", "groupmax")
"""Architectures in which whether a feature is active depends on the others."""
TILE_ELEMENTS = 2**23
"""Pre-activations held at most: 32 MiB in float32."""


class SparseAutoencoder:
    """An SAE on one device, with its buffers.

    Parameters
    ----------
    spec : SaeSpec
        What its files say.
    weights : mapping of str to Tensor
        As `load_weights` returns them. They are copied, not changed.
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
        w_enc, w_dec = weights["W_enc"], weights["W_dec"]
        b_enc = weights.get("b_enc", torch.zeros(spec.d_sae))  # none in a gated SAE
        if spec.rescale_acts_by_decoder_norm:
            # The same as scaling each pre-activation, and undoing it before decoding.
            norm = torch.linalg.vector_norm(w_dec, dim=1)
            w_enc, b_enc, w_dec = w_enc * norm, b_enc * norm, w_dec / norm[:, None]
        width = spec.d_sae if spec.architecture in COMPETING else FEATURE_TILE
        self._w_enc = [
            part.to(device, dtype).contiguous() for part in torch.split(w_enc, width, dim=1)
        ]
        self._b_enc = [part.to(device, dtype) for part in torch.split(b_enc, width)]
        self._w_dec = w_dec.to(device, dtype).contiguous()
        self._b_dec = weights["b_dec"].to(device, dtype)
        self._w_skip = weights["W_skip"].to(device, dtype) if spec.skip else None
        self._selection = _selection(spec, weights, width=width, device=device, dtype=dtype)
        self._pre = torch.empty(0, dtype=dtype, device=device)
        self._mask = torch.empty(0, dtype=torch.bool, device=device)

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """What each feature writes per unit of its activation."""
        return self._w_dec

    def normalize(self, x: Float[Tensor, "row d_in"]) -> Normalized:
        """Return `x` as the SAE was trained to see it."""
        normal = self._normalized(x.to(self._w_dec.dtype))
        # What a transcoder writes is not in the space of what it reads.
        return normal if self.spec.reconstructs == INPUT else Normalized(normal.x)

    def _normalized(self, x: Float[Tensor, "row d_in"]) -> Normalized:
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
            self._selection.mark(pre, mask, tile=tile)
            inside = masked[(masked >= start) & (masked < start + some.shape[0])] - start
            mask.index_fill_(0, inside, False)
            row, feature, value = self._collect(pre, mask, tile=tile)
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

    def _collect(
        self, pre: Tensor, mask: Tensor, *, tile: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        index = flat_nonzero(mask)
        row = torch.div(index, mask.shape[1], rounding_mode="floor")
        feature = index - row * mask.shape[1]
        row, feature, value = self._selection.keep(
            row, feature, pre.view(-1).take(index), n_rows=mask.shape[0], tile=tile
        )
        return row, feature, value.to(torch.float32)

    def decode(self, batch: Activations, *, n_rows: int) -> Float[Tensor, "row d_out"]:
        """Return what the features of `batch` add to each row of the baseline."""
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

    def baseline(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "*row d_out"]:
        """Return the reconstruction of `x` (as captured) where no feature is active.

        ``b_dec``, in the space of the normalised input; of a transcoder with a skip
        connection, x W_skip^T is added.
        """
        if self._w_skip is None:
            return self._b_dec
        return torch.addmm(self._b_dec, x.to(self._w_skip.dtype), self._w_skip.T)


def _selection(
    spec: SaeSpec,
    weights: Mapping[str, Tensor],
    *,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Selection:
    if spec.k is not None:
        return Largest(spec.k) if spec.architecture == "topk" else LargestOfGroups(spec.k)
    match spec.architecture:
        case "jumprelu":
            return AboveBound(
                weights["threshold"].clamp(min=0).to(device, dtype), width=width
            )
        case "gated":
            gain = weights["r_mag"].exp()
            # Open where x W_enc > -b_gate; positive where x W_enc > -b_mag / gain.
            bound = torch.maximum(-weights["b_gate"], -weights["b_mag"] / gain)
            return AboveBound(
                bound.to(device, dtype),
                width=width,
                gain=gain.to(device),
                offset=weights["b_mag"].to(device),
            )
        case _:
            return AboveBound(
                torch.zeros(spec.d_sae, device=device, dtype=dtype), width=width
            )


def weight_columns(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return ``decoder_norm``, ``encoder_norm`` and ``enc_dec_cos``, float32 [d_sae].

    Without ``enc_dec_cos`` where a transcoder reads and writes different widths.
    """
    enc, dec = weights["W_enc"].T.double(), weights["W_dec"].double()
    columns = {
        "decoder_norm": torch.linalg.vector_norm(dec, dim=1),
        "encoder_norm": torch.linalg.vector_norm(enc, dim=1),
    }
    if enc.shape == dec.shape:
        columns["enc_dec_cos"] = functional.cosine_similarity(enc, dec, dim=1)
    return {name: column.float().cpu().numpy() for name, column in columns.items()}


Autoencoder = SparseAutoencoder | CustomAutoencoder


def load_sae(spec: SaeSpec, *, device: torch.device, dtype: torch.dtype) -> Autoencoder:
    """Load an SAE or transcoder of any format that `describe_sae` knows.

    Raises
    ------
    BadSae
        Its weights are missing, torn, of other shapes than `spec` says, or not finite.
    """
    if spec.factory is not None:
        return load_custom(spec, device=device, dtype=dtype)
    return SparseAutoencoder(spec, load_weights(spec), device=device, dtype=dtype)
