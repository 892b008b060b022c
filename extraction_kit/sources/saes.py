"""Sparse autoencoders and transcoders as `torch` runs them: to sparse features.

``h = x W_enc + b_enc`` on the (normalised, centred) input, then relu; jumprelu
``relu(h) * (h > threshold)``; the k largest h, then relu; the largest h of each of k groups,
then relu; or gated, ``(x W_enc + b_gate > 0) * relu(exp(r_mag) * x W_enc + b_mag)``. Dense
feature activations are never kept: each tile of pre-activations is scanned and forgotten.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from extraction_kit.sources import onednn
from extraction_kit.sources.blocks import Block, Blocks, Masked
from extraction_kit.sources.custom_sae import CustomAutoencoder, load_custom
from extraction_kit.sources.lanes import Lanes
from extraction_kit.sources.normalized import Normalized
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.sources.selection import (
    GROUPS_PER_K,
    AboveBound,
    Largest,
    LargestOfGroups,
    Scan,
    Selection,
)
from extraction_kit.stats import Activations, Contexts
from extraction_kit.trainings import SaeSpec
from extraction_kit.trainings.sae_formats.spec import INPUT

FEATURE_TILE = 2048
"""Features encoded at once on a CPU: their weights and pre-activations stay in its cache."""
TILE_ELEMENTS = {"cpu": 2**21}
"""Pre-activations in a block, by type of device: 8 MiB in float32."""
_TILE_ELEMENTS = 2**26  # of other devices: 256 MiB, since each block is waited for
_ROWS_OF_OTHERS = 2**9  # in a block of full width
CELLS = 2**24
"""(context, feature) pairs that the statistics are given at once: 128 MiB of int64."""
_BLOCK = 8192  # features whose norms are taken at once


class SparseAutoencoder:
    """An SAE on one device.

    Parameters
    ----------
    spec : SaeSpec
        What its files say.
    weights : mapping of str to Tensor
        As `load_weights` returns them. They are copied, not changed.
    blocks : Blocks, optional
        Shared with SAEs that encode at other times; None makes its own.
    """

    def __init__(
        self,
        spec: SaeSpec,
        weights: Mapping[str, Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        blocks: Blocks | None = None,
    ) -> None:
        self.spec = spec
        self.weight_columns = weight_columns(weights)
        w_enc, w_dec = weights["W_enc"], weights["W_dec"]
        b_enc = weights.get("b_enc", torch.zeros(spec.d_sae))  # none in a gated SAE
        if spec.rescale_acts_by_decoder_norm:
            # The same as scaling each pre-activation, and undoing it before decoding.
            norm = torch.linalg.vector_norm(w_dec, dim=1)
            w_enc, b_enc, w_dec = w_enc * norm, b_enc * norm, w_dec / norm[:, None]
        width = _tile_width(spec, device)
        self._w_enc = [
            part.to(device, dtype).contiguous() for part in torch.split(w_enc, width, dim=1)
        ]
        self._b_enc = [part.to(device, dtype) for part in torch.split(b_enc, width)]
        self._w_dec = w_dec.to(device, dtype).contiguous()
        self._b_dec = weights["b_dec"].to(device, dtype)
        self._w_skip = weights["W_skip"].to(device, dtype) if spec.skip else None
        self._selection = _selection(spec, weights, width=width, device=device, dtype=dtype)
        self._tile_elements = TILE_ELEMENTS.get(device.type, _TILE_ELEMENTS)
        self._first = [0, *accumulate(part.numel() for part in self._b_enc)]
        self._blocks = blocks or Blocks(Lanes(device))
        self._by_onednn = onednn.is_faster(device, dtype)

    @property
    def shortcuts(self) -> dict[str, str]:
        """What is computed in another way than torch's usual one, and how."""
        return {"encoder": "oneDNN"} if self._by_onednn else {}

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
        self, x: Float[Tensor, "row d_in"], contexts: Contexts, *, aside: bool = False
    ) -> Iterator[Activations]:
        """Yield the active (row, feature) pairs of valid rows, some features at a time.

        Parameters
        ----------
        x : Tensor [row, d_in]
            Normalised activations of all tokens of `contexts`.
        contexts : Contexts
            Where the rows are and which are valid.
        aside : bool
            Whether what is yielded is used on the second of the `Lanes`.
        """
        if self.spec.apply_b_dec_to_input:
            x = x - self._b_dec
        lanes = self._blocks.lanes
        lanes.join()
        masked = Masked(contexts, x.device)
        first = 0
        for tiles in self._spans(contexts.n):
            scan = self._selection(x.shape[0])
            for block in lanes.ahead_of(self._marked(scan, x, masked, tiles=tiles)):
                with lanes.aside(block.marked):
                    row, column, value = block.found()
                    feature = column + self._first[block.tile]
                    scan.take(row, feature, value, tile=block.tile)
            width = self._first[tiles.stop] - first
            with lanes.aside():
                row, feature, value = scan.result()
                value = value.to(torch.float32)
            if not aside:
                lanes.join()
            yield Activations(contexts, row, feature, value, first, width)
            first += width

    def _spans(self, n_contexts: int) -> Iterator[range]:
        """Yield tiles whose features the statistics take in together."""
        width, n = self._w_enc[0].shape[1], len(self._w_enc)
        together = max(1, CELLS // (n_contexts * width))
        if self.spec.architecture == "topk":  # its features compete with each other
            together = n
        for start in range(0, n, together):
            yield range(start, min(start + together, n))

    def _marked(
        self, scan: Scan, x: Tensor, masked: Masked, *, tiles: range
    ) -> Iterator[Block]:
        """Yield pre-activations of some rows and features, marked where they may be active."""
        lanes = self._blocks.lanes
        for tile in tiles:
            if tile > tiles.start:
                with lanes.aside():
                    scan.settle(tile=tile)
                lanes.join()
            width = self._w_enc[tile].shape[1]
            n_rows = max(1, self._tile_elements // width)
            for start in range(0, x.shape[0], n_rows):
                some = x[start : start + n_rows]
                block = self._blocks.next(
                    (some.shape[0], width), like=self._w_dec, tile=tile, first_row=start
                )
                block.pre = self._product(some, tile, out=block.pre)
                scan.mark(block.pre, block.mask, first_row=start, tile=tile)
                inside = masked.between(start, start + some.shape[0])
                if inside is not None:
                    block.mask.index_fill_(0, inside, False)
                block.marked = lanes.here()
                yield block

    def _product(self, x: Tensor, tile: int, *, out: Tensor) -> Tensor:
        """Return the pre-activations of a tile, in `out` where that is the faster way."""
        if self._by_onednn:
            return onednn.linear(x, self._w_enc[tile].T, self._b_enc[tile])
        return torch.addmm(self._b_enc[tile], x, self._w_enc[tile], out=out)

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


def _tile_width(spec: SaeSpec, device: torch.device) -> int:
    """Return how many features are encoded at once."""
    width = FEATURE_TILE if device.type == "cpu" else _TILE_ELEMENTS // _ROWS_OF_OTHERS
    if spec.architecture == "groupmax":  # a tile holds whole groups
        size = spec.d_sae // (spec.k or 1)
        return size * max(1, width // size)
    # The first tile's k largest are the first floor, so it should hold several times k.
    return max(width, GROUPS_PER_K * (spec.k or 0))


def _selection(
    spec: SaeSpec,
    weights: Mapping[str, Tensor],
    *,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Selection:
    if spec.k is not None:
        size = spec.d_sae // spec.k
        return Largest(spec.k) if spec.architecture == "topk" else LargestOfGroups(size)

    def tiles(vector: Tensor, kind: torch.dtype = dtype) -> tuple[Tensor, ...]:
        return torch.split(vector.to(device, kind), width)

    match spec.architecture:
        case "jumprelu":
            return AboveBound(tiles(weights["threshold"].clamp(min=0)))
        case "gated":
            gain = weights["r_mag"].exp()
            # Open where x W_enc > -b_gate; positive where x W_enc > -b_mag / gain.
            bound = torch.maximum(-weights["b_gate"], -weights["b_mag"] / gain)
            return AboveBound(
                tiles(bound),
                gain=tiles(gain, torch.float32),
                offset=tiles(weights["b_mag"], torch.float32),
            )
        case _:
            return AboveBound(tiles(torch.zeros(spec.d_sae)))


def weight_columns(weights: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return ``decoder_norm``, ``encoder_norm`` and ``enc_dec_cos``, float32 [d_sae].

    Without ``enc_dec_cos`` where a transcoder reads and writes different widths.
    """
    w_enc, w_dec = weights["W_enc"], weights["W_dec"]
    found: dict[str, list[Tensor]] = {}
    for start in range(0, w_dec.shape[0], _BLOCK):  # a copy in float64 of all is too large
        some = slice(start, start + _BLOCK)
        enc, dec = w_enc[:, some].T.double(), w_dec[some].double()
        columns = {
            "decoder_norm": torch.linalg.vector_norm(dec, dim=1),
            "encoder_norm": torch.linalg.vector_norm(enc, dim=1),
        }
        if enc.shape == dec.shape:
            columns["enc_dec_cos"] = functional.cosine_similarity(enc, dec, dim=1)
        for name, column in columns.items():
            found.setdefault(name, []).append(column.float())
    return {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()}


Autoencoder = SparseAutoencoder | CustomAutoencoder


def reconstruct(
    sae: Autoencoder, x: Float[Tensor, "row d_in"], contexts: Contexts
) -> Float[Tensor, "row d_out"]:
    """Return what an SAE makes of activations as captured, normalisation undone.

    Valid rows only; the others are what the SAE gives where no feature is active.
    """
    normal = sae.normalize(x)
    x_hat = sae.baseline(x)
    for active in sae.encode(normal.x, contexts):
        x_hat = x_hat + sae.decode(active, n_rows=x.shape[0])
    return normal.undo(x_hat).expand(x.shape[0], -1)


def load_sae(
    spec: SaeSpec,
    *,
    device: torch.device,
    dtype: torch.dtype,
    blocks: Blocks | None = None,
) -> Autoencoder:
    """Load an SAE or transcoder of any format that `describe_sae` knows.

    Raises
    ------
    BadSae
        Its weights are missing, torn, of other shapes than `spec` says, or not finite.
    """
    if spec.factory is not None:
        return load_custom(spec, device=device, dtype=dtype)
    return SparseAutoencoder(
        spec, load_weights(spec), device=device, dtype=dtype, blocks=blocks
    )
