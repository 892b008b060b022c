"""A list of features is one SELECT: what it says is what is shown, and nothing else is asked."""

import pytest

from extraction_kit.catalog import sorted_file
from extraction_kit.catalog.listing import MEASURES, Listing, Named
from extraction_kit.catalog.sorted_file import SortedFile
from extraction_kit.catalog.tables import EXAMPLES
from extraction_kit.errors import BadQuery, ResultsDamaged
from tests.results_to_browse import DEAD, LOUD, write_result


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("result") / "a[1]*'b")


@pytest.fixture(scope="module")
def table(result):
    """All features as dicts, in order."""
    found = result.features()
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def listed(result, **choices):
    browsed = result._browsed()
    query = Listing(**choices).sql(browsed.names, labelled=False)
    return [row[0] for row in browsed.ask(query).fetchall()]


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_sorts_and_what_is_absent_comes_last(result, table, measure):
    for descending in (False, True):
        found = listed(result, sort=measure, measure=measure, descending=descending)
        sign = -1 if descending else 1
        known = [row for row in table if row[measure] is not None]
        absent = [row["feature"] for row in table if row[measure] is None]
        known.sort(key=lambda row: (sign * row[measure], row["feature"]))
        assert found == [row["feature"] for row in known] + absent


def test_ranges_are_inclusive_and_dead_features_can_be_left_out(result, table):
    low, high = table[10]["density"], table[20]["density"]
    low, high = min(low, high), max(low, high)
    assert listed(result, density=(low, high)) == [
        row["feature"] for row in table if low <= row["density"] <= high
    ]
    top = table[LOUD]["max_act"]
    assert LOUD in listed(result, max_act=(top, None))
    dead = listed(result, life="dead")
    assert DEAD in dead
    assert sorted(dead + listed(result, life="alive")) == list(range(600))


@pytest.mark.parametrize("text", [" paris", "'; DROP TABLE", "</script>", "東", "\u05d0"])
def test_a_token_finds_the_features_with_an_example_that_peaks_on_it(result, text):
    found = listed(result, token=text)
    tokens = {
        row[0]: row[1]
        for row in result._browsed()
        .ask(result._browsed().names["vocab"].select("token_id, text"))
        .fetchall()
    }
    rows = result._browsed().ask(
        result._browsed().names["examples"].select('feature, "group", peak_token')
    )
    expected = {
        feature
        for feature, group, token in rows.fetchall()
        if group != "silent" and text.lower() in tokens[token].lower()
    }
    assert set(found) == expected


def test_marked_features_are_a_filter_and_no_mark_is_an_empty_list(result):
    assert listed(result, among=(7, 3)) == [3, 7]
    assert listed(result, among=()) == []


def test_labels_are_searched_sorted_and_shown_where_there_are_any(result):
    browsed = result._browsed()
    named = "CASE feature WHEN 5 THEN 'Zebras' WHEN 9 THEN 'an''d' END AS label"
    inner = browsed.names["features"].select(f"*, {named}")
    names = {**browsed.names, "features": Named(f"({inner})")}
    query = Listing(sort="label", label="ZEB").sql(names, labelled=True)
    assert browsed.ask(query).fetchall()[0][:1] == (5,)
    query = Listing(sort="label").sql(names, labelled=True)
    assert [row[0] for row in browsed.ask(query).fetchall()][:3] == [5, 9, 0]
    assert browsed.ask(query).columns == ["feature", "density", "label", "max_act"]
    for choice in ({"sort": "label"}, {"label": "x"}):
        with pytest.raises(BadQuery, match="no labels"):
            Listing(**choice).sql(browsed.names, labelled=False)


@pytest.mark.parametrize(
    "values",
    [
        {"sort": "1; DROP TABLE x"}, {"sort": None}, {"measure": "feature"},
        {"descending": 1}, {"density": [0]}, {"density": ["0", None]},
        {"max_act": [float("nan"), None]}, {"max_act": 3}, {"life": "undead"},
        {"token": 5}, {"token": "x" * 201}, {"label": None}, {"among": [True]},
        {"among": "12"}, {"among": [1.5]}, {"where": "1=1"}, [], None,
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_among_the_choices_is_refused(values):
    with pytest.raises(BadQuery):
        Listing.from_dict(values)


def test_a_list_survives_the_way_to_the_page_and_back():
    chosen = Listing(sort="q99", descending=True, density=(None, 0.5), among=(1, 2))
    assert Listing.from_dict(chosen.to_dict()) == chosen


def test_the_rows_of_a_feature_are_found_in_whatever_row_group_they_are(
    result, monkeypatch
):
    path = result._results() / EXAMPLES.file
    file = SortedFile(path)
    monkeypatch.setattr(sorted_file, "KEPT_BYTES", 2 * file._group(0).nbytes)
    assert file._footer.num_row_groups > 3
    for feature in [*range(0, 600, 7), DEAD, 599, 0]:
        expected = result.examples(feature).fetchall()
        rows = [row for row in file.rows(feature).to_pylist() if row["group"] == "top"]
        assert [(row["feature"], row["rank"]) for row in rows] == [
            (row[0], row[2]) for row in expected
        ]
    assert 1 < len(file._kept) < file._footer.num_row_groups
    assert file.rows(DEAD).num_rows == 0
    assert file.rows(600).num_rows == 0
    several = file.rows(599, 300, DEAD, 0, 300)["feature"].to_pylist()
    assert several == sorted(several)
    assert len(several) == sum(file.rows(one).num_rows for one in (0, 300, 599))


def test_a_damaged_file_is_named(tmp_path):
    with pytest.raises(ResultsDamaged, match=r"examples\.parquet"):
        SortedFile(tmp_path / "examples.parquet")
