"""Two results compared: of one SAE, of two SAEs of one model, of two checkpoints."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit import atomic
from extraction_kit.catalog.asking import manifest_of
from extraction_kit.catalog.comparing import side_by_side
from extraction_kit.errors import BadQuery, BadSae

if TYPE_CHECKING:
    import duckdb

MATCHES = ("auto", "number", "decoder")
_PROGRAM = "import sys; from extraction_kit.sources.matching import main; main(sys.argv[1])"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which feature of a second result belongs to each feature of a first one."""

    file: Path | None
    """Parquet with ``feature_a``, ``feature_b``, ``cosine`` of their decoder rows and, if
    they were matched by it, ``mutual``; None: the feature of the same number."""
    one_sae: bool
    """Whether both are known to be of the same weights."""
    one_model: bool
    """Whether both are known to be of the same model."""


def compare(a: Path, b: Path, *, match: str, cache: Path) -> "duckdb.DuckDBPyRelation":
    """Return two published results side by side. See `Workspace.compare`."""
    file = pair(a, b, match=match, cache=cache).file
    return side_by_side(a, b, None if file is None else _read(file))


def pair(a: Path, b: Path, *, match: str, cache: Path) -> Pairing:
    """Return which features of two published results belong together.

    Parameters
    ----------
    a, b : Path
        Folders of the results.
    match : str
        As in `Workspace.compare`.
    cache : Path
        Where matches of decoders are kept.

    Raises
    ------
    BadQuery
        They cannot be compared; the message says why.
    BadSae
        The weights of an SAE are not where they were registered, or are damaged.
    """
    if match not in MATCHES:
        known = ", ".join(map(repr, MATCHES))
        raise BadQuery(f"match={match!r}: one of {known} is allowed")
    trainings = [manifest_of(folder)["training"] for folder in (a, b)]
    specs = [training["sae"] for training in trainings]
    models = [training["model"] for training in trainings]
    one_sae, one_model = _identical(*specs), _identical(*models)
    if not all(spec["digest"] for spec in specs):
        _check_objects(specs, match=match)
        return Pairing(file=None, one_sae=False, one_model=one_model)
    if one_sae and match != "decoder":
        return Pairing(file=None, one_sae=one_sae, one_model=one_model)
    _check(specs, models, match=match)
    file = _pairs(specs[0], specs[1], by_number=match == "number", cache=cache)
    return Pairing(file=file, one_sae=one_sae, one_model=one_model)


def _identical(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return bool(a["digest"]) and a["digest"] == b["digest"]


def _check_objects(specs: list[Mapping[str, Any]], *, match: str) -> None:
    """Refuse what cannot be told of SAEs that were objects: a person knows which they are."""
    if match != "number" or specs[0]["d_sae"] != specs[1]["d_sae"]:
        raise BadQuery(
            f"an SAE that was an object of a notebook has no identity ({specs[0]['path']} with "
            f"{specs[0]['d_sae']} features, {specs[1]['path']} with {specs[1]['d_sae']}): if "
            "both are one SAE, or checkpoints of one, type match='number'"
        )


def _check(
    specs: list[Mapping[str, Any]], models: list[Mapping[str, Any]], *, match: str
) -> None:
    if not _same(*models):
        raise BadQuery(
            f"the runs are of different models ({models[0]['source']} and "
            f"{models[1]['source']}): decoder rows of two models have no common directions. "
            "Compare runs of one model"
        )
    widths = [spec["d_out"] or spec["d_in"] for spec in specs]
    if widths[0] != widths[1]:
        raise BadQuery(
            f"the decoder rows are {widths[0]} and {widths[1]} wide: compare SAEs that write "
            "to places of one width"
        )
    if match == "number" and specs[0]["d_sae"] != specs[1]["d_sae"]:
        raise BadQuery(
            f"match='number' needs SAEs of one size, for example two checkpoints; these have "
            f"{specs[0]['d_sae']} and {specs[1]['d_sae']} features: type match='decoder'"
        )
    for spec in specs:
        if spec["architecture"] == "custom":
            raise BadQuery(
                f"the SAE {spec['path']} is code of your own, whose decoder rows cannot be "
                "read: compare its runs with each other, or register its weights"
            )


def _same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Tell whether two models are one; of an object only its shape is known."""
    if a["digest"] and b["digest"]:
        return bool(a["digest"] == b["digest"])
    shape = ("model_type", "hidden_size", "n_layers", "vocab_size")
    return all(a[name] == b[name] for name in shape)


def _pairs(
    a: Mapping[str, Any], b: Mapping[str, Any], *, by_number: bool, cache: Path
) -> Path:
    """Return the file of `Pairing`; weights never change, so it is kept."""
    kind = "number" if by_number else "decoder"
    path = cache / "matches" / f"{a['digest'][:24]}-{b['digest'][:24]}-{kind}.parquet"
    if not _is_whole(path):
        asked = json.dumps({"a": dict(a), "b": dict(b), "by_number": by_number})

        def write(target: Path) -> None:
            table = _table(_matched(asked), by_number=by_number)
            pq.write_table(table, target, write_page_checksum=True)

        atomic.write_file(path, write)
    return path


def _read(path: Path) -> pa.Table:
    return pq.read_table(path, page_checksum_verification=True)


def _is_whole(path: Path) -> bool:
    """Tell whether matches are kept, as they were found: else they are found again."""
    try:
        _read(path)
    except (OSError, pa.ArrowException, ValueError):
        return False
    return True


def _table(found: Mapping[str, np.ndarray], *, by_number: bool) -> pa.Table:
    feature = np.arange(len(found["cosine"]), dtype=np.int32)
    other = feature if by_number else found["other"].astype(np.int32)
    columns = {"feature_a": feature, "feature_b": other, "cosine": found["cosine"]}
    if not by_number:
        columns["mutual"] = found["back"][found["other"]] == feature
    return pa.table(columns)


def _matched(asked: str) -> Mapping[str, np.ndarray]:
    """Return what `sources.matching` finds."""
    with tempfile.TemporaryDirectory(prefix="extraction_kit-") as folder:
        path = Path(folder) / "found.npz"
        _run(asked, path)
        with np.load(path) as found:
            return dict(found)


def _run(asked: str, target: Path) -> None:
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", _PROGRAM, str(target)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        input=asked,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = next(iter(done.stderr.strip().splitlines()[::-1]), "no message")
        raise BadSae(f"the decoders cannot be compared: {last}")
