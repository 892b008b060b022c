"""Two runs side by side in the feature browser's own files; the real kernel side answers."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from extraction_kit.comparison import Pairing
from extraction_kit.widgets.against import Against
from extraction_kit.widgets.browser import FeatureBrowser
from tests.browser.pages import LIGHT_AND_DARK, worst_contrast
from tests.browser.test_browser_stub import BAND_2, chosen, rows, shows, sort_by, text_of
from tests.results_to_browse import DEAD, HOSTILE, LOUD, Shape, write_result, write_two

pytestmark = pytest.mark.browser

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


@pytest.fixture(scope="module")
def matched(a, tmp_path_factory):
    """A function that shows A beside another SAE: feature i belongs to its feature N - i."""
    folder = tmp_path_factory.mktemp("matched")
    shape = Shape(seed=2, d_sae=N + 1, n_contexts=300, name="wider" + HOSTILE[0], sae="c0")
    other = write_result(folder / "c", shape)
    feature = np.arange(N, dtype=np.int32)
    pairs = {
        "feature_a": feature, "feature_b": N - feature,
        "cosine": np.linspace(0, 0.9, N, dtype=np.float32), "mutual": feature % 2 == 0,
    }  # fmt: skip
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    pairing = Pairing(file=folder / "pairs.parquet", one_sae=False, one_model=True)
    against = Against(browsed=other._browsed(), pairing=pairing)
    return lambda feature: FeatureBrowser(a._browsed(), feature, against)


def side(made, letter, about="statistics"):
    return made.page.get_by_role("group", name=re.compile(f"^{about} of {letter},"))


def warmth(made, letter):
    """How warm the peaks of the examples shown are, 0 to 1."""
    peaks = side(made, letter, "examples").locator(".xk-peak")
    return peaks.evaluate_all("(all) => all.map((n) => +n.style.getPropertyValue('--a'))")


@pytest.mark.parametrize("theme", LIGHT_AND_DARK)
def test_both_runs_are_readable_in_light_and_dark(shown, a, b, matched, theme):
    alive, browser = a.browse(20, compare=b), matched(LOUD)
    for made, name in (
        (shown(alive, theme=theme), "same"),
        (shown(browser, theme=theme), "matched"),
    ):
        made.page.get_by_text("Filters", exact=True).click()
        made.page.keyboard.press("Escape")
        ratio, text = worst_contrast(made)
        assert ratio >= 4.5, f"{name}: {text!r} has a contrast of {ratio:.2f}"
        made.picture(f"compare-{name}-{theme}")
    browser.feature = DEAD
    shows(made, DEAD)
    assert worst_contrast(made)[0] >= 4.5


def test_keys_keep_both_runs_in_step(shown, matched):
    browser = matched(20)
    made = shown(browser)
    rows(made).focus()
    for key, feature in (("j", 21), ("k", 20), ("End", N - 1), ("k", N - 2)):
        made.page.keyboard.press(key)
        shows(made, feature)
        assert browser.feature == feature
        expect(side(made, "B")).to_contain_text(f"feature {N - feature} · cosine 0.")
        assert text_of(chosen(made), "match") == f"→ {N - feature}"
    for key in "gg":
        made.page.keyboard.press(key)
    expect(made.page.get_by_role("tab", selected=True)).to_contain_text(BAND_2)
    made.page.keyboard.press("c")
    made.page.keyboard.press("c")
    for letter in "AB":
        samples = side(made, letter, "examples").locator(".xk-samples")
        expect(samples).to_have_attribute("data-size", "context")
        expect(samples.locator(".xk-sample")).to_have_count(3)
        expect(samples.locator(".xk-far").first).to_be_attached()  # the whole context


def test_a_feature_that_is_dead_in_one_run_is_no_difference_of_zero(shown, a, b):
    dead = [each.features().order("feature").df()["dead"].to_numpy() for each in (a, b)]
    only_b = int(np.flatnonzero(dead[0] & ~dead[1])[0])
    made = shown(a.browse(only_b, compare=b))
    row = chosen(made)
    density, other = row.locator(".xk-density").all_text_contents()
    assert (density, text_of(row, "measure")) == ("dead", "only B")
    assert other.endswith("%")
    expect(side(made, "A").get_by_text("Never active on the 25,600 tokens")).to_be_visible()
    expect(side(made, "B").get_by_text("Never active")).to_be_hidden()
    expect(side(made, "B").locator(".xk-change")).to_have_count(0)
    expect(side(made, "A", "examples").locator(".xk-sample")).to_have_count(0)
    expect(side(made, "B", "examples").locator(".xk-sample")).to_have_count(20)
    made.page.get_by_text("Filters", exact=True).click()
    made.page.get_by_label("dead features").select_option("only_b")
    n = (dead[0] & ~dead[1]).sum()
    expect(made.page.locator(".xk-status")).to_have_text(f"{n} of {N}")


def test_the_change_is_shown_and_sorted_by(shown, a, b):
    browser = a.browse(20, compare=b)
    made = shown(browser)
    sort_by(made, "change")
    assert "ORDER BY log2_ratio DESC NULLS LAST" in browser.sql
    rows(made).press("Home")
    answer = a._browsed().ask(browser.sql)
    first = dict(zip(answer.columns, answer.limit(1).fetchall()[0], strict=True))
    shows(made, first["feature"])
    change = f"\u00d7{2 ** first['log2_ratio']:.3g}"
    assert text_of(chosen(made), "measure") == change
    stat = side(made, "B").locator(".xk-stat").first
    expect(stat).to_contain_text(f"of tokens {change}")
    sort_by(made, "density B")
    assert "ORDER BY density_b DESC" in browser.sql
    options = made.page.get_by_label("what the last column shows").locator("option")
    assert options.all_text_contents()[:5] == [
        "change", "size of change", "change of max", "context_density B", "n_active B",
    ]  # fmt: skip


def test_heat_of_one_sae_has_one_maximum_and_of_two_saes_each_its_own(shown, a, b, matched):
    most = [each.features().order("feature").df()["max_act"][20] for each in (a, b)]
    made = shown(a.browse(20, compare=b))
    legend = made.page.locator(".xk-legend")
    expect(legend).to_contain_text(
        f"in both columns relative to {max(most):.3g}, the larger maximum"
    )
    for letter, its_own in zip("AB", most, strict=True):
        assert warmth(made, letter)[0] == pytest.approx(its_own / max(most), abs=2e-3)
    # what the weights say is there once, and leads to other features
    expect(made.page.get_by_role("heading", name="Promotes")).to_have_count(1)
    made.page.get_by_role("button", name="25", exact=True).click()
    shows(made, 25)
    made = shown(matched(20))
    expect(made.page.locator(".xk-legend")).to_contain_text(
        "relative to its own maximum (A "
    )
    assert warmth(made, "A")[0] == warmth(made, "B")[0] == 1
    expect(made.page.get_by_role("heading", name="Promotes")).to_have_count(2)
    near = [side(made, letter, "more").locator("button.xk-go") for letter in "AB"]
    assert [each.count() for each in near] == [
        10,
        0,
    ]  # B's numbers mean other features here


def test_names_of_both_runs_stay_text_and_keys_stay_here(shown, matched):
    made = shown(matched(LOUD))
    whole = made.page.get_by_role(
        "group", name=f"features of synthetic and wider{HOSTILE[0]}"
    )
    expect(whole).to_be_visible()
    for about in ("statistics", "examples", "more"):
        expect(side(made, "B", about).get_by_role("heading").first).to_contain_text(
            "wider<img"
        )
    host = made.page.locator("#host")
    assert host.locator("img, script, b, td").count() == 0
    assert made.page.title() == "card"
    focusable = ":is(button, summary, a, input, select, textarea, [tabindex])"
    for node in host.locator(focusable).all():
        assert node.get_attribute("data-lm-suppress-shortcuts") == "true", node.inner_html()


def test_on_a_narrow_page_the_runs_stand_below_each_other(shown, matched):
    made = shown(matched(20), width=400, height=1000)
    made.picture("compare-narrow-light")
    assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = rows(made).evaluate("(node) => [node.scrollWidth, node.clientWidth]")
    assert box[0] <= box[1]  # the change is in sight too
    first, second = (side(made, letter).bounding_box() for letter in "AB")
    assert second["y"] >= first["y"] + first["height"]
    made.page.set_viewport_size({"width": 1180, "height": 900})
    first, second = (side(made, letter).bounding_box() for letter in "AB")
    assert second["y"] == first["y"]
    tops = [side(made, letter).locator(".xk-plot").bounding_box()["y"] for letter in "AB"]
    assert tops[0] == tops[1]
