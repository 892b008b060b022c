"""The feature browser in a real JupyterLab with a real kernel: what a stub page cannot show."""

import json

import pytest
from playwright.sync_api import expect

from tests.results_to_browse import Shape, write_result

pytestmark = pytest.mark.browser

CELLS = [
    """import time
import extraction_kit as xk
browser = xk.LocalResult('result').browse(20)
browser""",
    "time.sleep(600)",
    "browser.feature, browser.selection",
    "browser.feature = 480",
    """both = xk.LocalResult('result').browse(20, compare=xk.LocalResult('other'))
both""",
]


def keeps_both_in_step(book):
    book.command("notebook:run-cell")
    both = book.cell(4).locator(".xk-browser")
    rows = both.get_by_role("listbox", name="Features")
    expect(rows.get_by_role("option", selected=True)).to_be_visible()  # the list is there
    book.focus(rows)
    book.page.keyboard.press("j")
    expect(both).to_have_attribute("data-feature", "21")
    for letter in "AB":  # next to each other, as wide as a notebook is
        examples = both.get_by_role("group", name=f"examples of {letter}, synthetic")
        expect(examples.locator(".xk-sample")).to_have_count(20)
    book.picture("lab-compare-light")


def test_a_result_is_browsed_while_the_kernel_works_and_python_reads_along(
    notebook, lab_server
):
    for name, shape in (("result", Shape()), ("other", Shape(seed=1, n_contexts=300))):
        write_result(lab_server.root / name, shape)
    book = notebook(CELLS)
    book.command("notebook:run-cell-and-select-next")
    shown = book.cell(0).locator(".xk-browser")
    expect(shown).to_have_attribute("data-feature", "20")
    rows = shown.get_by_role("listbox", name="Features")
    rows.focus()
    book.start("notebook:run-cell-and-select-next")  # from now on a cell blocks the kernel
    book.focus(rows)
    for feature in (21, 22):
        book.page.keyboard.press("j")
        expect(shown).to_have_attribute("data-feature", str(feature))
    book.page.keyboard.press("m")
    expect(shown.get_by_text("1 marked")).to_be_visible()
    for key in ("x", "d", "d", "a", "b"):  # commands of the notebook, anywhere else
        book.page.keyboard.press(key)
    assert book.n_cells() == 5
    expect(rows).to_be_focused()
    book.page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()"
    )
    book.select(2)
    book.command("notebook:run-cell-and-select-next")
    assert "(22, [22])" in str(book.outputs(2))
    book.command("notebook:run-cell-and-select-next")
    expect(shown).to_have_attribute("data-feature", "480")
    book.picture("lab-browser-light")
    keeps_both_in_step(book)
    book.command("docmanager:save")
    stored = json.loads((lab_server.root / book.name).read_text())
    bundle = stored["cells"][0]["outputs"][0]["data"]
    assert "<strong>Feature 20</strong>" in "".join(bundle["text/html"])
    assert "".join(bundle["text/plain"]) == "<FeatureBrowser synthetic: feature 20 of 600>"
