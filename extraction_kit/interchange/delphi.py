"""Delphi's cache of latents: safetensors in splits, and a ``config.json``.

Read in EleutherAI/delphi at commit 3c2e1393: ``delphi/latents/loader.py`` (`TensorBuffer`,
`LatentDataset`: what is loaded, and how a latent finds its split), ``latents/cache.py``
(`save_splits`, `save_config`), ``latents/constructors.py`` (activations of a latent must
come in order of place; every place that is not listed counts as not active),
``delphi/utils.py`` (`to_int64_tensor`: the integer types).
"""

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from safetensors.numpy import save_file

from extraction_kit.catalog.bulk import (
    ResultFiles,
    active_tokens,
    chosen,
    contexts_of,
    n_active,
)
from extraction_kit.errors import BadExport
from extraction_kit.interchange.writing import new_folder


def write(
    files: ResultFiles,
    path: Path | str,
    *,
    module: str,
    features: Iterable[SupportsIndex] | None,
    incomplete: bool,
    n_splits: int,
    pad_id: int,
) -> Path:
    """Write the folder; return where it is. See `Exports.delphi`."""
    wanted, d_sae = chosen(files, features), files.d_sae
    if type(n_splits) is not int or not 1 <= n_splits <= d_sae:
        raise BadExport(f"n_splits={n_splits!r}: an integer from 1 to {d_sae} is allowed")
    if "/" in module or module in {"", ".", ".."}:
        raise BadExport(f"module={module!r}: a name that a folder can have is needed")
    counted = n_active(files, wanted)
    numbers, tokens = _tokens(files, wanted, pad_id)
    bounds = np.linspace(0, d_sae, n_splits + 1).astype(np.int64)
    n_missing = 0
    with new_folder(path) as (final, staged):
        folder = staged / module
        folder.mkdir()
        for start, stop in itertools.pairwise(bounds):
            some = [feature for feature in wanted if start <= feature < stop]
            places = _places(files, some)
            n_missing += _check(places["feature"], some, counted, incomplete=incomplete)
            row = np.searchsorted(numbers, places["context"])
            where = np.stack([row, places["pos"], places["feature"] - start], axis=1)
            data = {"locations": _narrow(where), "activations": places["act"]}
            save_file(data | {"tokens": tokens}, folder / f"{start}_{stop - 1}.safetensors")
        config = _config(files, tokens, n_splits=n_splits, n_missing=n_missing)
        (folder / "config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    return final


def _tokens(
    files: ResultFiles, features: Sequence[int], pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the contexts that hold examples, and their tokens as rows."""
    found = contexts_of(files, features)
    if not found:
        raise BadExport("the features chosen have no example: there is nothing to export")
    width = max(len(ids) for _, ids in found)
    tokens = np.full((len(found), width), pad_id, dtype=np.int32)
    for row, (_, ids) in zip(tokens, found, strict=True):
        row[: len(ids)] = ids
    return np.array([number for number, _ in found], dtype=np.int64), tokens


def _places(files: ResultFiles, features: Sequence[int]) -> dict[str, np.ndarray]:
    if features:
        return active_tokens(files, features)
    empty = {name: np.zeros(0, dtype=np.int64) for name in ("feature", "context", "pos")}
    return empty | {"act": np.zeros(0, dtype=np.float32)}


def _check(
    feature: np.ndarray,
    features: Sequence[int],
    counted: dict[int, int],
    *,
    incomplete: bool,
) -> int:
    """Return how many features are active on more tokens than their examples hold."""
    known, n_known = np.unique(feature, return_counts=True)
    held = dict(zip(known.tolist(), n_known.tolist(), strict=True))
    missing = [each for each in features if held.get(each, 0) < counted[each]]
    if missing and not incomplete:
        first = missing[0]
        raise BadExport(
            f"feature {first} is active on {counted[first]:,} tokens and its examples hold "
            f"{held.get(first, 0):,} of them; Delphi would take the others for tokens on "
            f"which it is not active, and {len(missing)} features of this split are like it. "
            "Choose features that are known completely, launch with a larger top_k and "
            "window, or type incomplete=True and take no non-activating examples from it"
        )
    return len(missing)


def _narrow(where: np.ndarray) -> np.ndarray:
    largest = int(where.max(initial=0))
    return where.astype(np.uint16 if largest < 2**16 else np.uint32)


def _config(
    files: ResultFiles, tokens: np.ndarray, *, n_splits: int, n_missing: int
) -> dict[str, Any]:
    manifest = files.manifest
    return {
        "model_name": manifest["training"]["model"]["source"],
        "cache_ctx_len": tokens.shape[1],
        "ctx_len": tokens.shape[1],
        "n_tokens": int(tokens.size),
        "n_splits": n_splits,
        "extraction_kit": {
            "holds": "contexts of examples; activations in the windows of examples",
            "n_incomplete_latents": n_missing,
            "result_digest": manifest["result_digest"],
            "kit_version": manifest.get("kit_version"),
        },
    }
