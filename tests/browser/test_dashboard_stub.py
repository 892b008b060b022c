"""The dashboard's own files in a page, on a ledger of many runs, with the kernel's real parts."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit import service
from extraction_kit.ledger.changes import listed_runs
from extraction_kit.watcher import Watcher
from extraction_kit.widgets import assets, dashboard_view
from extraction_kit.widgets.hub import Pace
from tests.many_runs import write_runs
from tests.unit.lab import Lab

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


def grid(made):
    return made.page.locator(".xk-grid")


def chip(made, name):
    return made.page.get_by_role("button", name=re.compile(rf"^{name}"))


def shown(made, text):
    made.until(
        lambda: expect(made.page.locator(".xk-shown")).to_have_text(text, timeout=300)
    )


def active_row(made):
    return made.page.evaluate(
        "document.getElementById(document.querySelector('.xk-grid')"
        ".getAttribute('aria-activedescendant'))?.dataset.run"
    )


def sort(made, name):
    made.page.get_by_role("columnheader", name=name).get_by_role("button").click()


def worst_contrast(made):
    return made.page.evaluate(f"() => ({CONTRAST.strip().rstrip(';')})(document.body)")[0]


def await_health(made):
    made.until(lambda: made.page.get_by_text("server not running").count() == 1)


def await_percent(made, run_id, text):
    cell = made.row(run_id).locator(".xk-percent")
    made.until(lambda: expect(cell).to_have_text(text, timeout=300))


def lose_news_of(made, run_id):
    """Let the next change of a run get lost on its way; return the list that gets it."""
    lost = []

    def loses(message):
        if message["kind"] == "delta" and run_id in message["rows"] and not lost:
            lost.append(message)
            return True
        return False

    made.loses = loses
    return lost


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


# --- live ---------------------------------------------------------------------------------


def test_a_change_in_the_ledger_reaches_the_page_and_is_announced(dashboard, few):
    made = dashboard(Watcher(few.bench))
    run_id = few.ids("queued")[0]
    training = next(row["training_id"] for row in few.rows if row["run_id"] == run_id)
    service.cancel(few.bench, run_id)
    made.until(lambda: expect(made.row(run_id)).to_contain_text("Cancelled", timeout=300))
    live = made.page.get_by_role("status").first
    made.until(lambda: expect(live).to_have_text(f"{training}: cancelled", timeout=300))


def test_a_new_run_appears_on_top(dashboard, tmp_path):
    lab = Lab(tmp_path / "ws")
    made = dashboard(lab.ws._watcher)
    expect(made.page.get_by_text("No runs yet: ws.launch(...)")).to_be_visible()
    first = lab.begun(lab.content("first"))
    made.until(lambda: made.rows() == [first])
    second = lab.begun(lab.content("second"))
    made.until(lambda: made.rows() == [second, first])
    lab.publish(first)
    lab.recorded(first)
    made.until(lambda: expect(made.row(first)).to_contain_text("Completed", timeout=300))
    lab.ws.run(first).delete()
    made.until(lambda: made.rows() == [second])


def test_a_lost_message_is_noticed_and_made_good(dashboard, few):
    made = dashboard(Watcher(few.bench))
    run_id = few.ids("extracting")[0]
    lost = lose_news_of(made, run_id)
    few.beat(run_id, 2, 123_000)
    made.until(lambda: lost)
    expect(made.row(run_id).locator(".xk-percent")).not_to_have_text("12 %")
    other = few.ids("extracting")[1]
    few.beat(other, 2, 456_000)
    await_percent(made, run_id, "12 %")
    await_percent(made, other, "45 %")


def test_rows_do_not_jump_while_a_pointer_is_on_them(dashboard, few):
    made = dashboard(Watcher(few.bench))
    sort(made, "Progress")
    grid(made).hover()
    order = made.rows()
    last = [one for one in order if one in few.ids("extracting")][-1]
    few.beat(last, 2, 999_999)
    await_percent(made, last, "99 %")
    assert made.rows() == order


def test_rows_do_not_jump_when_everything_is_told_again(dashboard, few):
    made = dashboard(Watcher(few.bench))
    sort(made, "Progress")
    grid(made).hover()
    order = made.rows()
    other, *_, last = [one for one in order if one in few.ids("extracting")]
    lost = lose_news_of(made, last)
    few.beat(last, 2, 999_999)
    made.until(lambda: lost)
    few.beat(other, 2, 1_000)  # the gap is noticed
    await_percent(made, last, "99 %")
    await_percent(made, other, "0 %")
    assert made.rows() == order
    made.page.mouse.move(0, 0)
    made.page.evaluate("document.activeElement.blur()")
    made.until(lambda: made.rows().index(last) < made.rows().index(other))


def test_what_needs_a_look_moves_neither_rows_nor_the_focus(dashboard, few):
    made = dashboard(Watcher(few.bench))
    sort(made, "Progress")
    grid(made).hover()
    order, completed = made.rows(), chip(made, "Completed")
    last = [one for one in order if one in few.ids("extracting")][-1]
    assert chip(made, "Needs a look").count() == 0
    completed.focus()
    few.beat(last, 2, 999_999)
    # seconds later the health of the machine is known: nobody serves these runs
    made.until(lambda: expect(chip(made, "Needs a look")).to_be_visible(timeout=300))
    await_percent(made, last, "99 %")
    expect(completed).to_be_focused()
    assert made.rows() == order
    chip(made, "Needs a look").click()
    made.until(lambda: set(made.rows()) < set(order))


def test_a_silent_kernel_is_noticed_while_runs_are_active(dashboard, few):
    made = dashboard(Watcher(few.bench), pace=Pace(viewed_s=30.0, beat_s=0.3))
    made.until(lambda: made.page.get_by_text("No news for 0:0").count() == 1)
    expect(made.page.locator(".xk-dash")).to_have_class(re.compile("xk-is-stale"))


# --- selecting and acting -----------------------------------------------------------------


def test_keys_move_select_open_and_close(dashboard, few):
    made = dashboard(Watcher(few.bench))
    ids = [row["run_id"] for row in few.rows]
    grid(made).focus()
    assert active_row(made) == ids[0]
    made.page.keyboard.press("ArrowDown")
    made.page.keyboard.press("ArrowDown")
    assert active_row(made) == ids[2]
    made.page.keyboard.press("Space")
    expect(made.row(ids[2])).to_have_attribute("aria-selected", "true")
    made.page.keyboard.press("Shift+ArrowDown")
    expect(made.page.locator(".xk-selected")).to_have_text("2 selected")
    made.page.keyboard.press("End")
    assert active_row(made) == ids[-1]
    expect(made.row(ids[-1])).to_be_in_viewport()
    made.page.keyboard.press("Home")
    made.page.keyboard.press("Enter")
    made.until(lambda: made.page.locator(".xk-card").count() == 1)
    expect(grid(made)).to_be_focused()
    made.page.keyboard.press("Escape")
    expect(made.page.locator(".xk-card")).to_have_count(0)
    made.page.keyboard.press("Escape")
    expect(made.page.locator(".xk-selected")).to_be_hidden()
    made.page.keyboard.press("Control+a")
    expect(made.page.locator(".xk-selected")).to_have_text("20 selected")
    made.page.keyboard.press("/")
    expect(made.page.get_by_role("searchbox")).to_be_focused()


def test_every_focusable_element_keeps_the_keys_from_the_notebook(dashboard, few):
    made = dashboard(Watcher(few.bench))
    made.row(few.ids("completed")[0]).locator(".xk-c-check").click()
    made.row(few.ids("failed")[0]).click()
    made.until(lambda: made.page.locator(".xk-card").count() == 1)
    bare = made.page.evaluate(
        "[...document.querySelectorAll('button, input, summary, [tabindex]')]"
        ".filter((node) => !node.hasAttribute('data-lm-suppress-shortcuts'))"
        ".map((node) => node.outerHTML)"
    )
    assert bare == []
    unnamed = made.page.evaluate(
        "[...document.querySelectorAll('button')].filter((node) => !node.textContent.trim())"
        ".map((node) => node.outerHTML)"
    )
    assert unnamed == []


def test_selected_runs_are_cancelled_and_resumed_where_that_is_legal(dashboard, few):
    made = dashboard(Watcher(few.bench))
    queued, done = few.ids("queued")[0], few.ids("completed")[0]
    for run_id in (queued, done):
        made.row(run_id).locator(".xk-c-check").click()
    made.button("Cancel 1").click()
    made.until(lambda: expect(made.row(queued)).to_contain_text("Cancelled", timeout=300))
    acts = made.acts()
    assert [(act["name"], act["run_id"]) for act in acts] == [("cancel", queued)]
    assert len({act["id"] for act in acts}) == 1
    assert service.read_run(few.bench, queued).state == "cancelled"
    # nothing more to cancel among them: the button stays, and says why
    button = made.page.get_by_role("button", name="Cancel", exact=True)
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)
    expect(made.page.get_by_role("list", name="answers")).to_contain_text(
        "Nothing to cancel: 1 cancelled, 1 completed selected"
    )
    expect(made.button("Resume 1")).to_be_visible()


def test_a_selection_that_the_filter_hides_is_not_forgotten_in_silence(dashboard, few):
    made = dashboard(Watcher(few.bench))
    for run_id in (few.ids("queued")[0], few.ids("failed")[0]):
        made.row(run_id).locator(".xk-c-check").click()
    selected = made.page.locator(".xk-selected")
    expect(selected).to_have_text("2 selected")
    chip(made, "Failed").click()
    expect(selected).to_have_text("2 selected, 1 of them not shown")


def test_each_act_has_an_id_of_its_own_and_waits_visibly(dashboard, few, monkeypatch):
    made = dashboard(Watcher(few.bench))
    monkeypatch.setattr(made.board, "answer", lambda _: None)  # a busy kernel
    some = few.ids("extracting")[:3]
    for run_id in some:
        made.row(run_id).locator(".xk-c-check").click()
    made.button("Cancel 3").click()
    for run_id in some:
        expect(made.row(run_id)).to_contain_text("Cancelling…")
    expect(made.page.get_by_role("list", name="answers")).to_contain_text(
        "Cancel sent for 3 runs — waiting for the kernel (busy running a cell?)"
    )
    acts = made.acts()
    assert len({act["id"] for act in acts}) == 3
    made.page.evaluate("(id) => model.ack({id, ok: true, reason: ''})", acts[0]["id"])
    expect(made.row(some[0])).to_contain_text("Extracting")
    made.page.evaluate(
        "(id) => model.ack({id, ok: false, reason: 'the ledger stayed locked'})",
        acts[1]["id"],
    )
    expect(made.page.get_by_role("list", name="answers")).to_contain_text(
        "the ledger stayed locked"
    )
    expect(made.row(some[2])).to_contain_text("Cancelling…")


def test_an_extracting_run_stops_after_its_batch_and_the_row_says_so(dashboard, few):
    made = dashboard(Watcher(few.bench))
    run_id = few.ids("extracting")[0]
    made.row(run_id).locator(".xk-c-check").click()
    made.button("Cancel 1").click()
    made.until(
        lambda: expect(made.row(run_id)).to_contain_text(
            "stopping after this batch", timeout=300
        )
    )
    expect(made.row(run_id)).to_contain_text("Cancelling…")


def test_a_refusal_that_only_the_ledger_knows_reaches_the_person(dashboard, few):
    made = dashboard(Watcher(few.bench))
    made.loses = lambda _: True  # the page still shows what was so a moment ago
    run_id = few.ids("queued")[0]
    service.cancel(few.bench, run_id)
    made.row(run_id).locator(".xk-c-check").click()
    made.button("Cancel 1").click()
    answers = made.page.get_by_role("list", name="answers")
    expect(answers).to_contain_text(
        f"run {run_id} is cancelled: nothing runs that could be cancelled"
    )


def test_a_completed_run_refuses_to_launch_as_its_card_does(dashboard, few):
    made = dashboard(Watcher(few.bench))
    run_id = few.ids("completed")[0]
    made.row(run_id).click()
    card = made.page.locator(".xk-card")
    made.until(
        lambda: expect(card).to_have_attribute("data-state", "completed", timeout=300)
    )
    made.button("Launch").click(force=True)
    expect(card.locator(".xk-refusal")).to_contain_text("Launch refused. Completed since")
    made.button("Launch").press("Enter")
    assert made.acts() == []  # no message is sent at all
    expect(made.page.locator(".xk-detail")).to_contain_text(f'run = ws.run("{run_id}")')


def test_an_open_run_shows_its_story_and_acts_like_its_card(dashboard, few):
    made = dashboard(Watcher(few.bench))
    run_id = few.ids("queued")[0]
    made.row(run_id).click()
    card = made.page.locator(".xk-card")
    made.until(lambda: expect(card).to_have_attribute("data-state", "queued", timeout=300))
    card.get_by_role("button", name="Cancel").click()
    made.until(
        lambda: expect(card).to_have_attribute("data-state", "cancelled", timeout=300)
    )
    assert made.acts()[-1]["run_id"] == run_id
    card.get_by_text("What happened").click()
    expect(card).to_contain_text("cancelled while waiting")
    expect(made.page.locator(".xk-detail")).to_contain_text("run.resume()")
    failed = few.ids("failed")[0]
    made.page.get_by_role("searchbox").fill(failed)
    made.row(failed).click()
    made.until(lambda: expect(card).to_have_attribute("data-state", "failed", timeout=300))
    card.get_by_text("Traceback", exact=True).click()
    expect(card).to_contain_text("Traceback (most recent call last)")
    made.button("Close").click()
    expect(card).to_have_count(0)


def test_two_completed_runs_give_the_line_that_compares_them(dashboard, few):
    chosen = []
    made = dashboard(
        Watcher(few.bench), select=lambda run_ids: chosen.append(list(run_ids))
    )
    first, second = few.ids("completed")[:2]
    made.row(first).locator(".xk-c-check").click()
    code = made.page.locator(".xk-d-code").first
    expect(code).to_contain_text(f'ws.run("{first}").browse()')
    made.row(second).locator(".xk-c-check").click()
    expect(code).to_contain_text(f'ws.compare("{first}", "{second}")')
    assert chosen[-1] == [first, second]


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
