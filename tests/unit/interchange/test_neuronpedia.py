"""What Neuronpedia's importer does with our folder, done here field by field.

The schema is that of the reader: `apps/webapp/prisma/schema.prisma` at ebb8426f. `load`
does to a file what `lib/db/import.ts` does: the columns of the first line decide.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from extraction_kit.errors import BadExport, UnknownFeature
from extraction_kit.interchange import Exports
from extraction_kit.results import bin_edges

NAMES = {"model_id": "tiny", "source_set": "res-48"}
STRINGS, NUMBERS, INTS = (list, str), (list, float), (list, int)
NEURON = {  # column: type; all of these may be absent but for the first three
    "modelId": str, "layer": str, "index": str, "sourceSetName": str, "creatorId": str,
    "maxActApprox": float, "frac_nonzero": float,
    "topkCosSimIndices": INTS, "topkCosSimValues": NUMBERS,
    "pos_str": STRINGS, "pos_values": NUMBERS, "neg_str": STRINGS, "neg_values": NUMBERS,
    "freq_hist_data_bar_values": NUMBERS, "freq_hist_data_bar_heights": INTS,
}  # fmt: skip
ACTIVATION = {
    "id": str, "tokens": STRINGS, "index": str, "layer": str, "modelId": str,
    "creatorId": str, "maxValue": float, "maxValueTokenIndex": int, "minValue": float,
    "values": NUMBERS, "binMin": float, "binMax": float, "binContains": float,
    "qualifyingTokenIndex": int,
}  # fmt: skip
EXPLANATION = {  # all of these are required and have no default in the database
    "id": str, "modelId": str, "layer": str, "index": str, "description": str,
    "authorId": str,
}  # fmt: skip
MAY_BE_NULL = {
    "binMin",
    "binMax",
    "binContains",
    "sourceSetName",
    "creatorId",
    "maxActApprox",
}
# Prisma refuses a field that it does not know, and a required one that is absent.
REQUIRED = {
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "sourceset": {"modelId", "name", "creatorId", "description", "creatorName"},
    "source": {"id", "modelId", "setName", "creatorId"},
}
KNOWN = {
    "model": REQUIRED["model"]
    | {"displayNameShort", "displayName", "dimension", "visibility"},
    "sourceset": REQUIRED["sourceset"] | {"visibility", "urls", "releaseName", "type"},
    "source": REQUIRED["source"]
    | {"visibility", "num_prompts", "num_tokens_in_prompt", "dataset", "notes"},
}


def fits(value, kind):
    if isinstance(kind, tuple):
        return isinstance(value, list) and all(fits(each, kind[1]) for each in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def load(path, schema):
    """Return the rows that end up in the table, or fail where the import would."""
    text = gzip.decompress(path.read_bytes()).decode()
    lines = text.strip().split("\n")
    columns = [name for name in json.loads(lines[0]) if name in schema]
    rows = []
    for line in lines:
        row = {name: json.loads(line).get(name) for name in columns}
        for name, value in row.items():
            assert (value is None and name in MAY_BE_NULL) or fits(value, schema[name]), (
                name
            )
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def root(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("np") / "exports"
    assert run.export.neuronpedia(path, **NAMES) == path
    return path / "tiny" / "1-res-48"


@pytest.fixture(scope="module")
def neurons(root):
    return load(root / "features" / "batch-0.jsonl.gz", NEURON)


@pytest.fixture(scope="module")
def activations(root):
    return load(root / "activations" / "batch-0.jsonl.gz", ACTIVATION)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_the_rows_about_model_and_source_are_ones_that_prisma_takes(root, name):
    [line] = (root / f"{name}.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row.keys() >= REQUIRED[name]
    assert row.keys() <= KNOWN[name]
    assert None not in row.values()


def test_every_feature_is_a_row_that_names_its_source(root, neurons, run):
    source = json.loads((root / "source.jsonl").read_text())
    sourceset = json.loads((root / "sourceset.jsonl").read_text())
    assert [row["index"] for row in neurons] == [str(i) for i in range(48)]
    for row in neurons:
        assert (row["modelId"], row["layer"]) == (source["modelId"], source["id"])
        assert row["sourceSetName"] == sourceset["name"] == source["setName"]
    assert source["num_prompts"] == run.summary["n_contexts"]


def test_the_numbers_of_a_feature_are_the_runs(neurons, run):
    features = run.features().df()
    for row, mine in zip(neurons, features.itertuples(), strict=True):
        assert np.float32(row["maxActApprox"]) == np.float32(mine.max_act)
        assert row["frac_nonzero"] == mine.density
        assert sum(row["freq_hist_data_bar_heights"]) == mine.n_active
    logits = run.logits(3, sign="bottom").fetchall()
    assert neurons[3]["neg_str"] == [each[4] for each in logits]
    assert neurons[3]["neg_values"] == pytest.approx([each[5] for each in logits], rel=1e-6)
    near = run.similar(3).fetchall()
    assert neurons[3]["topkCosSimIndices"] == [each[3] for each in near]


def test_bars_lie_where_the_activations_are(neurons, run):
    edges = bin_edges()
    for feature in range(47):
        hist, row = run.histogram(feature), neurons[feature]
        width = row["freq_hist_data_bar_values"][0] * 2
        heights = np.array(row["freq_hist_data_bar_heights"])
        below = np.concatenate([[0], np.cumsum(hist)])
        for number, got in enumerate(np.cumsum(heights), start=1):
            # the count below an edge lies between those at the edges of our bin around it
            at = np.searchsorted(edges, number * width * (1 - 1e-6), side="right") - 1
            assert below[at] <= got <= below[at + 1]


def test_activations_are_the_windows_with_their_peak(activations, run):
    mine = [row for row in activations if row["index"] == "3"]
    windows = [
        window
        for group in ("top", "band_1", "band_2", "band_3", "band_4")
        for window in run.windows(3, k=1000, group=group)
    ]
    assert len(mine) == len(windows) > 20
    for row, window in zip(mine, windows, strict=True):
        assert row["tokens"] == window.tokens
        assert np.array_equal(np.float32(row["values"]), np.float32(window.acts))
        assert row["values"][row["maxValueTokenIndex"]] == row["maxValue"]
        assert row["maxValue"] == max(row["values"])
        assert row["minValue"] == min(row["values"])
        assert row["qualifyingTokenIndex"] == row["maxValueTokenIndex"]
    bands = [row for row in mine if row["binMin"] != -1]
    assert bands
    assert all(row["binMin"] <= row["maxValue"] <= row["binMax"] for row in bands)
    assert all(row["binContains"] is None for row in bands)


def test_importing_twice_adds_nothing_and_other_names_clash_with_nothing(
    activations, run, tmp_path
):
    ids = [row["id"] for row in activations]
    assert len(set(ids)) == len(ids)
    other = run.export.neuronpedia(tmp_path / "b", model_id="tiny", source_set="other")
    path = other / "tiny" / "1-other" / "activations" / "batch-0.jsonl.gz"
    assert not {row["id"] for row in load(path, ACTIVATION)} & set(ids)
    again = run.export.neuronpedia(tmp_path / "c", **NAMES)
    path = again / "tiny" / "1-res-48" / "activations" / "batch-0.jsonl.gz"
    assert [row["id"] for row in load(path, ACTIVATION)] == ids


def test_labels_are_explanations_by_a_person(run, root, tmp_path):
    assert not (root / "explanations").exists()  # a file without a line stops the import
    labels = {2: ("dates", "of\nhistory"), 5: (None, "colons"), 7: ("not asked for", None)}
    exports = Exports(run.export._files, labels=lambda: labels)
    first, second = (
        exports.neuronpedia(tmp_path / name, **NAMES, features=[5, 1, 2]) for name in "ab"
    )
    file = Path("tiny", "1-res-48", "explanations", "batch-0.jsonl.gz")
    rows = load(first / file, EXPLANATION)
    assert {row["index"]: row["description"] for row in rows} == {
        "2": "dates: of\nhistory",
        "5": "colons",
    }
    [neuron, *_] = load(root / "features" / "batch-0.jsonl.gz", NEURON)
    for row in rows:
        assert row.keys() == EXPLANATION.keys()
        assert (row["modelId"], row["layer"]) == (neuron["modelId"], neuron["layer"])
        assert row["authorId"] == neuron["creatorId"]
    assert len({row["id"] for row in rows}) == len(rows)
    assert load(second / file, EXPLANATION) == rows


def test_a_dead_feature_alone_makes_no_file_that_stops_the_import(run, tmp_path):
    path = run.export.neuronpedia(tmp_path / "dead", **NAMES, features=[47])
    folder = path / "tiny" / "1-res-48"
    [row] = load(folder / "features" / "batch-0.jsonl.gz", NEURON)
    assert row["freq_hist_data_bar_heights"] == []
    assert list((folder / "activations").iterdir()) == []


def test_hostile_tokens_stay_one_line_each(hostile, tmp_path):
    path = hostile.export.neuronpedia(tmp_path / "np", **NAMES, features=[3])
    file = path / "tiny" / "1-res-48" / "activations" / "batch-0.jsonl.gz"
    assert load(file, ACTIVATION)[0]["tokens"] == hostile.windows(3, k=1)[0].tokens


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model_id": "a/b"}, "model_id='a/b'"),
        ({"source_set": "a__b"}, "without '__'"),
        ({"layer": -1}, "layer=-1"),
        ({"features": []}, "is empty"),
        ({"features": 3}, r"features=\[3\]"),
    ],
)
def test_what_the_reader_could_not_read_is_refused(run, tmp_path, options, words):
    with pytest.raises(BadExport, match=words):
        run.export.neuronpedia(tmp_path / "np", **(NAMES | options))
    assert list(tmp_path.iterdir()) == []


def test_a_feature_outside_the_sae_is_refused_and_leaves_nothing(run, tmp_path):
    with pytest.raises(UnknownFeature, match="from 0 to 47"):
        run.export.neuronpedia(tmp_path / "np", **NAMES, features=[0, 48])
    assert list(tmp_path.iterdir()) == []
