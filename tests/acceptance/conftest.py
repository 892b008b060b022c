"""Real workspaces with real servers, workers and a tiny but real model."""

import pytest

from extraction_kit.lifecycle import RunState
from tests.acceptance.staging import Stage
from tests.waiting import PATIENCE_S


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
