"""circuit-tracer's feature files: one JSON file per feature.

Read in decoderesearch/circuit-tracer (formerly safety-research) at commit 4bb8c0ea:
``circuit_tracer/frontend/feature_models.py`` (fields and types),
``frontend/assets/feature_examples/init-feature-examples.js`` (a graph whose ``scan`` begins
with ``./`` loads ``<scan>/<number>.json``), ``init-feature-examples-list.js`` and
``attribution_graph/render-act-histogram.js`` (what is drawn), ``frontend/graph_models.py``
(a feature's number pairs layer and index after Cantor), ``frontend/local_server.py``.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from extraction_kit.catalog.arrays import quantile
from extraction_kit.catalog.bulk import FeatureRecord, ResultFiles, chosen, records
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.interchange.histograms import band, equal_bins
from extraction_kit.interchange.writing import new_folder, short
from extraction_kit.results import GROUPS

N_BARS = 50
_TITLES = {"top": "Top activations", "random": "Random", "silent": "Silent"}


def write(
    files: ResultFiles,
    path: Path | str,
    *,
    layer: int,
    transcoder_id: str,
    features: Iterable[SupportsIndex] | None,
) -> Path:
    """Write the folder; return where it is. See `Exports.circuit_tracer`."""
    wanted = chosen(files, features)
    with new_folder(path) as (final, staged):
        for batch in records(files, wanted):
            for record, quantiles in zip(batch, _quantiles(batch), strict=True):
                name = f"{number_of(layer, record.feature)}.json"
                made = _feature(record, quantiles, transcoder_id)
                text = json.dumps(made, allow_nan=False)
                (staged / name).write_text(text, encoding="utf-8")
    return final


def number_of(layer: int, feature: int) -> int:
    """Return the number of a feature in a graph: Cantor's pairing of layer and index."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def _feature(
    record: FeatureRecord, quantiles: list[float], transcoder_id: str
) -> dict[str, Any]:
    max_act = float(record.row["max_act"])
    logits = record.logits or {"top": [], "bottom": []}
    return {
        "transcoder_id": transcoder_id,
        "index": record.feature,
        "examples_quantiles": list(_groups(record)),
        "top_logits": [text for text, _ in logits["top"]],
        "bottom_logits": [text for text, _ in logits["bottom"]],
        "act_min": 0.0,
        "act_max": short(max_act),
        "quantile_values": quantiles,
        "histogram": equal_bins(record.hist, max_act, N_BARS).tolist()
        if record.hist.any()
        else [],
        "activation_frequency": record.row["density"],
    }


def _quantiles(batch: Sequence[FeatureRecord]) -> Iterator[list[float]]:
    """Yield the 1 % to 100 % quantiles over active tokens, within 1/8 octave; [] if dead."""
    hist = np.stack([record.hist for record in batch])
    largest = np.array([record.row["max_act"] for record in batch], dtype=np.float32)
    found = np.stack(
        [quantile(hist, largest, percent) for percent in range(1, 101)], axis=1
    )
    for row, counts in zip(found, hist, strict=True):
        yield _short(row.tolist()) if counts.any() else []


def _groups(record: FeatureRecord) -> Iterator[dict[str, Any]]:
    seen: set[tuple[int, ...]] = set()
    for group in GROUPS:
        if record.windows[group]:
            yield {
                "quantile_name": _title(group, float(record.row["max_act"])),
                "examples": [_example(each, seen) for each in record.windows[group]],
            }


def _title(group: str, max_act: float) -> str:
    if group in _TITLES:
        return _TITLES[group]
    low, high = band(int(group.removeprefix("band_")), max_act)
    return f"Peak from {low:.3g} to {high:.3g}"


def _example(window: ExampleWindow, seen: set[tuple[int, ...]]) -> dict[str, Any]:
    ids = tuple(window.token_ids)
    repeated = ids in seen
    seen.add(ids)
    return {
        "tokens": window.tokens,
        "tokens_acts_list": _short(window.acts),
        "train_token_ind": window.pos - window.start,
        "is_repeated_datapoint": repeated,
    }


def _short(values: Sequence[float]) -> list[float]:
    return [short(value) for value in values]
