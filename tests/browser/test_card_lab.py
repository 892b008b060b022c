"""The card in a real JupyterLab with a real kernel: what a stub page cannot show."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.results_to_browse import write_result

pytestmark = pytest.mark.browser

WIDGET = "application/vnd.jupyter.widget-view+json"
SOURCE = Path(__file__).with_name("moving_run.py")


def launch(seconds):
    """The one cell that makes ``run``; it measures 100,000 tokens in about `seconds`."""
    return f"from moving_run import MovingRun\nrun = MovingRun(seconds={seconds})\nrun"


@pytest.fixture(autouse=True)
def moving_run(lab_server):
    shutil.copy(SOURCE, lab_server.root / SOURCE.name)


PACE = """from dataclasses import replace
from extraction_kit.widgets import hub
hub.current().pace = replace(hub.current().pace, linger_s={linger_s})"""


def features_of(cell):
    return cell.get_by_role("region", name="Features of t-7f3a").locator(".xk-browser")


def opened_in_the_card(cell):
    """Open the features of a completed run by keyboard, and go to another one."""
    cell.get_by_role("button", name="Open features").press("Enter")
    expect(features_of(cell)).to_have_attribute("data-feature", "0", timeout=30_000)
    features_of(cell).get_by_role("listbox", name="Features").press("j")
    expect(features_of(cell)).to_have_attribute("data-feature", "1")


def kept_while_its_features_are_open(book):
    opened_in_the_card(book.cell(0))
    book.picture("lab-card-features-light")
    book.select(1)
    book.command("notebook:run-cell-and-select-next")
    expect(features_of(book.cell(0))).to_be_visible()
    book.cell(0).get_by_role("button", name="Close", exact=True).click()


def features_are_open_on_a_reloaded_page_too(book, cell):
    opened_in_the_card(cell)
    book.command("docmanager:save")
    book.open()
    expect(features_of(cell)).to_have_attribute("data-feature", "1", timeout=30_000)
    cell.get_by_role("button", name="Close features").click()
    expect(features_of(cell)).to_have_count(0)


def test_a_run_is_watched_to_its_end_and_leaves_a_record_without_a_kernel(
    notebook, lab_server
):
    write_result(lab_server.root / "result-of-the-card")
    again = f"{PACE.format(linger_s=60.0)}\nrun"
    book = notebook([launch(4), PACE.format(linger_s=0.0), again])
    book.start("notebook:run-cell-and-select-next")
    card = book.cell(0).get_by_role("group", name="t-7f3a")
    expect(card).to_have_attribute("data-state", "extracting", timeout=20_000)
    expect(card).to_have_attribute("data-state", "completed", timeout=20_000)
    kept_while_its_features_are_open(book)
    # then the finished card is plain HTML: a reopened notebook shows it without a kernel
    record = book.cell(0).locator(".xk-static")
    expect(record).to_contain_text("Completed", timeout=20_000)
    expect(record).to_contain_text("<b>integers</b>")
    bundle = book.outputs(0)[0]["data"]
    assert set(bundle) == {"text/html", "text/plain"}
    assert "<Run t-7f3a g1 completed 100% of 100,000 tokens>" in "".join(
        bundle["text/plain"]
    )
    # the second card, of a run that was completed before, refuses
    book.select(2)
    book.command("notebook:run-cell")
    second = book.cell(2).get_by_role("group", name="t-7f3a")
    expect(second).to_have_attribute("data-state", "completed")
    button = second.get_by_role("button", name="Launch", exact=True)
    button.click(force=True)
    expect(second.locator(".xk-refusal")).to_contain_text("Launch refused.")
    button.press("Enter")
    expect(second).to_have_attribute("data-state", "completed")
    book.picture("lab-completed-light")
    features_are_open_on_a_reloaded_page_too(book, book.cell(2))


def test_cancel_is_heard_while_a_cell_blocks_the_kernel(notebook):
    book = notebook([launch(60), "run.wait(25)"])
    book.command("notebook:run-cell-and-select-next")
    card = book.cell(0).get_by_role("group", name="t-7f3a")
    expect(card.get_by_role("button", name="Cancel")).to_be_visible()
    book.start("notebook:run-cell")
    book.picture("lab-running-light")
    card.get_by_role("button", name="Cancel").click()
    # wait(25) blocks the main thread: only a message beside it can end it early
    expect(card).to_have_attribute("data-state", "cancelled", timeout=10_000)
    card.get_by_role("button", name="Resume").press("Enter")  # a mouse may double click
    expect(card).to_have_attribute("data-state", "extracting", timeout=10_000)
    expect(card).to_contain_text("attempt 2")


def test_a_reloaded_page_shows_the_same_card_live_again(notebook):
    book = notebook([launch(60)])
    book.command("notebook:run-all-cells")
    expect(book.cell(0).get_by_role("group", name="t-7f3a")).to_be_visible()
    book.command("docmanager:save")
    book.open()
    card = book.cell(0).get_by_role("group", name="t-7f3a")
    expect(card).to_have_attribute("data-state", "extracting", timeout=20_000)
    before = card.get_by_role("progressbar").get_attribute("aria-valuetext")
    expect(card.get_by_role("progressbar")).not_to_have_attribute("aria-valuetext", before)
    card.get_by_role("button", name="Cancel").click()
    expect(card).to_have_attribute("data-state", "cancelled", timeout=10_000)


def test_keys_pressed_on_a_button_never_touch_the_notebook(notebook):
    book = notebook([launch(60), "1", "2"])
    book.command("notebook:run-cell")
    cancel = book.cell(0).get_by_role("button", name="Cancel")
    book.focus(cancel)
    for key in ("x", "d", "d", "a", "b"):
        book.page.keyboard.press(key)
    assert book.n_cells() == 3
    expect(cancel).to_be_focused()


def test_a_saved_live_card_keeps_its_static_words(notebook, lab_server):
    book = notebook([launch(60)])
    book.command("notebook:run-all-cells")
    expect(book.cell(0).get_by_role("group", name="t-7f3a")).to_be_visible()
    book.command("docmanager:save")
    stored = json.loads((lab_server.root / book.name).read_text())
    bundle = stored["cells"][0]["outputs"][0]["data"]
    assert {WIDGET, "text/html", "text/plain"} <= set(bundle)
    assert "Extracting" in "".join(bundle["text/html"])


def test_the_card_follows_the_dark_theme(notebook):
    book = notebook([launch(20)])
    book.theme("JupyterLab Dark")
    book.command("notebook:run-all-cells")
    card = book.cell(0).get_by_role("group", name="t-7f3a")
    expect(card).to_be_visible()
    painted = card.evaluate("(node) => getComputedStyle(node).backgroundColor")
    assert max(int(n) for n in painted[4:-1].split(",")[:3]) < 80
    expect(card).to_contain_text("dead so far")
    found = card.get_by_role("group", name="found so far")
    expect(found.locator(".xk-peak")).to_have_text(" <b>integers</b>")
    # JupyterLab styles lists and buttons of its own: the figures still stand in one row
    figures = card.locator(".xk-stat").all()
    assert len({figure.bounding_box()["y"] for figure in figures}) == 1
    rounded = card.get_by_role("button", name="Cancel")
    assert rounded.evaluate("(node) => getComputedStyle(node).borderRadius") == "6px"
    card.get_by_text("What happened (1)").click()
    book.picture("lab-running-dark")
    book.theme("JupyterLab Light")
