"""Stages for the matrix, and the undisturbed digest."""

from contextlib import ExitStack

import pytest

from tests.acceptance.matrix.script import N_BATCHES
from tests.acceptance.matrix.stagehand import SETTINGS, Stagehand
from tests.acceptance.matrix.zygote import Zygote


@pytest.fixture(scope="session")
def zygote():
    one = Zygote()
    yield one
    one.close()


@pytest.fixture
def make_stage(tmp_path, tiny, zygote):
    """Return a function that opens the stage of a cell."""
    with ExitStack() as ends:

        def make(*, beforehand=None, settings=SETTINGS):
            if beforehand is not None:
                settings = beforehand(tmp_path, settings, ends)
            stage = Stagehand(tmp_path / "stage", tiny, zygote=zygote, settings=settings)
            ends.callback(stage.close)
            return stage

        yield make


@pytest.fixture(scope="session")
def undisturbed_digest(tmp_path_factory, tiny, zygote):
    """The result digest of the run that nothing ever happened to."""
    stage = Stagehand(tmp_path_factory.mktemp("undisturbed"), tiny, zygote=zygote)
    try:
        stage.prepare()
        stage.launch()
        stage.finish()
        assert len(stage.script.lines("batch")) == N_BATCHES
        return stage.record().result_digest
    finally:
        stage.close()
