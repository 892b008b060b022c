"""Stages for the matrix, the undisturbed digest, and the table that is printed at the end."""

import glob
from contextlib import ExitStack

import pytest

from tests.acceptance.matrix.script import N_BATCHES
from tests.acceptance.matrix.stagehand import SETTINGS, Stagehand
from tests.acceptance.matrix.zygote import FAKETIME, Zygote


@pytest.fixture(scope="session")
def zygote():
    one = Zygote()
    yield one
    one.close()


@pytest.fixture(scope="session")
def zygote_with_movable_clock(tmp_path_factory):
    found = glob.glob(FAKETIME)  # noqa: PTH207 - an absolute pattern
    if not found:
        pytest.skip("no libfaketime: apt-get install faketime")
    one = Zygote(
        {
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(tmp_path_factory.mktemp("clock") / "none"),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    )
    yield one
    one.close()


@pytest.fixture
def make_stage(request, tmp_path, tiny, zygote):
    """Return a function that opens the stage of a cell."""
    with ExitStack() as ends:

        def make(*, beforehand=None, movable_clock=False, settings=SETTINGS):
            chosen = zygote
            if movable_clock:
                chosen = request.getfixturevalue("zygote_with_movable_clock")
            if beforehand is not None:
                settings = beforehand(tmp_path, settings, ends)
            stage = Stagehand(tmp_path / "stage", tiny, zygote=chosen, settings=settings)
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
