"""What a person waits for in the widgets, in a real JupyterLab: ``make bench-widgets``."""

import json
import shutil
import statistics
import time

import pytest
from playwright.sync_api import expect

from extraction_kit import LocalResult
from extraction_kit.catalog.listing import MEASURES, Listing
from extraction_kit.catalog.publish import MANIFEST
from extraction_kit.widgets.feature_list import FeatureList, peak_tokens
from tests.browser.conftest import (  # noqa: F401 - fixtures, and where things are
    ROOT,
    chromium,
    lab_server,
    notebook,
)
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


def report(rows):
    """Print the table; write it to ``build/bench/widgets.json``."""
    found = [
        {"name": name, "target": target, "value": round(value, 1), "unit": "ms"}
        for name, target, value in rows
    ]
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "widgets.json").write_text(json.dumps(found, indent=1))
    lines = [
        f"{row['name']:58} {row['value']:8.1f} ms"
        + ("" if row["target"] is None else f"  target < {row['target']} ms")
        for row in found
    ]
    print("", *lines, sep="\n")  # noqa: T201 - a benchmark prints
