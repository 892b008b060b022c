"""The dashboard in a real JupyterLab, while another process launches a real run."""

import pytest
from playwright.sync_api import expect

from tests.acceptance.staging import CONFIG, Stage
from tests.browser.pages import SCREENSHOTS

pytestmark = pytest.mark.browser


@pytest.fixture
def stage(tmp_path, tiny):
    stage = Stage(tmp_path / "ws", tiny)
    yield stage
    stage.close()


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
    expect(row).to_have_attribute("data-state", "completed", timeout=60_000)
    expect(board.locator(".xk-facts")).to_contain_text("server answers", timeout=10_000)
    row.click()
    card = board.get_by_role("group", name="tiny")
    expect(card).to_have_attribute("data-state", "completed")
    expect(card.locator(".xk-feature").first).to_be_visible()  # of the real result
    card.get_by_role("button", name="Launch").click(force=True)
    expect(card).to_contain_text("Launch refused.")
    assert stage.executions(run) == 1
    # keys that delete a notebook's cells stay in the table
    board.get_by_role("grid").focus()
    for key in ("Space", "x", "d", "d"):
        book.page.keyboard.press(key)
    assert book.n_cells() == 3
    expect(board.locator(".xk-selected")).to_have_text("1 selected")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    book.picture("lab-dashboard-light")
    book.page.evaluate("window.jupyterapp.shell.currentWidget.content.activeCellIndex = 1")
    book.command("notebook:run-cell")
    assert run.run_id in str(book.outputs(1))
