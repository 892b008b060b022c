"""The pictures in the README, made from the demo's real runs: ``make pictures``."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit import ExtractionConfig, Workspace
from extraction_kit.lifecycle import RunState
from tests.browser.pages import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

PARTS = ROOT / "build" / "demo-parts"
PICTURES = ROOT / "notebooks" / "pictures"
SHORT = ExtractionConfig(n_tokens=8_000, top_k=10)


@pytest.fixture(scope="module")
def study():
    """A workspace whose path may be seen in a picture."""
    folder = Path("/tmp/sae-study")  # noqa: S108 - a short, neutral name
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", "anna")  # whose name the pictures show
        command = [sys.executable, "-m", "extraction_kit.demo", "--parts-only"]
        subprocess.run([*command, "--workspace", PARTS], cwd=ROOT, check=True)
        home = folder / ".extraction_kit"
        home.mkdir()
        (home / "demo").symlink_to(PARTS / "demo")
        PICTURES.mkdir(exist_ok=True)
        ws = Workspace(home)
        yield ws
        ws.down()
    shutil.rmtree(folder)


def launch(ws, training_id, config, *, corpus="texts.jsonl"):
    demo = ws.home / "demo"
    ws.register_training(training_id, sae=demo / "sae", model=demo / "model")
    return ws.launch(training_id, corpus=demo / corpus, config=config)


def opened(notebook, ws, source):
    """Show the value of a cell in a real JupyterLab."""
    book = notebook(
        [f"import extraction_kit as xk\nws = xk.Workspace({str(ws.home)!r})\n{source}"]
    )
    book.command("notebook:run-cell")
    return book


def test_the_card_of_a_real_run_is_what_the_readme_shows(notebook, study):
    run = launch(study, "smollm2-demo", ExtractionConfig(n_tokens=100_000))
    book = opened(notebook, study, f"ws.run({run.run_id!r})")
    card = book.cell(0).get_by_role("group", name="smollm2-demo")
    expect(card.get_by_text("tokens/s")).to_be_visible(timeout=120_000)
    card.screenshot(path=PICTURES / "card-extracting.png")
    assert run.wait(300).state is RunState.COMPLETED, run.explain()
    book.command("notebook:run-cell")
    done = book.cell(0).get_by_role("group", name="smollm2-demo")
    expect(done).to_have_attribute("data-state", "completed", timeout=30_000)
    done.screenshot(path=PICTURES / "card.png")


def test_the_browser_of_a_real_run_is_what_the_readme_shows(notebook, study):
    run = launch(study, "smollm2-demo", ExtractionConfig(n_tokens=100_000))
    assert run.wait(300).state is RunState.COMPLETED, run.explain()
    # of the features with enough examples the one whose examples agree most on their token
    [(feature,)] = study.sql(
        "SELECT feature FROM peaks JOIN features USING (run_id, feature) WHERE run_id = ? "
        "AND features.n_active > 100 AND n_examples >= 15 "
        "ORDER BY features.max_act DESC, feature LIMIT 1",
        [run.run_id],
    ).fetchall()
    book = opened(notebook, study, f"ws.run({run.run_id!r}).browse({feature})")
    shown = book.cell(0).locator(".xk-browser")
    expect(shown).to_have_attribute("data-feature", str(feature), timeout=60_000)
    expect(shown.locator(".xk-sample").first).to_be_visible()
    shown.screenshot(path=PICTURES / "browser.png")


def test_the_dashboard_of_real_runs_is_what_the_readme_shows(notebook, study):
    configs = {"l9-topk32": SHORT, "l9-ctx64": SHORT.replace(context_size=64)}
    for name, config in configs.items():
        done = launch(study, name, config).wait(300)
        assert done.state is RunState.COMPLETED, done.explain()
    stopped = launch(study, "l9-long", ExtractionConfig(n_tokens=200_000))
    stopped.cancel()
    stopped.wait(120)
    running = launch(study, "l9-all", ExtractionConfig(n_tokens=100_000))
    book = opened(notebook, study, "ws.dashboard()")
    board = book.cell(0).get_by_role("region", name="Runs")
    row = board.locator(f'[data-run="{running.run_id}"]')
    expect(row).to_have_attribute("data-state", "extracting", timeout=120_000)
    expect(row).not_to_contain_text("starting", timeout=120_000)
    expect(board.locator(".xk-facts")).to_contain_text("server answers", timeout=30_000)
    board.screenshot(path=PICTURES / "dashboard.png")
    running.cancel()
    running.wait(120)
