"""The main job in a real JupyterLab: real kernel, server, worker and model, one page."""

import os
import signal

import pytest
from playwright.sync_api import expect

from tests.acceptance.staging import CONFIG, Stage, kill
from tests.browser.lab import NOTEBOOK_7
from tests.waiting import until

pytestmark = pytest.mark.browser

LONG = CONFIG.replace(n_tokens=None)


@pytest.fixture
def stage(tmp_path, tiny):
    stage = Stage(tmp_path / "ws", tiny)
    yield stage
    stage.close()


def cells(stage):
    launch = (
        "import extraction_kit as xk\n"
        f"ws = xk.Workspace({str(stage.ws.home)!r}, settings=xk.Settings("
        "beat_s=0.2, lease_s=60.0, reconcile_s=1.0, checkpoint_every_s=0.5, tile_tokens=64,"
        " threads=1, device='cpu', min_free_bytes=0))\n"
        f"config = xk.ExtractionConfig.from_dict({LONG.to_dict()!r})\n"
        f"run = ws.launch('tiny', corpus={str(stage.tiny.corpus)!r}, config=config)\n"
        "run"
    )
    return [launch, "run.wait(); run.state.value"]


def card(book, index=0):
    return book.cell(index).get_by_role("group", name="tiny")


def the_run(stage):
    return stage.ws.run(until(stage.ws.views, "a run in the ledger")[0].run_id)


def test_a_run_survives_the_kernel_and_run_all_again_launches_nothing(notebook, stage):
    book = notebook(cells(stage))
    book.command("notebook:run-cell")
    expect(card(book)).to_have_attribute("data-state", "extracting", timeout=60_000)
    book.picture("lab-real-extracting-light")
    run = the_run(stage)
    stage.in_the_middle(run)
    book.page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"
    )
    book.command("notebook:run-all-cells")
    assert "'completed'" in str(book.outputs(1))
    assert stage.executions(run) == 1
    book.command("notebook:run-all-cells")
    assert stage.executions(run) == 1
    assert len(stage.ws.views()) == 1
    expect(card(book)).to_have_attribute("data-state", "completed")
    refuse(card(book))
    book.picture("lab-real-completed-light")
    assert stage.executions(run) == 1


def test_card_browser_and_dashboard_work_in_notebook_7(notebook, stage):
    book = notebook([*cells(stage), "run.browse()", "ws.dashboard()"], NOTEBOOK_7)
    book.command("notebook:run-cell")
    expect(card(book)).to_have_attribute("data-state", "extracting", timeout=60_000)
    book.command("notebook:run-all-cells")
    assert "'completed'" in str(book.outputs(1))
    expect(card(book)).to_have_attribute("data-state", "completed")
    refuse(card(book))
    book.picture("notebook-7-completed-light")
    browser = book.cell(2).locator(".xk-browser")
    expect(browser).to_have_attribute("data-feature", "0", timeout=30_000)
    book.focus(browser.get_by_role("listbox", name="Features"))
    book.page.keyboard.press("j")
    expect(browser).to_have_attribute("data-feature", "1")
    row = book.cell(3).locator(f'[data-run="{the_run(stage).run_id}"]')
    expect(row).to_contain_text("Completed")
    book.picture("notebook-7-dashboard-light")
    assert len(stage.ws.views()) == 1
    assert stage.executions(the_run(stage)) == 1


def refuse(shown):
    button = shown.get_by_role("button", name="Launch", exact=True)
    button.click(force=True)
    expect(shown.locator(".xk-refusal")).to_contain_text("Launch refused.")
    button.press("Enter")
    expect(shown.locator(".xk-refusal")).to_contain_text("Completed since")


def test_a_killed_job_shows_as_interrupted_and_resumes_from_the_card(notebook, stage):
    book = notebook(cells(stage))
    book.command("notebook:run-cell")
    expect(card(book)).to_have_attribute("data-state", "extracting", timeout=60_000)
    run = the_run(stage)
    os.kill(stage.in_the_middle(run), signal.SIGKILL)
    expect(card(book)).to_have_attribute("data-state", "interrupted", timeout=15_000)
    book.picture("lab-real-interrupted-light")
    card(book).get_by_role("button", name="Resume").click()
    expect(card(book)).to_have_attribute("data-state", "extracting", timeout=60_000)
    expect(card(book)).to_contain_text("attempt 2")
    stage.in_the_middle(run)
    card(book).get_by_role("button", name="Cancel").click()
    expect(card(book)).to_have_attribute("data-state", "cancelled", timeout=15_000)
    assert stage.executions(run) == 2
    pid = stage.record(run).process["pid"]
    until(lambda: not kill(pid, 0), "the end of its process", patience_s=15)
