"""Real workspaces with real servers, workers and a tiny but real model."""

import subprocess
import sys

import pytest

from extraction_kit.lifecycle import RunState
from extraction_kit.testing import ARCHITECTURES, TinyTraining
from tests.acceptance.staging import PATIENCE_S, Stage


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny model with its SAEs, made in another process: this one never imports torch."""
    folder = tmp_path_factory.mktemp("tiny")
    code = (
        "import sys; from pathlib import Path; from extraction_kit.testing import tiny_training;"
        "tiny_training(Path(sys.argv[1]), n_documents=3000)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True
    )
    return TinyTraining(
        model=folder / "model",
        saes={name: folder / f"sae-{name}" for name in ARCHITECTURES},
        corpus=folder / "corpus.jsonl",
        texts=(),
        hook_name="blocks.1.hook_resid_post",
        d_in=16,
        d_sae=48,
    )


@pytest.fixture
def stage(tmp_path, tiny):
    stage = Stage(tmp_path / "ws", tiny)
    yield stage
    stage.close()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, tiny):
    """The completed run of CONFIG that nothing ever happened to."""
    stage = Stage(tmp_path_factory.mktemp("undisturbed") / "ws", tiny)
    run = stage.launch()
    run.wait(PATIENCE_S)
    assert run.state is RunState.COMPLETED, run.explain()
    yield stage, run
    stage.close()
