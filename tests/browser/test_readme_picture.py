"""The picture in the README, made from the demo's real run: ``make pictures``."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit import ExtractionConfig, Workspace
from extraction_kit.lifecycle import RunState
from tests.browser.conftest import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PARTS = ROOT / "build" / "demo-parts"
PICTURES = ROOT / "notebooks" / "pictures"


@pytest.fixture
def study():
    """A folder whose path may be seen in a picture."""
    folder = Path("/tmp/sae-study")  # noqa: S108 - a short, neutral name
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(900)
def test_the_card_of_a_real_run_is_what_the_readme_shows(notebook, study, monkeypatch):
    monkeypatch.setenv("LOGNAME", "anna")  # whose name the card shows
    command = [sys.executable, "-m", "extraction_kit.demo", "--parts-only"]
    subprocess.run([*command, "--workspace", PARTS], cwd=ROOT, check=True)
    home = study / ".extraction_kit"
    home.mkdir()
    (home / "demo").symlink_to(PARTS / "demo")
    ws = Workspace(home)
    ws.register_training(
        "smollm2-demo", sae=home / "demo" / "sae", model=home / "demo" / "model"
    )
    config = ExtractionConfig(n_tokens=100_000)
    run = ws.launch("smollm2-demo", corpus=home / "demo" / "texts.jsonl", config=config)
    try:
        source = (
            "import extraction_kit as xk\n"
            f"run = xk.Workspace({str(home)!r}).run({run.run_id!r})\n"
            "run"
        )
        book = notebook([source])
        book.command("notebook:run-cell")
        card = book.cell(0).get_by_role("group", name="smollm2-demo")
        expect(card.get_by_text("tokens/s")).to_be_visible(timeout=120_000)
        PICTURES.mkdir(exist_ok=True)
        card.screenshot(path=PICTURES / "card-extracting.png")
        assert run.wait(300).state is RunState.COMPLETED, run.explain()
        book.command("notebook:run-cell")
        done = book.cell(0).get_by_role("group", name="smollm2-demo")
        expect(done).to_have_attribute("data-state", "completed", timeout=30_000)
        done.screenshot(path=PICTURES / "card.png")
    finally:
        ws.down()
