"""What is read off the weights after the pass: logits and decoder neighbours of each feature.

Nothing of it depends on the corpus, or on where the work was interrupted.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from extraction_kit.extraction.rig import Rig
from extraction_kit.extraction.station import Station
from extraction_kit.results import KINDS, SIGNS
from extraction_kit.sources.devices import statistics_device
from extraction_kit.sources.lens import LogitLens, logit_lens
from extraction_kit.sources.products import BLOCK_ELEMENTS, Largest, Products

_ROWS = 1024  # of the decoder, in float64 at once
_TINY = torch.finfo(torch.float32).tiny  # no direction below
_NO_ROWS = "the SAE is code of the user's, which has no decoder rows"
Columns = dict[str, np.ndarray]


def tables_from_weights(
    rig: Rig, station: Station, *, tell: Callable[[], None]
) -> tuple[dict[str, Columns], dict[str, Any]]:
    """Return the tables ``logits`` and ``neighbours``, and what is said of both.

    The provenance is by ``logits``, and ``decoder`` for the neighbours.

    What there is none of is not in the tables, and ``absent_because`` in its provenance says
    why. `tell` is called between two blocks of features; what it raises ends the work.
    """
    tables, provenance = {}, {}
    lens, reason = _lens(rig, station)
    if lens is not None and station.sae.decoder is not None:
        n = station.config.n_logits
        tables["logits"] = logits(
            station.sae.decoder, lens, n, device=rig.device, tell=tell
        )
    provenance["logits"] = {
        "absent_because": reason,
        **({} if lens is None else lens.to_dict()),
    }
    reason = _no_neighbours(station)
    if station.sae.decoder is not None and reason is None:
        n = station.config.n_neighbours
        tables["neighbours"] = neighbours(
            station.sae.decoder, n, device=rig.device, tell=tell
        )
    provenance["decoder"] = {"absent_because": reason}
    return tables, provenance


def left_out(option: str) -> str:
    """Return why there is nothing of what an option of the config asks for."""
    return f"{option}=0, launch with ExtractionConfig({option}=10) to have them"


def _lens(rig: Rig, station: Station) -> tuple[LogitLens | None, str | None]:
    if not station.config.n_logits:
        return None, left_out("n_logits")
    if station.sae.decoder is None:
        return None, _NO_ROWS
    if not station.compares:
        return None, station.not_compared_because
    n_tokens = station.training.tokenizer.vocab_size
    return logit_lens(
        rig.model, station.training.model, station.compared_at, n_tokens=n_tokens
    )


def _no_neighbours(station: Station) -> str | None:
    if not station.config.n_neighbours:
        return left_out("n_neighbours")
    return _NO_ROWS if station.sae.decoder is None else None


def logits(
    decoder: Float[Tensor, "feature width"],
    lens: LogitLens,
    n: int,
    *,
    device: torch.device,
    tell: Callable[[], None],
    block_elements: int = BLOCK_ELEMENTS,
) -> Columns:
    """Return the tokens whose logits each feature raises and lowers most.

    Parameters
    ----------
    decoder : Tensor [feature, width]
        What each feature writes into the residual stream.
    lens : LogitLens
        From there to the logits.
    n : int
        Tokens at each end; fewer in a smaller vocabulary.
    device, block_elements
        As for `Products`, which says what it costs.
    """
    unembedding = lens.unembedding
    k = min(n, unembedding.shape[0])
    products = Products(unembedding, k=k, device=device, block_elements=block_elements)

    def blocks() -> Iterator[list[Largest]]:
        for number, rows in enumerate(torch.split(decoder, products.n_rows)):
            if number:
                tell()
            yield products.largest(lens.read(_double(rows, device)), and_smallest=True)

    token, value = _filled(blocks(), n_features=len(decoder), n_lists=len(SIGNS), k=k)
    return _keys(token.shape, "sign") | {"token": token.ravel(), "value": value.ravel()}


def neighbours(
    decoder: Float[Tensor, "feature width"],
    n: int,
    *,
    device: torch.device,
    tell: Callable[[], None],
    block_elements: int = BLOCK_ELEMENTS,
) -> Columns:
    """Return the other features whose decoder rows have the largest cosines with each one's.

    A row of zeros has cosine 0 with every other. Parameters as for `logits`.
    """
    norms = [
        torch.linalg.vector_norm(_double(rows, device), dim=1)
        for rows in torch.split(decoder, _ROWS)
    ]
    norm = torch.cat(norms)
    scale = torch.where(norm > _TINY, 1 / norm, 0.0)
    k = min(n, len(decoder) - 1)
    # One more, because a feature is its own nearest neighbour.
    products = Products(
        decoder, k=k + 1, device=device, scale=scale, block_elements=block_elements
    )

    def blocks() -> Iterator[list[Largest]]:
        own = torch.arange(len(decoder), device=scale.device)
        for rows, factor, number in zip(
            *(torch.split(each, products.n_rows) for each in (decoder, scale, own)),
            strict=True,
        ):
            if number[0]:
                tell()
            [found] = products.largest(_double(rows, device) * factor[:, None])
            yield [_without(number, *found)]

    other, value = _filled(blocks(), n_features=len(decoder), n_lists=1, k=k)
    columns = _keys(other.shape, "kind") | {"other": other.ravel(), "value": value.ravel()}
    columns["kind"][:] = KINDS.index("decoder")
    return columns | {"n_both": np.full(other.size, -1, dtype=np.int64)}


def _double(rows: Tensor, device: torch.device) -> Float64[Tensor, "row width"]:
    return rows.to(statistics_device(device)).to(torch.float64)


def _without(own: Tensor, index: Tensor, value: Tensor) -> Largest:
    """Leave out the feature itself, or the last one where it is not among the first."""
    keep = index != own[:, None]
    keep[:, -1] &= ~keep.all(dim=1)
    return index[keep].view(len(own), -1), value[keep].view(len(own), -1)


def _filled(
    blocks: Iterator[list[Largest]], *, n_features: int, n_lists: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices (int32) and products (float32) of all blocks, [feature, list, k]."""
    index = np.empty((n_features, n_lists, k), dtype=np.int32)
    value = np.empty((n_features, n_lists, k), dtype=np.float32)
    first = 0
    for found in blocks:
        some = slice(first, first + len(found[0][0]))
        for number, (indices, values) in enumerate(found):
            index[some, number], value[some, number] = indices.cpu(), values.cpu()
        first = some.stop
    return index, value


def _keys(shape: tuple[int, ...], name: str) -> Columns:
    """Return the columns that say which row of a table is which: feature, `name`, rank."""
    feature, number, rank = np.indices(shape, sparse=True)
    columns = {
        "feature": (feature, np.int32),
        name: (number, np.int8),
        "rank": (rank, np.int16),
    }
    return {
        key: np.broadcast_to(values, shape).astype(dtype).ravel()
        for key, (values, dtype) in columns.items()
    }
