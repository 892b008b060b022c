"""The demo and the first notebook on the real language model: killed, resumed, run again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from extraction_kit import ExtractionConfig, Workspace
from extraction_kit.lifecycle import RunState
from tests.waiting import until

pytestmark = pytest.mark.demo

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "build" / "demo-parts"
N_TOKENS = "20000"


def demo(workspace, *arguments):
    command = [sys.executable, "-m", "extraction_kit.demo", "--workspace", str(workspace)]
    return subprocess.Popen(
        [*command, "--n-tokens", N_TOKENS, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, timeout=300):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


@pytest.fixture
def home(tmp_path):
    """An empty workspace with the demo's model, texts and SAE."""
    code, output = finish(demo(PARTS, "--parts-only"), timeout=900)
    assert code == 0, output
    home = tmp_path / "ws"
    home.mkdir()
    (home / "demo").symlink_to(PARTS / "demo")
    yield home
    Workspace(home).down()


@pytest.mark.timeout(1800)
def test_a_killed_demo_resumes_to_the_digest_of_an_undisturbed_one(home):
    watching = demo(home)
    ws = Workspace(home)
    view = until(
        lambda: next((one for one in ws.views() if one.checkpoint_tokens), None),
        "the first checkpoint",
        patience_s=180,
    )
    run = ws.run(view.run_id)
    os.kill(int(view.worker.rpartition(":")[2]), signal.SIGKILL)
    until(lambda: run.state is RunState.INTERRUPTED, "interrupted", patience_s=10)
    code, output = finish(watching)
    assert code == 1
    assert "interrupted" in output

    code, output = finish(demo(home))
    assert code == 1, "a resting run must not start again by itself"
    assert "refused" in output
    assert "--resume" in output or "demo-resume" in output
    assert run.state is RunState.INTERRUPTED

    code, output = finish(demo(home, "--resume"))
    assert code == 0, output
    assert run.view.attempt == 2
    assert run.result()["provenance"]["resumed_from_tokens"] >= view.checkpoint_tokens

    code, output = finish(demo(home), timeout=30)
    assert code == 0, output
    assert "completed since" in output
    assert "L0 32.0" in output

    undisturbed = ws.launch(
        "smollm2-demo",
        corpus=home / "demo" / "texts.jsonl",
        config=ExtractionConfig.from_dict(run.result()["config"]),
        generation=2,
    )
    assert undisturbed.wait(300).state is RunState.COMPLETED, undisturbed.explain()
    assert undisturbed.view.result_digest == run.view.result_digest


@pytest.mark.timeout(900)
def test_run_all_twice_and_a_dead_kernel_compute_once(home, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_HOME", str(home))
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")

    def run_all(notebook):
        folder = {"metadata": {"path": str(ROOT / "notebooks")}}
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources=folder
        ).execute()

    whole = nbformat.read(ROOT / "notebooks" / "1-launch.ipynb", as_version=4)
    cut_off = nbformat.v4.new_notebook(metadata=whole.metadata)
    for cell in whole.cells:
        cut_off.cells.append(cell)
        if "ws.launch(" in cell.source:
            break
    cut_off.cells.append(nbformat.v4.new_code_cell("import os; os.kill(os.getpid(), 9)"))
    with pytest.raises(DeadKernelError):
        run_all(cut_off)
    for _ in range(2):
        run_all(whole)

    ws = Workspace(home)
    (view,) = ws.views()
    assert view.state is RunState.COMPLETED
    kinds = [one.kind for one in ws.run(view.run_id).explain().happenings]
    assert kinds.count("claim") == 1
    assert kinds.count("launched") == 1
