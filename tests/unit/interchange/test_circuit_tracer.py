"""Our files as circuit-tracer's page reads them: fields of `feature_models.py` at 4bb8c0ea."""

import json
import math

import numpy as np
import pytest

from extraction_kit.interchange.circuit_tracer import number_of

STRINGS, NUMBERS = (list, str), (list, float)
MODEL = {
    "transcoder_id": str, "index": int, "examples_quantiles": (list, dict),
    "top_logits": STRINGS, "bottom_logits": STRINGS, "act_min": float, "act_max": float,
    "quantile_values": NUMBERS, "histogram": NUMBERS, "activation_frequency": float,
}  # fmt: skip
QUANTILE = {"quantile_name": str, "examples": (list, dict)}
EXAMPLE = {
    "tokens": STRINGS, "tokens_acts_list": NUMBERS, "train_token_ind": int,
    "is_repeated_datapoint": bool,
}  # fmt: skip


def check(value, schema):
    assert value.keys() == schema.keys()
    for name, kind in schema.items():
        values = value[name] if isinstance(kind, tuple) else [value[name]]
        kind = kind[1] if isinstance(kind, tuple) else kind  # noqa: PLW2901 - of one value
        allowed = (int, float) if kind is float else (kind,)
        assert all(type(each) in allowed for each in values), name
    return value


def unpaired(number):
    """Return layer and index, as the page's `cantorUnpair` finds them."""
    both = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - both * (both + 1) // 2
    return both - index, index


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("ct") / "features"
    assert run.export.circuit_tracer(path) == path
    return {
        unpaired(int(file.stem)): check(json.loads(file.read_text()), MODEL)
        for file in path.iterdir()
    }


def test_a_file_is_found_by_the_number_that_a_graph_gives_the_feature(files):
    assert files.keys() == {(1, feature) for feature in range(48)}
    assert all(made["index"] == feature for (_, feature), made in files.items())
    assert unpaired(number_of(25, 16383)) == (25, 16383)


def test_examples_are_the_runs_groups(files, run):
    made = files[1, 3]
    groups = [check(each, QUANTILE) for each in made["examples_quantiles"]]
    assert groups[0]["quantile_name"] == "Top activations"
    for group in groups[1:]:
        if group["quantile_name"].startswith("Peak"):
            _, _, low, _, high = group["quantile_name"].split()
            for each in group["examples"]:
                peak = max(each["tokens_acts_list"])
                assert float(low) <= peak <= float(high) + 0.01
    windows = run.windows(3, k=1000)
    assert len(groups[0]["examples"]) == len(windows)
    for example, window in zip(groups[0]["examples"], windows, strict=True):
        check(example, EXAMPLE)
        assert example["tokens"] == window.tokens
        acts = example["tokens_acts_list"]
        assert np.array_equal(np.float32(acts), np.float32(window.acts))
        assert acts[example["train_token_ind"]] == max(acts)
    # the bands draw from contexts that are among the top examples already
    bands = [
        each
        for group in groups[1:]
        for each in group["examples"]
        if max(each["tokens_acts_list"]) > 0
    ]
    assert bands
    assert all(each["is_repeated_datapoint"] for each in bands)


def test_what_is_drawn_of_the_distribution_is_the_runs(files, run):
    rows = run.features().df()
    for feature in range(47):
        made, row = files[1, feature], rows.loc[feature]
        assert made["activation_frequency"] == row.density
        assert np.float32(made["act_max"]) == np.float32(row.max_act)
        assert sum(made["histogram"]) == row.n_active
        quantiles = np.float32(made["quantile_values"])
        assert (np.diff(quantiles) >= 0).all()
        assert quantiles[49] == row.q50
        assert quantiles[89] == row.q90
        assert quantiles[99] == np.float32(row.max_act)


def test_a_dead_feature_says_so_and_invents_nothing(files):
    made = files[1, 47]
    assert made["activation_frequency"] == 0
    assert made["histogram"] == made["quantile_values"] == []
    assert [each["quantile_name"] for each in made["examples_quantiles"]] in (
        [],
        ["Silent"],
    )
