"""What a person waits for in the widgets, in a real JupyterLab: ``make bench-widgets``."""

import json
import shutil
import statistics
import time
from datetime import UTC, datetime

import pytest
from playwright.sync_api import expect

from extraction_kit import LocalResult
from extraction_kit.catalog.listing import MEASURES, Listing
from extraction_kit.catalog.publish import MANIFEST
from extraction_kit.ledger import events
from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.widgets.feature_list import FeatureList, peak_tokens
from tests.browser.conftest import chromium  # noqa: F401 - a fixture
from tests.browser.lab import lab_server, notebook  # noqa: F401 - fixtures
from tests.browser.pages import ROOT
from tests.many_runs import MIXED, write_runs
from tests.results_to_browse import Shape, write_result

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1200)]

D_SAE = 131_072
N_KEYS = 40

# From the key press, as the page hears it, until the frame after the feature was drawn.
WATCH = """() => {
  const root = document.querySelector('.xk-browser');
  window.waits = [];
  let pressed = 0;
  document.addEventListener('keydown', () => (pressed = performance.now()), true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
    window.waits.push(performance.now() - pressed);
  }))).observe(root, {attributeFilter: ['data-feature']});
}"""


@pytest.fixture(scope="module")
def result():
    """Made once, in a minute; removed with ``build/``."""
    folder = ROOT / "build" / "bench" / f"browsed-{D_SAE}"
    if (folder / "results" / MANIFEST).exists():
        return LocalResult(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return write_result(folder, Shape(d_sae=D_SAE, n_contexts=20_000, n_words=30_000))


def test_browsing_131072_features(notebook, result):  # noqa: F811 - the fixture
    rows = [*_keys(notebook, result), *_lists(result)]
    report(rows)


def _keys(notebook, result):  # noqa: F811 - the fixture
    opening = f"xk.LocalResult({str(result.folder)!r}).browse(7)"
    book = notebook([f"import extraction_kit as xk\nbrowser = {opening}\nbrowser"])
    started = time.perf_counter()
    book.command("notebook:run-cell")
    shown = book.cell(0).locator(".xk-browser")
    expect(shown).to_have_attribute("data-feature", "7", timeout=60_000)
    opened = time.perf_counter() - started
    shown.get_by_role("listbox").focus()
    book.page.evaluate(WATCH)
    by_feature = _presses(book)
    shown.get_by_role("button", name="sort by density").click()
    expect(shown.get_by_role("button", name="sort by density, now")).to_be_visible()
    shown.get_by_role("listbox").focus()
    by_density = _presses(book)
    yield "cell run to first painted feature, imports included", None, 1e3 * opened
    yield "key press to painted feature", 100, statistics.median(by_feature)
    yield "key press to painted feature, 95 %", None, _worst(by_feature)
    yield "key press to painted feature, by density", 100, statistics.median(by_density)
    yield "key press to painted feature, by density, 95 %", None, _worst(by_density)


def _presses(book):
    """Press the key that goes to the next feature, again when it is painted."""
    book.page.evaluate("window.waits.length = 0")
    for n in range(1, N_KEYS + 1):
        book.page.keyboard.press("j")
        book.page.wait_for_function("(n) => window.waits.length >= n", arg=n)
    return book.page.evaluate("window.waits")


def _lists(result):
    """Time the kernel's part of another order; every measure, both ways."""
    browsed = result._browsed()
    peaks = peak_tokens(browsed, D_SAE)
    waits = []
    for measure in MEASURES:
        for descending in (False, True):
            listing = Listing(sort=measure, measure=measure, descending=descending)
            started = time.perf_counter()
            FeatureList(browsed, listing, peaks).rows(0, 120)
            waits.append(1e3 * (time.perf_counter() - started))
    yield "sort by a column, in the kernel", 100, statistics.median(waits)
    yield "sort by a column, in the kernel, slowest", None, max(waits)


def _worst(waits):
    return sorted(waits)[int(0.95 * len(waits))]


# --- the dashboard ------------------------------------------------------------------------

N_CHANGES = 20
SECONDS = 15

# Messages and bytes that the page hears, and the frame after the row of a run was drawn.
COUNT = """() => {
  window.heard = [];
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  kernel.anyMessage.connect((_, {msg, direction}) => {
    if (direction === 'recv' && msg.header.msg_type === 'comm_msg')
      window.heard.push(JSON.stringify(msg).length);
  });
}"""
DRAWN = """(run) => {
  const row = document.querySelector(`[data-run="${run}"]`);
  window.drawn = 0;
  new MutationObserver((_, self) => {
    self.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => (window.drawn = Date.now())));
  }).observe(row, {subtree: true, childList: true, characterData: true, attributes: true});
}"""
CPU = "import time; print(time.process_time(), time.time())"


@pytest.mark.parametrize("n", [1_000, 10_000])
def test_the_dashboard_of_many_runs(notebook, tmp_path, n):  # noqa: F811 - the fixture
    written = write_runs(tmp_path / "ws", n, shares=_shares(n))
    report([*_dashboard(notebook, written, n)], unit="")


def _shares(n):
    """200 runs extract, whatever the number."""
    shares = {state: share for state, share in MIXED.items() if state not in ACTIVE}
    return {**shares, RunState.EXTRACTING: 200 / n}


def _dashboard(notebook, written, n):  # noqa: F811 - the fixture
    home = str(written.bench.paths.home)
    opening = (
        "import extraction_kit as xk, extraction_kit.widgets.dashboard_view\n"
        f"ws = xk.Workspace({home!r}); 0"
    )
    book = notebook([opening, "ws.dashboard()", CPU])
    book.command("notebook:run-cell-and-select-next")
    started = time.perf_counter()
    book.start("notebook:run-cell-and-select-next")
    shown = book.cell(1).locator(".xk-dash")
    shown.locator("[data-run]").first.wait_for(timeout=60_000)
    painted = 1e3 * (time.perf_counter() - started)
    yield (
        f"dashboard: cell run to first paint of {n:,} runs, ms",
        1000 if n == 1_000 else None,
        painted,
    )
    shown.get_by_text("server not running").wait_for(timeout=60_000)
    book.page.evaluate(COUNT)
    waits = list(_changes(book, written))
    yield (
        f"dashboard of {n:,}: change in the ledger to pixels, ms",
        350,
        statistics.median(waits),
    )
    yield f"dashboard of {n:,}: the same, 95 %, ms", None, _worst(waits)
    for every_s, name in ((15, "at the default beat"), (1, "each beats every second")):
        book.command("notebook:run-cell")
        began = _clocks(book)
        book.page.evaluate("window.heard.length = 0")
        _beat_all(written, every_s)
        heard = book.page.evaluate("window.heard")
        book.command("notebook:run-cell")
        cpu, wall = (
            after - before for before, after in zip(began, _clocks(book), strict=True)
        )
        what = f"dashboard of {n:,}, 200 active, {name}"
        yield f"{what}: messages per second", 30, len(heard) / SECONDS
        yield f"{what}: MB per second", 0.2, sum(heard) / SECONDS / 1e6
        yield f"{what}: CPU of the kernel, %", 3, 100 * cpu / wall


def _changes(book, written):
    """Cancel one run after another, as another process does."""
    waiting = written.ids("extracting")
    for number in range(N_CHANGES):
        run_id = book.page.evaluate(
            "document.querySelectorAll('[data-run]')[3].dataset.run"
        )
        book.page.evaluate(DRAWN, run_id)
        with written.bench.store.write() as connection:
            events.record(
                connection, run_id, attempt=1, at=datetime.now(UTC), kind="note",
                actor="bench", text=str(number),
            )  # fmt: skip
            connection.exec_driver_sql(
                "UPDATE runs SET error = ?, state = 'failed' WHERE run_id = ?",
                (f"change {number}", run_id),
            )
        changed = 1e3 * time.time()
        book.page.wait_for_function("window.drawn > 0")
        yield book.page.evaluate("window.drawn") - changed
    assert waiting


def _beat_all(written, every_s):
    """Let every active run beat once in `every_s` seconds, one after another."""
    ids = written.ids("extracting")
    began = time.monotonic()
    for number in range(len(ids) * SECONDS // every_s):
        run_id, turn = ids[number % len(ids)], 2 + number // len(ids) + SECONDS // every_s
        done = 1_000 * turn + number
        written.beat(run_id, turn, done, tokens_per_s=1_000.0 + number)
        time.sleep(max(0.0, began + number * every_s / len(ids) - time.monotonic()))


def _clocks(book):
    text = "".join(book.outputs(2)[0]["text"])
    return [float(word) for word in text.split()]


def report(rows, unit="ms"):
    """Print the table; write it to ``build/bench/widgets.json``, beside what was there."""
    found = [
        {"name": name, "target": target, "value": round(value, 3), "unit": unit}
        for name, target, value in rows
    ]
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    names = {row["name"] for row in found}
    file = folder / "widgets.json"
    before = json.loads(file.read_text()) if file.exists() else []
    kept = [row for row in before if row["name"] not in names]
    file.write_text(json.dumps(kept + found, indent=1))
    lines = [
        f"{row['name']:76} {row['value']:10.2f} {unit}"
        + ("" if row["target"] is None else f"  target < {row['target']} {unit}")
        for row in found
    ]
    print("", *lines, sep="\n")  # noqa: T201 - a benchmark prints
