"""The table that is printed after the matrix: what each cell came to.

A plugin of tests/conftest.py: with several test processes it is printed by the one that
collects their reports and runs no test itself.
"""

import pytest

from tests.acceptance.matrix import expected


class Table:
    """Collects what became of each cell, and prints one table per database."""

    def __init__(self):
        self.found = {}

    def pytest_runtest_logreport(self, report):
        """Remember what became of a cell: of all phases of its test, the worst."""
        cell = getattr(report, "cell", None)
        if cell is None:
            return
        database, *key = cell
        found = self.found.setdefault(database, {})
        if report.failed or report.skipped:
            found[tuple(key)] = report.outcome.upper()
        else:
            found.setdefault(tuple(key), expected.cells()[tuple(key)])

    def pytest_terminal_summary(self, terminalreporter):
        """Print one table per database; ``-`` where a cell was not chosen."""
        faults, phases = (
            list(dict.fromkeys(each)) for each in zip(*expected.cells(), strict=True)
        )
        for database, found in sorted(self.found.items()):
            terminalreporter.section(f"fault x phase on {database}: {len(found)} cells run")
            terminalreporter.write_line(expected.MEANING)
            terminalreporter.write_line(f"{'':20}" + "".join(f"{p:>11}" for p in phases))
            for fault in faults:
                row = "".join(f"{found.get((fault, phase), '-'):>11}" for phase in phases)
                terminalreporter.write_line(f"{fault:20}{row}")


def pytest_configure(config):
    """Register the table."""
    config.pluginmanager.register(Table(), "matrix-table")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Say in the report of a cell's test which cell it is."""
    report = yield
    params = getattr(item, "callspec", None) and item.callspec.params
    if params and "fault" in params and "phase" in params:
        report.cell = [params["database"], params["fault"], params["phase"]]
    return report
