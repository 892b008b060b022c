"""Neuronpedia's import folder: gzipped JSON lines of features and activations.

Read in hijohnnylin/neuronpedia at commit ebb8426f: ``apps/webapp/app/api/admin/import/
route.ts`` (the tree of files and their order), ``apps/webapp/lib/db/import.ts`` (columns are
those of the *first* line of a file; a file without a line stops the import; a known id is
skipped), ``apps/webapp/prisma/schema.prisma`` (columns, types, what may be absent),
``apps/webapp/components/feature-stats.tsx`` and ``activations-list.tsx`` (histogram,
intervals), ``utils/neuronpedia-utils/neuronpedia_utils/
convert-saedashboard-to-neuronpedia-export.py`` (the values that Neuronpedia's own converter
writes where a column is required that says nothing of an SAE), ``apps/webapp/lib/db/
explanation.ts`` (the columns of an explanation that a person writes).
"""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from extraction_kit.catalog.bulk import FeatureRecord, ResultFiles, chosen, has, records
from extraction_kit.catalog.listing import Labels, Said
from extraction_kit.catalog.tables import LOGITS, NEIGHBOURS
from extraction_kit.errors import BadExport
from extraction_kit.interchange.histograms import band, equal_bins, middles
from extraction_kit.interchange.writing import new_folder, short
from extraction_kit.results import N_BANDS

CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""User that a Neuronpedia of one's own is seeded with."""
GROUPS = ("top", *(f"band_{i}" for i in range(1, N_BANDS + 1)))
N_BARS = 50
_TOP = -1.0  # binMin and binContains of the top activations


@dataclass(frozen=True, kw_only=True)
class Source:
    """Under which names an SAE appears on Neuronpedia."""

    model_id: str
    source_set: str
    layer: int
    creator_id: str
    creator_name: str
    description: str

    def __post_init__(self) -> None:
        """Refuse names that the reader would take apart otherwise."""
        if not re.fullmatch(r"[a-zA-Z0-9_-]+", self.model_id):
            raise BadExport(
                f"model_id={self.model_id!r}: letters, digits, '_' and '-' are allowed, for "
                "example 'gemma-2-2b'"
            )
        if not re.fullmatch(r"[a-zA-Z0-9._-]+", self.source_set) or "__" in self.source_set:
            raise BadExport(
                f"source_set={self.source_set!r}: letters, digits, '.', '_' and '-' without "
                "'__' are allowed, for example 'res-16k'; the layer is put before it"
            )

    @property
    def source_id(self) -> str:
        """The layer and the set: ``9-res-16k``."""
        return f"{self.layer}-{self.source_set}"


def write(
    files: ResultFiles,
    path: Path | str,
    *,
    source: Source,
    features: Iterable[SupportsIndex] | None,
    labels: Labels,
) -> Path:
    """Write the folder; return where it is. See `Exports.neuronpedia`."""
    wanted = chosen(files, features)
    with new_folder(path) as (final, staged):
        folder = staged / source.model_id / source.source_id
        for name in ("features", "activations"):
            (folder / name).mkdir(parents=True)
        for name, row in _about(files.manifest, source).items():
            (folder / f"{name}.jsonl").write_text(_line(row), encoding="utf-8")
        key = str(files.manifest["result_digest"])
        with_logits, with_near = has(files, LOGITS), has(files, NEIGHBOURS, "decoder")
        for number, batch in enumerate(records(files, wanted, groups=GROUPS)):
            name = f"batch-{number}.jsonl.gz"
            rows = [_feature(record, source) for record in batch]
            _drop(rows, with_logits=with_logits, with_near=with_near)
            _write_lines(folder / "features" / name, rows)
            activations = [row for each in batch for row in _activations(each, source, key)]
            if activations:  # a file without a line stops the import
                _write_lines(folder / "activations" / name, activations)
        said = [_explanation(i, labels[i], source) for i in wanted if i in labels]
        if said:
            (folder / "explanations").mkdir()
            _write_lines(folder / "explanations" / "batch-0.jsonl.gz", said)
    return final


def _about(manifest: Mapping[str, Any], source: Source) -> dict[str, dict[str, Any]]:
    """Return the rows that name model, set and source; dates are the database's."""
    model = manifest["training"]["model"]
    corpus = manifest["corpus"]
    common = {"creatorId": source.creator_id, "visibility": "PUBLIC"}
    return {
        "model": common
        | {
            "id": source.model_id,
            "displayNameShort": source.model_id,
            "displayName": source.model_id,
            "dimension": model["hidden_size"],
            "layers": model["n_layers"],
            "neuronsPerLayer": 0,  # required; what Neuronpedia's own converter writes
            "owner": "",  # likewise
        },
        "sourceset": common
        | {
            "modelId": source.model_id,
            "name": source.source_set,
            "description": source.description,
            "creatorName": source.creator_name,
        },
        "source": common
        | {
            "id": source.source_id,
            "modelId": source.model_id,
            "setName": source.source_set,
            "num_prompts": corpus["n_contexts"],
            "num_tokens_in_prompt": corpus["context_size"],
            "dataset": str(corpus["source"]),
            "notes": f"extraction_kit {manifest.get('kit_version')}, "
            f"result {manifest['result_digest']}, {corpus['n_tokens']} tokens counted",
        },
    }


def _feature(record: FeatureRecord, source: Source) -> dict[str, Any]:
    max_act = float(record.row["max_act"])
    fired = bool(record.hist.any())
    logits = record.logits or {"top": [], "bottom": []}
    bars = [short(each) for each in middles(max_act, N_BARS)] if fired else []
    return {
        "modelId": source.model_id,
        "layer": source.source_id,
        "index": str(record.feature),
        "sourceSetName": source.source_set,
        "creatorId": source.creator_id,
        "maxActApprox": short(max_act),
        "frac_nonzero": record.row["density"],
        "topkCosSimIndices": [other for other, _ in record.nearest or ()],
        "topkCosSimValues": [short(cosine) for _, cosine in record.nearest or ()],
        "pos_str": [text for text, _ in logits["top"]],
        "pos_values": [short(value) for _, value in logits["top"]],
        "neg_str": [text for text, _ in logits["bottom"]],
        "neg_values": [short(value) for _, value in logits["bottom"]],
        "freq_hist_data_bar_values": bars,
        "freq_hist_data_bar_heights": equal_bins(record.hist, max_act, N_BARS).tolist()
        if fired
        else [],
    }


def _drop(rows: Sequence[dict[str, Any]], *, with_logits: bool, with_near: bool) -> None:
    """Leave out what the run did not measure, from all lines of a file alike."""
    for row in rows:
        for name in list(row):
            if (name.startswith(("pos_", "neg_")) and not with_logits) or (
                name.startswith("topkCosSim") and not with_near
            ):
                del row[name]


def _activations(
    record: FeatureRecord, source: Source, key: str
) -> Iterator[dict[str, Any]]:
    for number, group in enumerate(GROUPS):
        if not record.windows[group]:
            continue
        max_act = short(record.row["max_act"])
        # the share of tokens in an octave is not counted: absent
        low, high, share = (
            (*band(number, max_act), None) if number else (_TOP, max_act, _TOP)
        )
        for window in record.windows[group]:
            yield {
                "id": _id(source, key, record.feature, group, window.rank),
                "modelId": source.model_id,
                "layer": source.source_id,
                "index": str(record.feature),
                "creatorId": source.creator_id,
                "tokens": window.tokens,
                "values": [short(act) for act in window.acts],
                "maxValue": short(window.act),
                "maxValueTokenIndex": window.pos - window.start,
                "minValue": short(min(window.acts)),
                "qualifyingTokenIndex": window.pos - window.start,
                "binMin": low,
                "binMax": high,
                "binContains": share,
            }


def _explanation(feature: int, label: Said, source: Source) -> dict[str, Any]:
    """Return a label as the explanation of a person: without a method and a model."""
    text = ": ".join(filter(None, label))
    return {
        "id": _id(source, "label", feature, text),
        "modelId": source.model_id,
        "layer": source.source_id,
        "index": str(feature),
        "description": text,
        "authorId": source.creator_id,
    }


def _id(source: Source, *what: str | int) -> str:
    """Return the same id for the same thing each time: known ones are skipped."""
    parts = (source.model_id, source.source_id, *what)
    return "xk" + hashlib.sha256(repr(parts).encode()).hexdigest()[:30]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n"


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 5, raw, mtime=0) as file:
        for row in rows:
            file.write(_line(row).encode())
