"""Labels of features are written where they are read: in the feature browser of a run."""

import pytest
from playwright.sync_api import expect

from tests.browser.pages import worst_contrast
from tests.browser.test_browser_stub import HOLD, REFUSE, rows, shows
from tests.unit.published import PublishedRuns

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    stage = PublishedRuns(tmp_path_factory.mktemp("labels") / "ws")
    return stage.ws.run(stage.completed())


def labels_of(run):
    said = "SELECT feature, name, description FROM labels ORDER BY feature"
    return run._watcher.session.sql(said).fetchall()


def test_a_label_is_written_where_it_is_read(shown, run):
    browser = run.browse(5)
    made = shown(browser)
    press, editor = made.page.keyboard.press, made.page.get_by_role("group", name="label")
    name = editor.get_by_label("name")
    made.page.evaluate("() => { again() }")
    rows(made).first.focus()
    press("l")
    expect(name).to_be_focused()
    made.page.keyboard.type("dates j")
    press("Tab")
    made.page.keyboard.type("of years")
    press("Shift+Enter")
    made.page.keyboard.type("<b>bold</b>")
    made.page.evaluate(HOLD)
    press("Enter")
    expect(editor.get_by_role("status")).to_have_text("saving\u2026")
    made.page.evaluate("release()")
    expect(editor).to_be_hidden()
    expect(made.page.get_by_role("region", name="feature 5").first).to_be_focused()
    for i in range(2):  # the other view, too
        view = made.page.locator(".xk-browser").nth(i)
        expect(view.locator(".xk-top .xk-name")).to_have_text("dates j")
        expect(view.locator(".xk-said")).to_have_text("of years\n<b>bold</b>")
        label = view.get_by_role("option", selected=True).locator(".xk-peak-token")
        expect(label).to_have_text("dates j")
    assert labels_of(run) == [(5, "dates j", "of years\n<b>bold</b>")]


def test_a_label_that_is_refused_or_left_changes_nothing(shown, run):
    run._browsed().label(6, name="six")
    before = labels_of(run)
    made = shown(run.browse(6))
    press, editor = made.page.keyboard.press, made.page.get_by_role("group", name="label")
    name = editor.get_by_label("name")
    made.page.get_by_role("button", name="edit the label").click()
    expect(name).to_have_value("six")
    name.fill("seven")
    press("Escape")
    expect(editor).to_be_hidden()
    expect(made.page.get_by_role("region", name="feature 6")).to_be_focused()
    press("l")
    expect(name).to_have_value("six")
    name.fill("eight")
    made.page.evaluate(REFUSE, "the ledger is locked")
    press("Enter")
    expect(editor.get_by_role("status")).to_have_text("the ledger is locked")
    expect(name).to_have_value("eight")
    expect(name).to_be_focused()
    assert labels_of(run) == before


def test_what_was_typed_for_a_feature_stays_with_it(shown, run):
    run._browsed().label(6, name="six")
    made = shown(run.browse(6))
    press, editor = made.page.keyboard.press, made.page.get_by_role("group", name="label")
    name = editor.get_by_label("name")
    rows(made).press("l")
    name.fill("eight")
    rows(made).press("j")
    shows(made, 7)
    expect(name).to_have_value("eight")
    expect(editor.get_by_text("Label of feature 6")).to_be_visible()
    rows(made).press("l")
    expect(editor.get_by_role("status")).to_contain_text("Save or cancel")
    assert worst_contrast(made)[0] >= 4.5
    made.picture("browser-label-light")
    name.fill("six")
    press("Enter")  # nothing to save
    expect(editor).to_be_hidden()
    press("l")
    expect(editor.get_by_text("Label of feature 7")).to_be_visible()
    rows(made).press("j")
    expect(editor).to_be_hidden()  # nothing was typed
