"""The dashboard's own files in a page: what is seen of a ledger of many runs, and found."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit.ledger.changes import listed_runs
from extraction_kit.watcher import Watcher
from extraction_kit.widgets import assets, dashboard_view
from tests.browser.dashboard_page import await_health, chip, grid, shown, sort
from tests.many_runs import write_runs

pytestmark = pytest.mark.browser

THEMES = ("light", "dark")
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "</td></div><b>bold</b> &amp; &lt;",
    "\u202eltr\u2066 \u05d0\u05d1\u05d2 \x00\x07\x1b[31m\x7f",
)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """A thousand runs that no test changes."""
    return write_runs(tmp_path_factory.mktemp("thousand") / "ws", 1000)


@pytest.fixture
def few(tmp_path):
    return write_runs(tmp_path / "ws", 20)


def worst_contrast(made):
    return made.page.evaluate(f"() => ({CONTRAST.strip().rstrip(';')})(document.body)")[0]


# --- what is seen -------------------------------------------------------------------------


@pytest.mark.parametrize("theme", THEMES)
def test_every_part_is_readable_in_light_and_dark(dashboard, thousand, theme):
    made = dashboard(Watcher(thousand.bench), theme=theme)
    await_health(made)
    made.picture(f"dashboard-1000-{theme}")
    assert worst_contrast(made)[0] >= 4.5, worst_contrast(made)
    for state in ("failed", "completed", "extracting"):
        made.page.get_by_role("searchbox").fill(thousand.ids(state)[0])
        made.until(lambda state=state: made.rows() == thousand.ids(state)[:1])
        grid(made).focus()
        made.page.keyboard.press("Space")
        made.page.keyboard.press("Enter")
        made.until(lambda: made.page.locator(".xk-card").count() == 1)
        assert worst_contrast(made)[0] >= 4.5, (state, worst_contrast(made))
        made.picture(f"dashboard-{state}-{theme}")
    made.page.get_by_role("searchbox").fill("")
    made.page.get_by_role("button", name="Group by training").click()
    shown(made, "1,000 runs")
    chip(made, "Failed").click()
    assert worst_contrast(made)[0] >= 4.5, worst_contrast(made)
    made.picture(f"dashboard-groups-{theme}")


def test_the_measure_of_contrast_finds_a_bad_one(dashboard, few):
    made = dashboard(Watcher(few.bench))
    made.page.add_style_tag(content=".xk-doing { color: #bbb !important }")
    assert worst_contrast(made)[0] < 4.5


def test_a_state_is_a_word_and_a_shape_of_its_own(dashboard, few):
    made = dashboard(Watcher(few.bench))
    shapes = {}
    for state in {row["state"] for row in few.rows}:
        row = made.row(few.ids(state)[0])
        made.page.get_by_role("searchbox").fill(few.ids(state)[0])
        expect(row.locator(".xk-word")).to_have_text(state.capitalize())
        shapes[state] = row.locator(".xk-shape path").get_attribute("d")
        shapes[state] += (
            row.locator(".xk-shape path").get_attribute("stroke-dasharray") or ""
        )
    assert len(set(shapes.values())) == len(shapes) == 8


def test_only_what_is_near_the_view_is_in_the_page(dashboard, thousand):
    made = dashboard(Watcher(thousand.bench))
    newest = [row["run_id"] for row in thousand.rows]
    assert made.rows()[:15] == newest[:15]
    assert len(made.rows()) < 60
    expect(grid(made)).to_have_attribute("aria-rowcount", "1001")
    grid(made).evaluate("(node) => (node.scrollTop = 500 * 30)")
    made.until(lambda: newest[505] in made.rows())
    assert newest[0] not in made.rows()
    assert len(made.rows()) < 60
    assert made.row(newest[505]).get_attribute("aria-rowindex") == "507"


def test_a_narrow_page_keeps_state_training_and_progress(dashboard, few):
    made = dashboard(Watcher(few.bench))
    row = made.row(few.rows[0]["run_id"])
    for width in (1180, 900, 700, 480, 360):
        made.page.set_viewport_size({"width": width, "height": 900})
        for column in ("state", "training", "progress"):
            expect(row.locator(f".xk-c-{column}")).to_be_visible()
        assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            width
        )
        assert grid(made).evaluate("(node) => node.scrollWidth <= node.clientWidth"), width
        made.picture(f"dashboard-{width}-light")


def test_columns_of_all_rows_stand_below_their_heads(dashboard, few):
    made = dashboard(Watcher(few.bench))
    for column in ("state", "training", "progress", "updated", "worker"):
        lefts = made.page.evaluate(
            "(c) => [...document.querySelectorAll(`.xk-c-${c}`)].map((node) =>"
            " Math.round(node.getBoundingClientRect().left))",
            column,
        )
        assert len(set(lefts)) == 1, column


def test_progress_says_what_is_done_and_what_is_waited_for(dashboard, few):
    made = dashboard(Watcher(few.bench))
    lines = {row["run_id"]: row for row in few.rows}
    phases = {"queued": "waiting for a worker", "publishing": "writing the results"}
    for state, words in phases.items():
        expect(made.row(few.ids(state)[0])).to_contain_text(words)
    run_id = few.ids("extracting")[0]
    few.beat(run_id, 2, 0, phase="loading model", tokens_per_s=None)
    made.until(
        lambda: expect(made.row(run_id)).to_contain_text("loading model", timeout=300)
    )
    expect(made.row(run_id).locator(".xk-percent")).to_have_text("0 %")
    few.beat(run_id, 3, 250_000, tokens_per_s=1000.0)
    made.until(
        lambda: expect(made.row(run_id).locator(".xk-percent")).to_have_text(
            "25 %", timeout=300
        )
    )
    expect(made.row(run_id).locator(".xk-c-left")).to_have_text(re.compile("^12:[23]"))
    failed = few.ids("failed")[0]
    expect(made.row(failed)).to_contain_text(lines[failed]["error"])


def test_the_head_tells_of_server_workers_and_disk(dashboard, few):
    made = dashboard(Watcher(few.bench))
    await_health(made)
    facts = made.page.locator(".xk-facts")
    expect(facts).to_contain_text("server not running: a launch starts it")
    expect(facts).to_contain_text("free, results")
    attention = chip(made, "Needs a look")
    made.until(lambda: attention.count() == 1)
    attention.click()
    waiting = few.ids("queued") + few.ids("requested")
    assert sorted(made.rows()) == sorted(waiting)
    expect(made.row(waiting[0])).to_contain_text("the server does not answer")


# --- sort, filter, search, group ----------------------------------------------------------


def test_columns_sort_both_ways_and_say_so(dashboard, few):
    made = dashboard(Watcher(few.bench))
    newest = [row["run_id"] for row in few.rows]
    head = made.page.get_by_role("columnheader", name="Run")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert made.rows()[:15] == newest[:15]
    sort(made, "Run")
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert made.rows()[:15] == newest[::-1][:15]
    sort(made, "Training")
    ids = {row["run_id"]: row["training_id"] for row in few.rows}
    names = [ids[one] for one in made.rows()]
    assert names == sorted(names)
    sort(made, "Tokens/s")
    line = {one.run_id: one for one in made.board._source.overview.lines.values()}
    rates = [line[one].tokens_per_s for one in made.rows()]
    known = [rate for rate in rates if rate is not None]
    assert known == sorted(known, reverse=True)
    assert rates[: len(known)] == known  # those without come last
    sort(made, "Tokens/s")
    rates = [line[one].tokens_per_s for one in made.rows()]
    assert rates[0] == min(known)


def test_chips_filter_by_state_with_counts(dashboard, thousand):
    made = dashboard(Watcher(thousand.bench))
    failed = chip(made, "Failed")
    expect(failed).to_have_text("Failed60")
    failed.click()
    shown(made, "60 of 1,000 runs")
    expect(failed).to_have_attribute("aria-pressed", "true")
    assert set(made.rows()) <= set(thousand.ids("failed"))
    chip(made, "Interrupted").click()
    shown(made, "110 of 1,000 runs")
    failed.press("Enter")
    shown(made, "50 of 1,000 runs")
    expect(failed).to_be_focused()


def test_search_finds_ids_models_workers_and_errors(dashboard, thousand):
    made = dashboard(Watcher(thousand.bench))
    find = made.page.get_by_role("searchbox", name="search runs")
    run_id = thousand.rows[700]["run_id"]
    find.fill(run_id[:10].upper())
    shown(made, "1 of 1,000 runs")
    assert made.rows() == [run_id]
    find.fill("outofmemory failed")
    n = sum("OutOfMemory" in (row["error"] or "") for row in thousand.rows)
    shown(made, f"{n} of 1,000 runs")
    find.fill("gpu-3:4003")
    shown(made, "1 of 1,000 runs")
    find.fill("no such thing")
    shown(made, "0 of 1,000 runs")
    expect(made.page.get_by_text("No run fits search and filters.")).to_be_visible()
    find.press("Escape")
    shown(made, "1,000 runs")


def test_runs_are_grouped_by_training_and_folded(dashboard, few):
    made = dashboard(Watcher(few.bench))
    made.page.get_by_role("button", name="Group by training").click()
    trainings = list(dict.fromkeys(row["training_id"] for row in few.rows))
    heads = made.page.locator("[data-training]")
    expect(made.page.get_by_role("treegrid", name="runs")).to_be_visible()
    expect(heads.first).to_have_attribute("data-training", trainings[0])
    mine = [row for row in few.rows if row["training_id"] == trainings[0]]
    expect(heads.first).to_contain_text(f"{len(mine)} run")
    assert made.rows()[: len(mine)] == [row["run_id"] for row in mine]
    heads.first.click()
    expect(heads.first).to_have_attribute("aria-expanded", "false")
    assert mine[0]["run_id"] not in made.rows()
    grid(made).focus()
    made.page.keyboard.press("Home")
    made.page.keyboard.press("ArrowRight")
    expect(heads.first).to_have_attribute("aria-expanded", "true")
    made.page.keyboard.press("Space")  # the whole group
    expect(made.page.locator(".xk-selected")).to_have_text(f"{len(mine)} selected")


# --- safety and life ----------------------------------------------------------------------


def test_text_of_the_ledger_is_shown_as_text(dashboard, tmp_path):
    written = write_runs(tmp_path / "ws", 24, names=HOSTILE, per_training=6)
    failed = written.ids("failed")[0]
    with written.bench.store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET error = ?, error_traceback = ? WHERE run_id = ?",
            ("\n".join(HOSTILE), "\n".join(HOSTILE), failed),
        )
    made = dashboard(Watcher(written.bench))
    made.page.get_by_role("button", name="Group by training").click()
    made.page.get_by_role("searchbox").fill(failed)
    shown(made, "1 of 24 runs")
    made.row(failed).click()
    made.until(lambda: made.page.locator(".xk-card").count() == 1)
    made.page.get_by_role("searchbox").fill("onerror")
    made.until(lambda: made.page.locator("[data-training]").count() >= 1)
    expect(made.page.locator(".xk-dash")).to_contain_text(HOSTILE[0])
    assert made.page.title() == "card"
    assert made.page.locator("#host img, #host b.bold, #host script").count() == 0
    assert "\u202e" not in made.page.locator("#host").inner_text()


def test_one_module_has_one_export():
    text = assets.esm(*dashboard_view.PARTS)
    assert text.count("export default") == 1
    assert text.rstrip().endswith("export default { render };")


def test_a_closed_view_leaves_nothing_behind(dashboard, few):
    made = dashboard(Watcher(few.bench))
    made.row(few.ids("failed")[0]).click()
    made.until(lambda: made.page.locator(".xk-card").count() == 1)
    made.page.evaluate("stop()")
    assert made.page.evaluate("model.listeners()") == 0
    assert made.page.evaluate("ticking.size") == 0
    assert made.page.locator("#host").inner_html() == ""
    made.until(lambda: not made.board._open)


def test_ages_are_those_of_the_kernels_clock(dashboard, few):
    made = dashboard(Watcher(few.bench))
    with few.bench.store.read() as connection:
        _, runs = listed_runs(connection)
    run = next(one for one in runs if one.state == "completed")
    days = (datetime.now(UTC) - run.ended_at).days
    expect(made.row(run.run_id).locator(".xk-c-updated")).to_have_text(f"{days} d")
