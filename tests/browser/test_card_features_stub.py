"""The features below a run card: opened, closed and refused, in a page without a kernel."""

import pytest
from playwright.sync_api import expect

from tests.browser.pages import BUSY, worst_contrast

pytestmark = pytest.mark.browser


def features(made):
    return made.page.get_by_role("region", name="Features of smollm2-l15-topk32")


def assert_expanded(made):
    """The button, focused, tells a screen reader what it has opened."""
    button = made.button("Close features")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(button).to_have_attribute("aria-controls", features(made).get_attribute("id"))
    expect(button).to_be_focused()
    made.page.clock.run_for(100)
    status = made.page.get_by_role("status")
    expect(status).to_have_text("The features are open below the card.")


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_features_are_opened_below_the_card_and_closed_again(stub, given, key):
    made = stub(given.completed())
    button = made.button("Open features")
    expect(button).to_have_attribute("aria-expanded", "false")
    made.page.keyboard.press("Tab")
    expect(button).to_be_focused()
    made.page.keyboard.press(key)
    expect(made.button("Opening…")).to_have_attribute("aria-disabled", "true")
    made.button("Opening…").press(key)  # once is enough
    assert [act["name"] for act in made.acts()] == ["features"]
    expect(features(made)).to_be_hidden()
    made.ack(browser="m1")
    expect(features(made).get_by_text("anywidget:m1")).to_be_visible()
    assert_expanded(made)
    features(made).get_by_text("anywidget:m1").press("Escape")  # the browser's own key
    expect(features(made)).to_be_visible()
    close = features(made).get_by_role("button", name="Close", exact=True)
    close.press("Escape")
    expect(features(made)).to_be_hidden()
    expect(button).to_be_focused()
    assert [act["name"] for act in made.acts()] == ["features", "close"]


def test_a_state_that_was_on_its_way_neither_closes_nor_opens_features(stub, given):
    made = stub(given.completed())
    made.click("Open features")
    made.ack(browser="m1")
    made.push(given.completed())
    expect(features(made).get_by_text("anywidget:m1")).to_be_visible()
    made.click("Close features")
    made.push(given.completed(), browser="m1")
    expect(features(made)).to_be_hidden()
    made.click("Open features")
    made.ack(browser="m2")
    expect(features(made).get_by_text("anywidget:m2")).to_be_visible()
    expect(features(made).get_by_text("anywidget:m1")).to_have_count(0)


def test_features_that_are_open_are_shown_again_on_a_page_that_was_reloaded(stub, given):
    made = stub(given.completed(), browser="m1")
    expect(features(made).get_by_text("anywidget:m1")).to_be_visible()
    assert made.acts() == []
    made.push(given.completed())  # another view of the card closed them
    expect(features(made)).to_be_hidden()
    expect(made.button("Open features")).to_be_visible()


def test_one_of_two_views_goes_and_the_other_keeps_its_features(stub, given):
    made = stub(given.completed(), browser="m1")
    made.page.evaluate("again()")
    expect(features(made)).to_have_count(2)
    made.page.evaluate("stopAgain()")
    expect(features(made)).to_have_count(1)
    expect(features(made).get_by_text("anywidget:m1")).to_be_visible()
    assert made.acts() == []
    made.page.evaluate("stop()")
    assert [act["name"] for act in made.acts()] == ["close"]


def test_the_kernel_says_why_features_are_not_opened(stub, given):
    made = stub(given.completed())
    made.click("Open features")
    made.page.clock.run_for(750)
    expect(made.page.get_by_text(f"Open features sent — {BUSY}")).to_be_visible()
    told = {
        "kind": "progress",
        "id": made.acts()[-1]["id"],
        "text": "Opening the features…",
    }
    made.page.evaluate("(told) => model.fire('msg:custom', told)", told)
    expect(made.page.locator(".xk-note")).to_have_text("Opening the features…")
    made.ack(ok=False, reason="features.parquet is missing: type `ws.verify()`")
    expect(made.page.locator(".xk-note")).to_contain_text("features.parquet is missing")
    expect(features(made)).to_be_hidden()
    made.click("Open features")
    made.ack(browser="broken")
    expect(made.page.locator(".xk-note")).to_contain_text("no such widget")
    assert [act["name"] for act in made.acts()] == ["features", "features", "close"]
    expect(made.button("Open features")).to_have_attribute("aria-expanded", "false")


def test_without_a_kernel_features_are_not_available_and_the_line_is_shown(stub, given):
    made = stub(given.completed())
    without = made.page.locator(".xk-without")
    made.page.clock.run_for(5_000)
    expect(without).to_be_hidden()
    made.page.clock.run_for(8_000)  # the card's hello is not answered
    expect(without).to_contain_text("it is busy or gone")
    expect(without.locator("code")).to_have_text("run.browse()")
    button = made.button("Open features")
    expect(button).to_have_attribute("aria-disabled", "true")
    assert worst_contrast(made)[0] >= 4.5
    made.picture("card-without-kernel-light")
    button.press("Enter")  # tries again
    assert made.acts() == []
    hello = made.page.evaluate("model.sent.at(-1)")
    assert hello["kind"] == "hello"
    made.page.evaluate("(id) => model.ack({id, ok: true, reason: ''})", hello["id"])
    expect(without).to_be_hidden()
    expect(button).not_to_have_attribute("aria-disabled", "true")
    made.page.evaluate("() => { model.send = () => { throw new Error('gone'); }; }")
    button.press("Enter")
    expect(made.page.locator(".xk-note")).to_contain_text("The kernel of this card is gone")
    expect(without.locator("code")).to_have_text("run.browse()")
    expect(button).to_have_attribute("aria-disabled", "true")


def test_a_page_that_cannot_show_a_widget_in_another_one_shows_the_line(stub, given):
    made = stub(given.completed(), embeds=False)
    without = made.page.locator(".xk-without")
    expect(without).to_contain_text("cannot show a widget in another one")
    expect(without.locator("code")).to_have_text("run.browse()")
    made.click("Open features")
    assert made.acts() == []


def test_a_deleted_run_offers_no_features(stub, given):
    made = stub(given.completed(), browser="m1")
    expect(features(made)).to_be_visible()
    made.push(given.completed(deleted_at=given.t0), browser="m1")
    expect(features(made)).to_be_hidden()
    expect(made.button("Open features")).to_have_count(0)
    assert [act["name"] for act in made.acts()] == ["close"]
    made.button("Launch").press("Enter")
    expect(made.page.locator(".xk-refusal")).to_contain_text("Bring it back:ws.restore(")
