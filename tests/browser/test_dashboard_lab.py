"""The dashboard in a real JupyterLab, while another process launches a real run."""

import re

import pytest
from playwright.sync_api import expect

from tests.acceptance.staging import CONFIG, Stage

pytestmark = pytest.mark.browser


@pytest.fixture
def stage(tmp_path, tiny):
    stage = Stage(tmp_path / "ws", tiny)
    yield stage
    stage.close()


def launch_from_the_form(board, run):
    """Launch the corpus of `run` with another top_k; return the id that was foreseen."""
    board.get_by_role("button", name="New run…").click()
    outcome = board.locator(".xk-outcome")
    expect(outcome).to_contain_text(f"Refused: run {run.run_id[:8]} is completed")
    top_k = board.get_by_label("Top k", exact=True)
    top_k.fill("6")
    top_k.press("Enter")
    expect(outcome).to_contain_text("A new run", timeout=10_000)
    expect(outcome).to_contain_text("about")  # an estimate, from the first run
    begins = outcome.locator(".xk-come").inner_text().removeprefix("A new run, ")
    board.locator(".xk-form .xk-main").click()
    row = board.locator(f'[data-run^="{begins}"]')
    expect(row).to_be_visible(timeout=30_000)
    return row.get_attribute("data-run")


def launched_once_from_the_form(book, board, stage, run):
    """Launch from the form; the second time it refuses, and says why."""
    second = launch_from_the_form(board, run)
    row = board.locator(f'[data-run="{second}"]')
    expect(row).to_have_attribute("aria-selected", "true", timeout=30_000)
    expect(row).to_have_attribute("data-state", "completed", timeout=120_000)
    # the form hears of it: the same launch is refused, and says why
    outcome = board.locator(".xk-outcome")
    expect(outcome).to_contain_text(f"Refused: run {second[:8]} is completed")
    expect(outcome).to_contain_text("A completed run is never run again")
    launch = board.locator(".xk-form .xk-main")
    expect(launch).to_have_attribute("aria-disabled", "true")
    launch.click(force=True)
    assert len(stage.ws.views()) == 2
    assert stage.executions(stage.ws.run(second)) == 1
    book.picture("lab-dashboard-form-light")
    board.locator(".xk-form").get_by_role("button", name="Close").click()
    return second


def features_opened_in_place(book, board, other):
    """Open the features of the run that is selected, below the table; then of both."""
    detail = board.locator(".xk-detail")
    opens = board.locator(".xk-foot").get_by_role("button", name="Open features")
    opens.click()
    expect(detail.locator("[data-feature]").first).to_be_visible(timeout=30_000)
    book.picture("lab-dashboard-features-light")
    board.locator(f'[data-run="{other}"] .xk-c-check').click()
    opens.click()
    sides = detail.get_by_role("group", name=re.compile("^examples of [AB],"))
    expect(sides).to_have_count(2, timeout=30_000)
    book.picture("lab-dashboard-side-by-side-light")
    detail.get_by_role("button", name="Close").first.click()
    board.get_by_role("button", name="Clear").click()


def test_a_run_of_another_process_is_seen_from_its_launch_to_its_end(notebook, stage):
    home = str(stage.ws.home)
    opening = (
        f"import extraction_kit as xk\nws = xk.Workspace({home!r})\nboard = ws.dashboard()"
    )
    book = notebook([f"{opening}\nboard", "board.selection", "1"])
    book.command("notebook:run-cell")
    board = book.cell(0).get_by_role("region", name="Runs")
    expect(board).to_contain_text("No runs yet", timeout=30_000)
    run = stage.launch(config=CONFIG)  # the kernel is not told
    row = board.locator(f'[data-run="{run.run_id}"]')
    expect(row).to_be_visible(timeout=10_000)
    expect(row).to_have_attribute("data-state", "completed", timeout=120_000)
    expect(board.locator(".xk-facts")).to_contain_text("server answers", timeout=10_000)
    row.click()
    card = board.get_by_role("group", name="tiny")
    expect(card).to_have_attribute("data-state", "completed")
    expect(card.locator(".xk-feature").first).to_be_visible()  # of the real result
    card.get_by_role("button", name="Launch").click(force=True)
    expect(card).to_contain_text("Launch refused.")
    assert stage.executions(run) == 1
    second = launched_once_from_the_form(book, board, stage, run)
    features_opened_in_place(book, board, run.run_id)
    board.locator(f'[data-run="{second}"]').click()
    # keys that delete a notebook's cells stay in the table
    book.focus(board.get_by_role("grid"))
    for key in ("Space", "x", "d", "d"):
        book.page.keyboard.press(key)
    assert book.n_cells() == 3
    expect(board.locator(".xk-selected")).to_have_text("1 selected")
    expect(board.locator(".xk-card")).to_be_visible()
    book.picture("lab-dashboard-light")
    book.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    book.command("notebook:run-cell")
    assert second in str(book.outputs(1))
