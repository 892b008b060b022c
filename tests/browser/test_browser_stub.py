"""The feature browser's own files in a page; the real kernel side answers its questions."""

import re

import numpy as np
import pytest
from playwright.sync_api import expect

from extraction_kit.results import N_BINS, bin_edges
from tests.browser.pages import LIGHT_AND_DARK, worst_contrast
from tests.results_to_browse import DEAD, HOSTILE, LOUD, labelled, write_result

pytestmark = pytest.mark.browser

BAND_1, BAND_2 = "\u00bd\u20131", "\u00bc\u2013\u00bd"  # of the maximum


# A kernel that has a million rows and one feature.
A_MILLION = """() => {
  const rows = (start, count) => {
    const feature = [];
    for (let i = start; i < Math.min(1e6, start + count); i++) feature.push(i);
    const same = (x) => feature.map(() => x);
    const columns = {feature, density: same(.01), measure: same(1), token: same('a')};
    return {revision: 9, start, ...columns};
  };
  const ask = model.send.bind(model);
  model.send = ({id, view, name, start, count}) => {
    if (name !== 'rows') return ask({kind: 'ask', id, view, name: 'feature', feature: 1});
    const answer = {kind: 'answer', id, ok: true, content: rows(start, count)};
    setTimeout(() => model.fire('msg:custom', answer));
  };
  const any = [null, null];
  const listing = {sort: 'feature', descending: false, measure: 'max_act', life: 'all',
                   density: any, max_act: any, among: null, label: '', token: ''};
  const list = {revision: 9, n: 1e6, listing, at: 0, rows: rows(0, 50)};
  model.fire('msg:custom', {kind: 'told', content: {list}});
}"""


# The kernel hears nothing until release() is called.
HOLD = """() => {
  window.held = [];
  model.send = (message) => held.push(message);
  window.release = () => { delete model.send; held.splice(0).forEach((m) => model.send(m)); };
}"""

REFUSE = """(reason) => { model.send = (m) => setTimeout(() =>
  model.fire('msg:custom', {kind: 'answer', id: m.id, ok: false, reason})); }"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("result") / "here")


def rows(made):
    return made.page.get_by_role("listbox", name="Features")


def shows(made, feature):
    expect(made.page.locator(".xk-browser")).to_have_attribute("data-feature", str(feature))


def note(made):
    return made.page.locator(".xk-note")


def chosen(made):
    """The row that a screen reader is told to be the active one."""
    active = rows(made).get_attribute("aria-activedescendant")
    option = made.page.locator(f"[id='{active}']")
    expect(option).to_have_attribute("aria-selected", "true")
    return option


def text_of(option, part):
    return option.locator(f".xk-{part}").text_content()


@pytest.mark.parametrize("theme", LIGHT_AND_DARK)
def test_every_view_is_readable_in_light_and_dark(shown, result, theme):
    browser = result.browse(20)
    made = shown(browser, theme=theme)
    made.page.get_by_text("Filters", exact=True).click()
    for key, name in (("", "line"), ("c", "window"), ("c", "context")):
        rows(made).focus()
        if key:
            made.page.keyboard.press(key)
        expect(made.page.locator(".xk-samples")).to_have_attribute("data-size", name)
        ratio, text = worst_contrast(made)
        assert ratio >= 4.5, f"{name}: {text!r} has a contrast of {ratio:.2f}"
        made.picture(f"browser-{name}-{theme}")
    made.page.keyboard.press("m")
    expect(made.page.get_by_text("600 features · 1 marked")).to_be_visible()
    browser.feature = DEAD
    shows(made, DEAD)
    expect(made.page.get_by_text("Never active on the")).to_be_visible()
    made.page.evaluate("() => { model.send = () => { throw new Error('gone') } }")
    made.page.keyboard.press("m")
    expect(note(made)).to_contain_text("The kernel of this browser is gone")
    assert worst_contrast(made)[0] >= 4.5


def test_everything_can_be_done_with_the_keyboard(shown, result):
    browser = result.browse()
    made = shown(browser)
    press = made.page.keyboard.press
    rows(made).focus()
    for key, feature in (
        ("j", 1), ("ArrowDown", 2), ("k", 1), ("End", 599), ("ArrowDown", 599),
        ("Home", 0), ("ArrowUp", 0),
    ):  # fmt: skip
        press(key)
        shows(made, feature)
        assert browser.feature == feature
        assert text_of(chosen(made), "id") == str(feature)
    press("PageDown")
    made.page.wait_for_function(
        "Number(document.querySelector('.xk-browser').dataset.feature) > 9"
    )
    press("m")
    press("j")
    press("m")
    expect(made.page.get_by_text("2 marked")).to_be_visible()
    first, second = browser.selection
    assert second == first + 1


def test_searching_and_reading_need_no_mouse_either(shown, result):
    made = shown(result.browse())
    press = made.page.keyboard.press
    rows(made).focus()
    press("g")  # the next group of examples
    expect(made.page.get_by_role("tab", selected=True)).to_contain_text(BAND_1)
    press("j")  # and it stays for the next feature
    shows(made, 1)
    expect(made.page.get_by_role("tab", selected=True)).to_contain_text(BAND_1)
    press("/")
    search = made.page.get_by_role("searchbox")
    expect(search).to_be_focused()
    made.page.keyboard.type("paris j")  # letters in a field are letters
    expect(search).to_have_value("paris j")
    search.fill("#42")
    press("Enter")
    shows(made, 42)
    expect(rows(made)).to_be_focused()
    expect(made.page.locator(".xk-status")).to_have_text("600 features")
    press("/")
    press("Escape")
    expect(rows(made)).to_be_focused()
    press("Enter")
    region = made.page.get_by_role("region", name="feature 42")
    expect(region).to_be_focused()
    press("j")
    shows(made, 43)


def test_tabs_of_examples_move_with_the_arrows(shown, result):
    made = shown(result.browse(20))
    made.page.get_by_role("tab", selected=True).focus()
    made.page.keyboard.press("ArrowLeft")
    tab = made.page.get_by_role("tab", selected=True)
    expect(tab).to_contain_text("Silent5")
    expect(tab).to_be_focused()
    expect(made.page.locator(".xk-sample")).to_have_count(5)


def in_sql(result, browser):
    return [row[0] for row in result._browsed().ask(browser.sql).fetchall()]


def sort_by(made, name):
    button = made.page.get_by_role("button", name=f"sort by {name}")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


def test_the_list_is_sorted_by_any_column(shown, result):
    browser = result.browse()
    made = shown(browser)
    sort_by(made, "density")
    assert "ORDER BY density DESC" in browser.sql
    rows(made).press("Home")
    shows(made, in_sql(result, browser)[0])
    sort_by(made, "density")
    expect(made.page.get_by_role("button", name="now ascending")).to_be_visible()
    rows(made).press("End")
    shows(made, in_sql(result, browser)[-1])
    made.page.get_by_label("what the last column shows").select_option("q99")
    sort_by(made, "q99")
    assert "ORDER BY q99 DESC" in browser.sql
    rows(made).press("Home")
    shows(made, in_sql(result, browser)[0])


def test_enter_in_the_search_opens_the_first_that_is_found(shown, result):
    browser = result.browse()
    made = shown(browser)
    search, press = made.page.get_by_role("searchbox"), made.page.keyboard.press
    search.fill(" paris")
    press(
        "Enter"
    )  # before and after the list is there, and the key `l` is about what is shown
    expect(made.page.locator(".xk-status")).to_contain_text("of 600")
    found = in_sql(result, browser)
    assert 0 not in found
    shows(made, found[0])

    press("j")
    shows(made, found[1])
    search.focus()
    press("Enter")  # the feature shown is among them: it stays
    expect(rows(made)).to_be_focused()
    shows(made, found[1])


def test_the_list_is_filtered_and_searched(shown, result):
    browser = result.browse()
    made = shown(browser)
    status, search = made.page.locator(".xk-status"), made.page.get_by_role("searchbox")
    search.fill(" paris")
    expect(status).to_contain_text("of 600")
    expect(status).to_have_text(f"{len(in_sql(result, browser))} of 600")
    made.page.get_by_text("Filters", exact=True).click()
    made.page.get_by_label("least density, per cent").fill("1")
    made.page.get_by_label("dead features").select_option("alive")
    expect(made.page.get_by_text("Filters (2)")).to_be_visible()
    for part in ("density >= 0.01", "NOT dead", "' paris'"):
        assert part in browser.sql
    expect(status).to_have_text(f"{len(in_sql(result, browser))} of 600")
    made.page.get_by_role("button", name="Clear filters").click()
    search.fill("no such token")  # while the other answer is on its way
    expect(status).to_have_text("0 of 600")
    assert "density" not in browser.sql.split("WHERE")[1]
    rows(made).press("ArrowDown")  # on an empty list nothing moves, and nothing breaks
    search.fill("")
    expect(status).to_have_text("600 features")


def test_a_list_that_was_filtered_before_says_by_what(shown, result):
    browser = result.browse()
    listing = {
        "density": [0.007, None], "max_act": [None, 12.5], "life": "alive", "token": " paris",
        "among": list(range(500)),
    }  # fmt: skip
    ask = {"kind": "ask", "id": "1", "name": "list", "listing": listing, "rows": 9}
    assert browser.answer(ask)["ok"]
    made = shown(browser)
    search = made.page.get_by_role("searchbox")
    expect(search).to_have_value(" paris")
    made.page.get_by_text("Filters (4)").click()
    filters = made.page.locator(".xk-filter-grid")
    for name, value in (
        ("least density, per cent", "0.7"), ("largest density, per cent", ""),
        ("largest max activation", "12.5"), ("dead features", "alive"),
    ):  # fmt: skip
        expect(filters.get_by_label(name)).to_have_value(value)
    expect(filters.get_by_label("marked features only")).to_be_checked()
    made.page.get_by_role("button", name="Clear filters").click()
    expect(made.page.locator(".xk-status")).to_have_text("600 features")
    expect(search).to_have_value("")
    expect(filters.get_by_label("marked features only")).not_to_be_checked()


def test_only_the_rows_in_sight_exist_and_a_million_have_a_last_one(shown, result):
    made = shown(result.browse())
    assert rows(made).get_by_role("option").count() < 60
    made.page.evaluate(A_MILLION)
    rows(made).focus()
    made.page.keyboard.press("End")
    last = chosen(made)
    expect(last.locator(".xk-id")).to_have_text("999999")
    expect(last).to_be_in_viewport(ratio=0.9)
    made.page.keyboard.press("k")
    expect(chosen(made).locator(".xk-id")).to_have_text("999998")
    rows(made).evaluate(
        "(box) => { box.scrollTop = (box.scrollHeight - box.clientHeight) / 2 }"
    )
    expect(rows(made).get_by_role("option").nth(5).locator(".xk-id")).to_have_text(
        re.compile(r"^(499|500)\d{3}$")
    )
    made.page.keyboard.press("Home")
    expect(chosen(made).locator(".xk-id")).to_have_text("0")
    assert rows(made).get_by_role("option").count() < 60


def test_a_similar_feature_and_python_lead_to_another_one(shown, result):
    browser = result.browse(20)
    made = shown(browser)
    made.page.get_by_role("button", name="25", exact=True).click()
    shows(made, 25)
    assert text_of(chosen(made), "id") == "25"
    browser.feature = 480
    shows(made, 480)
    expect(chosen(made)).to_be_in_viewport()
    assert text_of(chosen(made), "id") == "480"
    browser.selection = [480]
    expect(made.page.get_by_role("button", name="mark feature 480")).to_have_attribute(
        "aria-pressed", "true"
    )


def test_the_row_chosen_last_stays_chosen_when_a_jump_is_answered_late(shown, result):
    made = shown(result.browse(20))
    made.page.evaluate(HOLD)
    made.page.get_by_role("button", name="25", exact=True).click()
    made.page.keyboard.press("j")
    made.page.evaluate("release()")
    shows(made, 21)
    assert text_of(chosen(made), "id") == "21"


def test_a_group_that_is_chosen_while_the_kernel_is_busy_is_the_one_shown(shown, result):
    made = shown(result.browse(20))
    rows(made).focus()
    made.page.evaluate(HOLD)
    for key in "jgg":
        made.page.keyboard.press(key)
    tab = made.page.get_by_role("tab", selected=True)
    expect(tab).to_contain_text("Top")  # what is seen is still of the other group
    made.page.evaluate("release()")
    shows(made, 21)
    expect(tab).to_contain_text(BAND_2)
    made.page.keyboard.press("j")
    shows(made, 22)
    expect(tab).to_contain_text(BAND_2)


def test_the_keyboard_is_not_lost_with_the_button_that_was_pressed(shown, result):
    made = shown(result.browse(20))
    press = made.page.keyboard.press
    near = made.page.get_by_role("button", name="25", exact=True)
    near.focus()
    press("Enter")
    shows(made, 25)
    expect(made.page.get_by_role("region", name="feature 25")).to_be_focused()
    press("k")
    shows(made, 24)
    window = made.page.get_by_role("button", name="Window")
    window.focus()
    press("j")  # the buttons of the sizes are the same for every feature
    shows(made, 25)
    expect(window).to_be_focused()
    press("Enter")
    expect(window).to_have_attribute("aria-pressed", "true")
    for control in (window, made.page.get_by_role("tab", selected=True)):
        made.page.get_by_role("searchbox").fill(f"#{DEAD - 1}")
        press("Enter")
        shows(made, DEAD - 1)
        control.focus()
        press("j")  # a dead feature has no examples to choose from
        shows(made, DEAD)
        expect(made.page.get_by_role("region")).to_be_focused()


def test_a_mark_is_seen_at_once_and_the_last_press_counts(shown, result):
    browser = result.browse(20)
    made = shown(browser)
    mark = made.page.get_by_role("button", name="mark feature 20")
    rows(made).focus()
    made.page.evaluate(HOLD)
    for pressed in ("true", "false", "true"):
        made.page.keyboard.press("m")
        expect(mark).to_have_attribute("aria-pressed", pressed)
    made.page.evaluate(
        """() => { const box = document.querySelector('.xk-mark').closest('.xk-browser');
        window.seen = []; new MutationObserver(() => seen.push(
            box.querySelector('[aria-label="mark feature 20"]')?.ariaPressed
        )).observe(box, {subtree: true, attributes: true, attributeFilter: ['aria-pressed']});
        release(); }"""
    )
    made.page.keyboard.press("j")
    shows(made, 21)  # the kernel answers in order: the marks are settled
    assert browser.selection == [20]
    assert "false" not in made.page.evaluate("seen")
    made.page.evaluate(REFUSE, "no")
    made.page.keyboard.press("m")
    expect(note(made)).to_have_text("no")
    expect(made.page.get_by_text("600 features · 1 marked")).to_be_visible()


def test_a_list_of_marked_features_is_as_long_as_their_number(shown, result):
    browser = result.browse(20)
    browser.selection = [20, 30, 40]
    made = shown(browser)
    status = made.page.locator(".xk-status")
    made.page.get_by_text("Filters", exact=True).click()
    made.page.get_by_label("marked features only").check()
    expect(status).to_have_text("3 of 600 \u00b7 3 marked")
    rows(made).focus()
    made.page.keyboard.press("m")
    expect(status).to_have_text("2 of 600 \u00b7 2 marked")
    made.page.keyboard.press("End")
    shows(made, 40)
    browser.selection = [50]
    expect(status).to_have_text("1 of 600 \u00b7 1 marked")
    assert in_sql(result, browser) == [50]


def test_what_is_noted_is_read_out(shown, result):
    made = shown(result.browse(20))
    live = made.page.locator(".xk-live[role=status]")
    expect(live).to_have_text("")  # there before it says anything, else nobody hears it
    rows(made).focus()
    made.page.evaluate(REFUSE, "examples.parquet cannot be read")
    made.page.keyboard.press("j")
    expect(live).to_have_text("examples.parquet cannot be read")
    assert note(made).get_attribute("role") is None


def test_a_key_that_an_input_method_uses_is_not_taken(shown, result):
    made = shown(result.browse(20))
    search = made.page.get_by_role("searchbox")
    search.fill("#42")
    compose = """(node, isComposing) => node.dispatchEvent(
        new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, isComposing}))"""
    search.evaluate(compose, True)
    expect(search).to_be_focused()
    search.evaluate(compose, False)
    expect(rows(made)).to_be_focused()
    shows(made, 42)


def test_two_views_show_the_same(shown, result):
    made = shown(labelled(result, "a"))
    made.page.evaluate("() => { again() }")
    views = [made.page.locator(".xk-browser").nth(i) for i in range(2)]
    expect(views[1]).to_have_attribute("data-feature", str(LOUD))
    lists = [view.get_by_role("listbox") for view in views]
    views[0].get_by_role("searchbox").fill(" paris")
    expect(views[1].locator(".xk-status")).to_contain_text("of 600")
    expect(views[1].get_by_role("searchbox")).to_have_value(" paris")
    lists[1].press("Home")
    first = lists[1].get_by_role("option", selected=True).locator(".xk-id").text_content()
    expect(views[0]).to_have_attribute("data-feature", first)
    expect(lists[0].get_by_role("option", selected=True).locator(".xk-id")).to_have_text(
        first
    )
    lists[0].press("m")
    for view in views:
        expect(view.get_by_text("1 marked")).to_be_visible()


def test_where_nothing_keeps_labels_the_key_says_why(shown, result):
    made = shown(result.browse(20))
    rows(made).press("l")
    expect(note(made)).to_contain_text("labels are kept by a workspace")
    expect(made.page.get_by_role("group", name="label")).to_be_hidden()
    expect(rows(made)).to_be_focused()


def test_markup_and_marks_of_direction_stay_text(shown, result):
    made = shown(
        labelled(result, HOSTILE[0] + HOSTILE[3], title=HOSTILE[0], about=(HOSTILE[3],))
    )
    rows(made).focus()
    for _ in range(3):
        made.page.keyboard.press("c")
        expect(made.page.locator(".xk-samples")).to_contain_text("<img src=x onerror")
    expect(made.page.locator(".xk-top .xk-name")).to_contain_text("<img src=x onerror")
    made.page.get_by_role("searchbox").fill("</script>")
    expect(made.page.locator(".xk-status")).to_contain_text("of 600")
    host = made.page.locator("#host")
    assert "\u202e" not in host.text_content()
    assert "⟨U+202E⟩ltr⟨U+2066⟩" in host.text_content()
    assert host.locator("img, script, b, td").count() == 0
    assert made.page.title() == "card"
    made.picture("browser-hostile-light")


def test_every_focusable_element_keeps_its_keys_from_the_notebook(shown, result):
    made = shown(labelled(result, "a label"))
    heard = "window.heard = 0; document.addEventListener('keydown', () => window.heard++)"
    made.page.evaluate(heard)
    focusable = ":is(button, summary, a, input, select, textarea, [tabindex])"
    found = made.page.locator(f"#host {focusable}").all()
    assert len(found) > 25
    for node in found:
        assert node.get_attribute("data-lm-suppress-shortcuts") == "true", node.inner_html()
    rows(made).focus()
    for key in ("x", "d", "d", "a", "j"):
        made.page.keyboard.press(key)
    assert made.page.evaluate("window.heard") == 0


def test_roles_and_names_say_what_is_seen(shown, result):
    made = shown(result.browse(20))
    page = made.page
    expect(page.get_by_role("group", name="features of synthetic")).to_be_visible()
    expect(page.get_by_role("heading", name="Feature 20")).to_be_visible()
    histogram = page.get_by_role("img", name="Activations of")
    expect(histogram).to_have_attribute("aria-label", re.compile("half of them up to"))
    expect(page.get_by_role("img", name="held out").first).to_be_visible()
    option = chosen(made)
    expect(option).to_have_attribute("aria-posinset", "21")
    expect(option).to_have_attribute("aria-setsize", "600")
    expect(page.get_by_role("tab")).to_have_count(7)
    pressed = page.get_by_role("group", name="how much of the context").get_by_role(
        "button"
    )
    assert [node.get_attribute("aria-pressed") for node in pressed.all()] == [
        "true", "false", "false",
    ]  # fmt: skip
    unnamed = "node => node.getAttribute('aria-label') || node.textContent.trim()"
    for node in page.get_by_role("button").all():
        assert node.evaluate(unnamed)


def test_the_histogram_says_what_its_bins_hold(shown, result):
    browser = result.browse(20)
    first = np.flatnonzero(result.histogram(20))[0]
    low, high = bin_edges()[first : first + 2]
    made = shown(browser)
    bins = made.page.locator(".xk-bin")
    assert bins.first.get_attribute("title").startswith(f"{low:.3g} to {high:.3g}: ")
    loud = browser.page() | {"hist": {"first": N_BINS - 1, "counts": [3]}, "at": 20}
    told = {"kind": "told", "content": {"feature": loud}}
    made.page.evaluate("(told) => model.fire('msg:custom', told)", told)
    expect(bins).to_have_attribute("title", "above 1,024: 3 tokens")


def test_the_peaks_stand_below_each_other(shown, result):
    made = shown(result.browse(20))
    left = {round(peak.bounding_box()["x"]) for peak in made.page.locator(".xk-peak").all()}
    assert len(left) == 1


def test_heat_is_relative_to_the_maximum_of_the_feature(shown, result):
    made = shown(result.browse(20))
    made.page.get_by_role("tab", name=BAND_2).click()
    expect(made.page.get_by_role("tab", selected=True)).to_contain_text(BAND_2)
    peak = made.page.locator(".xk-peak").first
    assert float(peak.evaluate("(n) => n.style.getPropertyValue('--a')")) == pytest.approx(
        0.4
    )


def test_a_busy_kernel_a_refusal_and_the_newest_question(shown, result):
    made = shown(result.browse(20))
    made.page.evaluate(
        "() => { window.send = model.send; model.send = (m) => model.sent.push(m) }"
    )
    rows(made).focus()
    made.page.evaluate("model.sent.length = 0")
    for _ in range(5):
        made.page.keyboard.press("j")
    expect(note(made)).to_have_text("waiting for the kernel (busy running a cell?)")
    sent = made.page.evaluate("model.sent.filter((m) => m.name === 'feature')")
    assert [message["row"] for message in sent] == [21]  # one question is open at a time
    made.page.evaluate("model.send = window.send; model.send(model.sent.at(-1))")
    shows(made, 25)  # then the newest: 22 to 24 were never asked for
    expect(note(made)).to_be_hidden()
    made.page.evaluate(REFUSE, "examples.parquet cannot be read")
    made.page.keyboard.press("j")
    expect(note(made)).to_have_text("examples.parquet cannot be read")


def test_a_question_that_the_kernel_lost_holds_nothing_up(shown, result):
    made = shown(result.browse(20))
    sort_by_density = made.page.get_by_role("button", name="sort by density")
    made.page.clock.install()

    def go_on():
        rows(made).press("j")

    for act, asked in ((go_on, "feature"), (sort_by_density.click, "list")):
        made.page.evaluate(HOLD)
        act()
        act()
        assert made.page.evaluate("held.map((message) => message.name)") == [asked]
        made.page.clock.fast_forward(6000)
        expect(note(made)).to_have_text("waiting for the kernel (busy running a cell?)")
        made.page.evaluate("() => { held.length = 0 }")  # it was restarted
        act()
        made.page.wait_for_function("held.length === 1")
        expect(note(made)).to_have_text("waiting for the kernel (busy running a cell?)")
        made.page.evaluate("release()")
        expect(note(made)).to_be_hidden()
    shows(made, 23)
    expect(sort_by_density).to_have_attribute("aria-pressed", "true")
    made.page.evaluate(HOLD)
    go_on()
    made.page.clock.fast_forward(6000)
    made.page.evaluate("() => { model.send = () => { throw new Error('gone') } }")
    go_on()
    expect(note(made)).to_contain_text("The kernel of this browser is gone")


def test_a_narrow_page_shows_everything_without_a_sideways_scroll(shown, result):
    made = shown(result.browse(20), width=400, height=1000)
    made.picture("browser-narrow-light")
    assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_is_left_behind_when_the_view_goes(shown, result):
    made = shown(result.browse(20), theme="none")
    assert worst_contrast(made)[0] >= 4.5
    made.page.evaluate("window.stop()")
    assert made.page.evaluate("model.listeners()") == 0
    assert made.page.locator("#host > *").count() == 0
    first, *_, last = made.page.evaluate("model.sent")
    assert last == {"kind": "bye", "view": first["view"]}
