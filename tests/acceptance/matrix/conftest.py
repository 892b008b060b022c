"""Stages for the matrix, the undisturbed digest, and the table that is printed at the end."""

from contextlib import ExitStack

import pytest

from tests.acceptance.matrix import expected
from tests.acceptance.matrix.faults import FAULTS
from tests.acceptance.matrix.phases import PHASES
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


# --- the table at the end -------------------------------------------------------------------

_FOUND = pytest.StashKey()


def pytest_configure(config):
    config.stash[_FOUND] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Remember what became of each cell."""
    report = yield
    cell = getattr(item, "callspec", None) and item.callspec.params
    if cell and "fault" in cell:
        found = item.config.stash[_FOUND].setdefault(cell["database"], {})
        key = cell["fault"], cell["phase"]
        if report.failed or report.skipped:
            found[key] = report.outcome.upper()
        else:
            found.setdefault(key, expected.cells()[key])
    return report


def pytest_terminal_summary(terminalreporter, config):
    """Print one table per database: what each cell came to, ``-`` if it was not chosen."""
    for database, found in config.stash[_FOUND].items():
        terminalreporter.section(f"fault x phase on {database}: {len(found)} cells run")
        terminalreporter.write_line(expected.MEANING)
        terminalreporter.write_line(f"{'':20}" + "".join(f"{p:>11}" for p in PHASES))
        for fault in FAULTS:
            row = "".join(f"{found.get((fault, phase), '-'):>11}" for phase in PHASES)
            terminalreporter.write_line(f"{fault:20}{row}")
