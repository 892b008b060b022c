"""The published columns say what the activations say."""

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest

from extraction_kit.catalog.arrays import (
    examples_table,
    features_table,
    flat_table,
    histograms_table,
    quantile,
    rows_table,
)
from extraction_kit.catalog.tables import (
    CATALOG,
    EVENTS,
    FEATURES,
    FLAT_TABLES,
    LEDGER_TABLES,
    LOGITS,
    NEIGHBOURS,
    RUNS,
)
from extraction_kit.lifecycle import RunState
from extraction_kit.results import (
    N_BINS,
    TABLE_KEYS,
    bin_edges,
    joined_tables,
    result_digest,
)
from tests.unit.synthetic import DEAD, synthetic


def active_of(made, feature):
    column = made.acts[:, :, feature].astype(np.float64)
    return column[column > 0]


def test_derived_columns_equal_numpys():
    made = synthetic()
    rows = features_table(made.result).to_pylist()
    for row in rows:
        active = active_of(made, row["feature"])
        if row["feature"] == DEAD:
            continue
        assert row["n_active"] == len(active)
        assert row["density"] == len(active) / made.tokens.size
        assert row["context_density"] == row["n_contexts"] / len(made.tokens)
        assert row["mean_act"] == pytest.approx(active.mean(), rel=1e-12)
        assert row["std_act"] == pytest.approx(active.std(), rel=1e-9)
        assert row["max_act"] == active.max()
        assert not row["dead"]


def test_quantiles_are_within_one_bin_and_never_above_the_maximum():
    made = synthetic(n_contexts=200)
    for row in features_table(made.result).to_pylist():
        active = active_of(made, row["feature"])
        for percent in (50, 90, 99):
            if row["feature"] == DEAD:
                continue
            true = np.quantile(active, percent / 100, method="inverted_cdf")
            assert row[f"q{percent}"] == pytest.approx(true, rel=2**0.125 - 1, abs=2**-10)
            assert row[f"q{percent}"] <= row["max_act"]


def test_a_quantile_beyond_the_last_edge_stays_below_the_maximum():
    histogram = np.zeros((1, N_BINS), np.int64)
    histogram[0, -1] = 3
    maximum = np.array([5000.0], np.float32)
    assert bin_edges()[-2] < quantile(histogram, maximum, 50)[0] <= 5000
    assert quantile(histogram, maximum, 99)[0] == 5000


def test_the_rank_of_a_quantile_is_exact():
    # 0.07 * 100 is 7.000000000000001 in floats; the 7th of 100 is in the first bin used
    histogram = np.zeros((1, N_BINS), np.int64)
    histogram[0, 10], histogram[0, 20] = 7, 93
    assert quantile(histogram, np.array([9.0], np.float32), 7)[0] <= bin_edges()[11]


def test_a_dead_feature_has_no_mean_no_deviation_and_no_quantiles():
    row = features_table(synthetic().result).to_pylist()[DEAD]
    assert row["dead"]
    assert row["density"] == 0
    names = ("mean_act", "std_act", "q50", "q90", "q99")
    assert [row[name] for name in names] == [None] * 5
    assert (row["max_context"], row["max_pos"]) == (-1, -1)


def test_a_constant_feature_has_deviation_zero_in_spite_of_rounding():
    made = synthetic()
    given = dict(made.result.features)
    given["sum_act"] = given["n_active"] * 0.1
    given["sum_sq_act"] = given["n_active"] * 0.1 * 0.1 * (1 - 1e-15)
    result = type(made.result)(**{**vars(made.result), "features": given})
    values = features_table(result)["std_act"].drop_null().to_numpy()
    assert (values >= 0).all()
    assert values.max() < 1e-8


def test_columns_from_the_weights_are_null_if_absent_and_kept_if_unknown():
    made = synthetic()
    given = {**made.result.features, "novel": np.arange(16)}
    table = features_table(type(made.result)(**{**vars(made.result), "features": given}))
    assert table["encoder_norm"].null_count == 16
    assert table["decoder_norm"].null_count == 0
    assert table.column_names == [*FEATURES.schema.names, "novel"]


def test_histograms_and_examples_are_the_arrays():
    made = synthetic()
    assert (
        histograms_table(made.result)["hist"].to_pylist() == made.result.histograms.tolist()
    )
    table, given = examples_table(made.result), made.result.examples
    assert set(table["group"].to_pylist()) == {"top"}
    assert table["act"].to_numpy().tolist() == given.act.tolist()
    last = slice(given.offsets[-2], given.offsets[-1])
    assert table["act_val"][-1].as_py() == given.act_val[last].tolist()
    assert table["act_off"][-1].as_py() == given.act_off[last].tolist()


def neighbours(kind, others, *, n_both):
    n = len(others)
    return {
        "neighbours": {
            "feature": np.arange(n, dtype=np.int32),
            "kind": np.full(n, kind, np.int8),
            "rank": np.zeros(n, np.int16),
            "other": np.array(others, np.int32),
            "value": np.linspace(0, 1, n, dtype=np.float32),
            "n_both": np.array(n_both, np.int64),
        }
    }


def with_tables(made, tables):
    return type(made.result)(**{**vars(made.result), "tables": tables})


@pytest.mark.parametrize("table", FLAT_TABLES, ids=lambda table: table.name)
def test_a_table_without_rows_has_its_columns(table):
    assert flat_table(table, synthetic().result).schema == table.schema
    assert TABLE_KEYS[table.name] == tuple(
        table.schema.names[: len(TABLE_KEYS[table.name])]
    )


def test_rows_from_several_places_are_sorted_and_kinds_have_names():
    parts = neighbours(1, [5, 6], n_both=[7, 8]), neighbours(0, [3, 4], n_both=[-1, -1])
    result = with_tables(synthetic(), joined_tables(*parts))
    rows = flat_table(NEIGHBOURS, result).to_pylist()
    columns = ("feature", "kind", "other", "n_both")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        (0, "decoder", 3, None),
        (0, "coactivation", 5, 7),
        (1, "decoder", 4, None),
        (1, "coactivation", 6, 8),
    ]
    assert flat_table(LOGITS, result).num_rows == 0


def test_the_digest_covers_the_integers_of_the_tables_and_not_their_values():
    made = synthetic()
    first = neighbours(1, [5, 6], n_both=[7, 8])
    digests = [result_digest(made.result), result_digest(with_tables(made, first))]
    for name in first["neighbours"]:
        changed = {**first["neighbours"], name: first["neighbours"][name] + 1}
        digests.append(result_digest(with_tables(made, {"neighbours": changed})))
    assert len(set(digests)) == len(digests) - 1
    assert digests[1] == digests[2 + list(first["neighbours"]).index("value")]


def test_a_table_that_nobody_would_write_is_refused():
    with pytest.raises(ValueError, match="logits, neighbours, tokens are known"):
        with_tables(synthetic(), {"nieghbours": {}})


@pytest.mark.parametrize("table", LEDGER_TABLES, ids=lambda table: table.name)
def test_types_are_the_same_without_any_row_and_with_missing_keys(table):
    assert rows_table(table, []).schema == table.schema
    filled = rows_table(table, [{}])
    assert filled.schema == table.schema
    assert set(filled.to_pylist()[0].values()) == {None}


def test_times_become_naive_utc_and_states_become_text():
    at = datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=2)))
    table = rows_table(EVENTS, [{"at": at, "seq": 1}])
    assert table["at"].to_pylist() == [datetime(2026, 1, 2, 1)]  # noqa: DTZ001 - naive UTC
    row = rows_table(RUNS, [{"state": RunState.QUEUED, "created_at": at.astimezone(UTC)}])
    assert row["state"].to_pylist() == ["queued"]


def test_every_column_says_what_it_means_once():
    for table in CATALOG:
        names = [column.name for column in table.columns]
        assert len(set(names)) == len(names)
        assert all(column.meaning for column in table.columns)
        assert isinstance(table.schema, pa.Schema)
