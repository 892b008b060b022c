"""Two runs in one feature browser, A and B: the list, the page, and what Python reads."""

import json
import shutil

import numpy as np
import pytest

from extraction_kit import LocalResult
from extraction_kit.catalog.asking import manifest_of
from extraction_kit.errors import BadQuery, ResultsDamaged, StillActive, UnknownFeature
from tests.results_to_browse import DEAD, HOSTILE, LOUD, Shape, write_result, write_two
from tests.unit.published import PublishedRuns
from tests.unit.test_widgets_browser import Balance, ask, content

N = 600


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return write_two(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def a(two):
    return two[0]


@pytest.fixture(scope="module")
def b(two):
    return two[1]


@pytest.fixture
def browser(a, b):
    return a.browse(LOUD, compare=b)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return PublishedRuns(tmp_path_factory.mktemp("compared") / "ws")


@pytest.fixture(scope="module")
def runs(stage):
    return [stage.ws.run(stage.completed(seed=seed)) for seed in (0, 1)]


def column(result, name):
    return result.features().order("feature").df()[name].to_numpy()


def listed(browser, **listing):
    found = content(browser, "list", listing={"measure": "log2_ratio", **listing}, rows=400)
    assert found["n"] <= 400, "a test looks at the whole list"
    return found["rows"]


def test_the_list_has_the_densities_of_both_and_their_change(browser, a, b):
    rows = content(browser, "open", rows=400)["list"]["rows"]
    first, second = (column(each, "density")[rows["feature"]] for each in (a, b))
    assert rows["density"] == pytest.approx(first, rel=1e-4)
    assert rows["density_b"] == pytest.approx(second, rel=1e-4)
    assert rows["measure"] == rows["log2_ratio"]
    for change, here, there in zip(rows["measure"], first, second, strict=True):
        if here and there:
            assert change == pytest.approx(np.log2(there / here), rel=1e-4)
        else:
            assert change is None


def test_a_feature_that_is_dead_in_one_run_has_no_change_and_is_found(browser, a, b):
    dead_a, dead_b = column(a, "dead"), column(b, "dead")
    assert (dead_a & ~dead_b).any()
    assert (dead_b & ~dead_a).any()
    for life, expected in (
        ("only_a", ~dead_a & dead_b), ("only_b", dead_a & ~dead_b), ("dead", dead_a & dead_b),
    ):  # fmt: skip
        rows = listed(browser, life=life)
        assert rows["feature"] == np.flatnonzero(expected).tolist()
        assert set(rows["measure"]) == {None}
    alive = content(browser, "list", listing={"life": "alive"}, rows=1)["n"]
    assert alive == (~dead_a & ~dead_b).sum()
    assert None not in listed(browser, life="only_b")["token"]  # the peak of B


def test_the_list_is_sorted_by_the_change(browser, a, b):
    marked = list(range(200))
    for sort in ("log2_ratio", "abs_log2_ratio", "max_log2_ratio", "density_b"):
        for descending in (False, True):
            found = listed(
                browser, sort=sort, measure=sort, descending=descending, among=marked
            )
            known = [value for value in found["measure"] if value is not None]
            assert known == sorted(known, reverse=descending)
            assert found["measure"][: len(known)] == known  # what is absent comes last
    largest = listed(browser, sort="log2_ratio", descending=True, among=marked)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(column(b, "density") / column(a, "density"))[:200]
    assert largest["feature"][0] == np.argmax(np.where(np.isfinite(change), change, -99))


def test_the_page_of_both_is_what_each_browser_says_alone(browser, a, b):
    alone = [each.browse() for each in (a, b)]
    for feature in (0, LOUD, DEAD):
        for group in ("top", "random"):
            both = content(browser, "feature", feature=feature, group=group)
            first, second = (
                content(one, "feature", feature=feature, group=group) for one in alone
            )
            assert both.pop("other") | {"at": second["at"]} == second
            assert both == first
    asked = {"feature": 9, "group": "band_2", "whole": True}
    both = content(browser, "examples", **asked)
    for name, one in zip(("examples", "others"), alone, strict=True):
        assert both[name] == content(one, "examples", **asked)["examples"]


def test_python_reads_and_sets_what_is_compared(browser, a):
    told = []
    browser.connect(told.append)
    browser.feature = 11
    shown = told[0]["content"]["feature"]
    assert (shown["feature"], shown["other"]["feature"]) == (11, 11)
    browser.selection = [9, 5]
    rows = listed(browser, among=[9, 5], measure="abs_log2_ratio")
    answer = a._browsed().ask(browser.sql)
    for name in ("feature_b", "density_b", "log2_ratio", "abs_log2_ratio"):
        assert name in answer.columns
    assert [row[0] for row in answer.fetchall()] == rows["feature"]
    with pytest.raises(UnknownFeature):
        browser.feature = N


def test_a_token_is_searched_in_both_runs(browser, a, b):
    found = content(browser, "list", listing={"token": " paris"}, rows=1)["n"]
    answer = a._browsed().ask(browser.sql)
    both = {row[0] for row in answer.fetchall()}
    alone = []
    for each in (a, b):
        one = each.browse()
        content(one, "list", listing={"token": " paris"}, rows=1)
        alone.append({row[0] for row in each._browsed().ask(one.sql).fetchall()})
    assert found == len(both)
    assert both == alone[0] | alone[1]
    assert alone[0] != alone[1]


def test_only_a_comparison_answers_what_a_comparison_shows(browser, a):
    single = a.browse()
    for listing in (
        {"sort": "log2_ratio"}, {"measure": "density_b"}, {"life": "only_a"},
    ):  # fmt: skip
        assert ask(browser, "list", listing=listing, rows=1)["ok"]
        answer = ask(single, "list", listing=listing, rows=1)
        assert "nothing is compared here" in answer["reason"]
    answer = ask(browser, "list", listing={"sort": "cosine"}, rows=1)
    assert "'cosine' is not there: there are log2_ratio" in answer["reason"]
    assert not ask(browser, "list", listing={"sort": "1; DROP"}, rows=1)["ok"]


def test_what_cannot_be_compared_is_refused_before_anything_is_shown(a, tmp_path):
    shutil.copytree(a.folder, tmp_path / "other")
    path = tmp_path / "other" / "results" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"]["model"]["digest"] = "0" * 8
    manifest["training"]["sae"]["digest"] = "1" * 8
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadQuery, match="different models"):
        a.browse(compare=LocalResult(tmp_path / "other"))
    with pytest.raises(BadQuery, match="same one: pass another"):
        a.browse(compare=LocalResult(a.folder))
    with pytest.raises(BadQuery, match=r"type compare=ws\.run"):
        a.browse(compare="5f1c")
    with pytest.raises(BadQuery, match="pass compare=other too"):
        a.browse(match="number")


@pytest.mark.parametrize("table", ["features", "histograms"])
def test_damage_of_the_other_result_is_named_before_anything_is_shown(
    a, b, tmp_path, table
):
    shutil.copytree(b.folder, tmp_path / "other")
    path = tmp_path / "other" / "results" / f"{table}.parquet"
    data = bytearray(path.read_bytes())
    data[-40] ^= 4  # in the footer, of which pyarrow may end the process
    path.write_bytes(data)
    damaged = LocalResult(tmp_path / "other")
    with pytest.raises(ResultsDamaged, match=rf"{table}\.parquet"):
        a.browse(compare=damaged)
    if table == "features":
        with pytest.raises(ResultsDamaged, match=r"features\.parquet"):
            damaged.windows(LOUD)


def test_results_in_folders_of_one_name_are_told_apart(a, tmp_path):
    names = []
    for parent in ("one", "two"):
        shutil.copytree(a.folder, tmp_path / parent / "same")
        names.append(str(tmp_path / parent / "same"))
    browser = LocalResult(names[0]).browse(compare=LocalResult(names[1]))
    assert all(name in repr(browser) for name in names)


def test_two_runs_of_a_workspace_are_compared_and_its_sql_answers(stage, runs):
    first, second = runs
    stage.ws.label("tiny", 5, name="dates")
    browser = first.browse(5, compare=second)
    rows = listed(browser, sort="log2_ratio", descending=True)
    assert rows["label"][rows["feature"].index(5)] == "dates"
    compared = stage.ws.compare(first, second).order("log2_ratio DESC NULLS LAST, feature")
    known = compared.project("feature, density_b, log2_ratio").fetchall()
    answer = stage.ws.sql(browser.sql).project("feature, density_b, log2_ratio")
    assert answer.fetchall() == known
    assert [row[0] for row in known] == rows["feature"]
    corpora = [each.corpus.digest[:8] for each in runs]
    names = " and ".join(f"tiny · {each}" for each in corpora)
    assert repr(browser) == f"<FeatureBrowser {names}: feature 5 of 16>"


def test_a_run_is_compared_with_a_result_of_this_process(runs, tmp_path):
    digest = manifest_of(runs[0].results_folder)["training"]["sae"]["digest"]
    here = write_result(tmp_path / "here", Shape(d_sae=16, n_contexts=40, sae=digest))
    for first, second in ((runs[0], here), (here, runs[0])):
        browser = first.browse(compare=second)
        rows = listed(browser, token="t")  # both vocabularies are read
        assert rows["feature"]
        density = column(second, "density")[rows["feature"]]
        assert rows["density_b"] == pytest.approx(density, rel=1e-4)
    assert "tiny" in repr(browser)


def test_a_run_without_a_result_is_refused_on_either_side(stage, runs):
    waiting = stage.ws.run(stage.begun(stage.content("unfinished")))
    for first, second in ((runs[0], waiting), (waiting, runs[0])):
        with pytest.raises(StillActive, match=r"has no results yet.*Next: await run"):
            first.browse(compare=second)


def test_the_static_form_says_both_runs_and_is_harmless(a, b, tmp_path, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    shape = Shape(seed=1, n_contexts=300, name=HOSTILE[0] + HOSTILE[3])
    hostile = write_result(tmp_path / "hostile", shape)
    for other, name in ((b, "19,200 tokens"), (hostile, HOSTILE[0])):
        bundle = a.browse(LOUD, compare=other)._repr_mimebundle_()
        assert bundle == a.browse(LOUD, compare=other)._repr_mimebundle_()
        assert name in bundle["text/plain"]
        found = Balance(bundle["text/html"])
        assert found.sound
        assert not found.tags & {"img", "script", "b", "svg"}
        text = "".join(found.words)
        for part in (
            name, "density A", "density B", "log2_ratio", "the larger maximum", "dead",
            f"result.browse({LOUD}, compare=...)",
        ):  # fmt: skip
            assert part in text
        assert text.count("promotes") == 1  # of one SAE they are the same
        assert "\u202e" not in bundle["text/html"]
