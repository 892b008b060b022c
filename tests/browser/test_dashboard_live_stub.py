"""The dashboard's own files in a page: news as they come, and what a person does there."""

import re

import pytest
from playwright.sync_api import expect

from extraction_kit import service
from extraction_kit.watcher import Watcher
from extraction_kit.widgets.hub import Pace
from tests.browser.dashboard_page import active_row, chip, grid, sort
from tests.many_runs import write_runs
from tests.unit.lab import Lab

pytestmark = pytest.mark.browser


@pytest.fixture
def few(tmp_path):
    return write_runs(tmp_path / "ws", 20)


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
