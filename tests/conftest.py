"""What holds for every test: a neutral environment, and no silent skip in CI."""

import os
import random
import re
import subprocess
import sys

import hypothesis
import pytest

from tests import postgres

for _name in [name for name in os.environ if name.startswith("EXTRACTION_KIT_")]:
    del os.environ[_name]  # a test must not touch the workspace or the server of its reader
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Speed is never tested: what took too long on a busy machine is no bug.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

pytest_plugins = ["tests.acceptance.matrix.table"]

SKIPS_ALLOWED_IN_CI: tuple[str, ...] = ()
"""How the reason of a skip may begin when ``CI`` is set: regular expressions, each with a why."""


def pytest_addoption(parser):
    """Let a test that leans on another one be found."""
    parser.addoption(
        "--shuffle", metavar="SEED",
        help="run the files, and the tests of each, in an order that is drawn with this seed",
    )  # fmt: skip


@pytest.hookimpl(trylast=True)  # after the tests that were not asked for are gone
def pytest_collection_modifyitems(config, items):
    """Order the tests: as `--shuffle` says, else so that no process has to wait for another."""
    seed = config.getoption("shuffle")
    if seed is None:
        _spread(items)
        return
    chance = random.Random(seed)  # noqa: S311 - an order
    chance.shuffle(items)
    files = list(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: files.index(item.path))


def _spread(items):
    """Spread the tests that wait for other processes evenly among those that compute.

    Each of the processes that run tests gets a stretch of the list: one that had all the
    waiting ones would end minutes after the others.
    """
    waiting = [item for item in items if "acceptance" in item.path.parts]
    computing = [item for item in items if "acceptance" not in item.path.parts]
    step = (len(computing) + 1) / (len(waiting) + 1)
    places = [(number, item) for number, item in enumerate(computing)]
    places += [((number + 1) * step - 0.5, item) for number, item in enumerate(waiting)]
    items[:] = [item for _, item in sorted(places, key=lambda place: place[0])]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    """Judge the report of one test phase."""
    report = yield
    return _judged(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    """Judge the report of collecting one module."""
    report = yield
    return _judged(report)


def _judged(report):
    """Turn a skip into an error in CI, unless its reason is in the list above."""
    if not _in_ci() or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return report
    where, line, reason = report.longrepr
    reason = reason.removeprefix("Skipped: ")
    if not any(re.match(pattern, reason) for pattern in SKIPS_ALLOWED_IN_CI):
        report.outcome = "failed"
        report.longrepr = (
            f"{where}:{line}: skipped in CI: {reason!r}. Make it run there, or add the reason "
            "to SKIPS_ALLOWED_IN_CI in tests/conftest.py"
        )
    return report


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


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
    from extraction_kit.testing import ARCHITECTURES, TinyTraining  # noqa: PLC0415 - after the environment is cleared

    return TinyTraining(
        model=folder / "model",
        saes={name: folder / f"sae-{name}" for name in ARCHITECTURES},
        corpus=folder / "corpus.jsonl",
        texts=(),
        hook_name="blocks.1.hook_resid_post",
        d_in=16,
        d_sae=48,
    )


@pytest.fixture(scope="session")
def postgres_server():
    """A PostgreSQL server that lives as long as the tests."""
    with postgres.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server):
    """The URL of an empty database on a real PostgreSQL."""
    return postgres.fresh_database(postgres_server)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request):
    """What ``Settings.ledger_url`` is: None for SQLite, else an empty PostgreSQL database."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
