"""The card's own files in a page: every state, every click, both themes, no server."""

from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit import widgets
from extraction_kit.views import FeatureSoFar, Preview
from tests.browser.pages import BUSY, LIGHT_AND_DARK, worst_contrast

pytestmark = pytest.mark.browser

HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\">",
    "</script><script>document.title='owned'</script>",
    "</td></div><b>bold</b> &amp; &lt;",
    "\u202eltr\u2066 \u05d0\u05d1\u05d2 \x00\x07\x1b[31m\x7f",
)


def so_far(n_tokens=36_096, **changes):
    """A preview of two features; `changes` are of the second."""
    first = FeatureSoFar(
        feature=1187, density=0.00213, max_act=18.42,
        tokens=(" value", " is", " a", " tuple", " of", " two", " integers", ",", " which",
                "\n", "may", " be"),
        acts=(4.4, 0, 0.8, 9.3, 3.0, 14.2, 18.42, 1.1, 0, 0, 0, 0),
    )  # fmt: skip
    second = {
        "feature": 402, "density": 0.0151, "max_act": 11.07,
        "tokens": (" file", " cannot", " be", " opened", ",", " an", " OSError", " is",
                   " raised", ";", " 東京", " </td>"),
        "acts": (0, 3.3, 0, 1.2, 0, 2.4, 8.8, 7.1, 11.07, 0.5, 0, 0),
    }  # fmt: skip
    features = (first, FeatureSoFar(**second | changes))
    return Preview(n_tokens=n_tokens, features=features)


def all_cards(given):
    timeline = {"events": given.events}
    ended = given.t0 + timedelta(minutes=3)
    no_worker = "no worker is alive: type `ws.up()`, or `extraction-kit up` in a terminal"
    return {
        "running": (given.running(checkpoint_tokens=20_480, preview=so_far()), timeline),
        "waiting": (
            given.view("queued", n_tokens_done=0, started_at=None, findings=(no_worker,)),
            {},
        ),
        "completed": (given.completed(), {**timeline, "highlights": given.highlights}),
        "failed": (
            given.view(
                "failed",
                error="OutOfMemoryError: 2.1 GiB were asked for, 0.4 GiB are free",
                error_traceback="Traceback (most recent call last):\nOutOfMemoryError",
                checkpoint_tokens=20_480,
                l0=32.1,
                fvu=0.19,
                attempt=2,
                advice="Lower the tile: `Settings(tile_tokens=512)`, then `run.resume()`",
                ended_at=ended,
            ),
            timeline,
        ),
        "interrupted": (
            given.view(
                "interrupted",
                checkpoint_tokens=20_480,
                ended_at=ended,
                refusal="The run was interrupted; its checkpoint is at 20 %.",
                advice="`run.resume()` continues from 20 %",
            ),
            {},
        ),
    }


@pytest.mark.parametrize("theme", LIGHT_AND_DARK)
def test_every_state_is_readable_in_light_and_dark(stub, given, theme):
    for name, (view, more) in all_cards(given).items():
        made = stub(view, theme=theme, **more)
        made.picture(f"card-{name}-{theme}")
        for summary in made.page.locator("summary:visible").all():
            summary.click()
        if name == "completed":
            made.click("Launch")
            made.picture(f"card-refused-{theme}")
        ratio, text = worst_contrast(made)
        assert ratio >= 4.5, f"{name}: {text!r} has a contrast of {ratio:.2f}"


@pytest.mark.parametrize("theme", LIGHT_AND_DARK)
def test_notes_pending_and_stale_words_are_readable_too(stub, given, theme):
    made = stub(given.running(), theme=theme, note="cannot read the run's state: locked")
    assert worst_contrast(made)[0] >= 4.5
    made.click("Cancel")
    made.page.clock.run_for(20_000)
    expect(made.page.get_by_text("No news for")).to_be_visible()
    assert worst_contrast(made)[0] >= 4.5
    made.picture(f"card-busy-{theme}")
    made.ack(ok=False, reason="the ledger stayed locked")
    assert worst_contrast(made)[0] >= 4.5


def test_the_measure_of_contrast_finds_a_bad_one(stub, given):
    made = stub(given.running())
    made.page.add_style_tag(content=".xk-about { color: #bbb !important }")
    assert worst_contrast(made)[0] < 4.5


def test_without_any_theme_the_card_uses_the_colours_of_the_system(stub, given):
    made = stub(given.completed(), theme="none", highlights=given.highlights)
    made.picture("card-completed-no-theme")
    assert worst_contrast(made)[0] >= 4.5


def test_a_narrow_page_shows_everything_without_a_sideways_scroll(stub, given):
    made = stub(given.completed(), width=380, highlights=given.highlights)
    made.click("Launch")
    made.picture("card-narrow-light")
    assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- what it says -------------------------------------------------------------------------


def test_progress_is_told_to_a_screen_reader(stub, given):
    made = stub(given.running(phase="loading model", n_tokens_done=0))
    bar = made.page.get_by_role("progressbar", name="valid tokens measured")
    expect(bar).to_have_attribute("aria-valuenow", "0")
    expect(bar).to_have_attribute(
        "aria-valuetext", "0 %, 0 of 100,000 tokens, loading model"
    )
    made.push(given.running(n_tokens_done=50_000))
    expect(bar).to_have_attribute("aria-valuenow", "50")


def test_only_a_new_state_is_announced(stub, given):
    made = stub(given.running())
    live = made.page.get_by_role("status")
    made.push(given.running(n_tokens_done=60_000))
    made.page.clock.run_for(100)
    expect(live).to_have_text("")
    made.push(given.completed())
    made.page.clock.run_for(100)
    expect(live).to_have_text("smollm2-l15-topk32: completed")


def test_elapsed_and_time_left_move_between_messages(stub, given):
    made = stub(given.running(n_tokens_done=50_000, tokens_per_s=1000.0, beat_age_s=0.0))
    figures = made.page.locator(".xk-stats")
    expect(figures).to_contain_text("0:50")  # left
    expect(figures).to_contain_text("0:17")  # elapsed
    made.page.clock.run_for(5_000)
    expect(figures).to_contain_text("0:45")
    expect(figures).to_contain_text("0:22")


def test_speed_is_that_of_the_recent_past(stub, given):
    start = (given.t0 + timedelta(seconds=19)).timestamp()
    made = stub(given.running(n_tokens_done=10_000, tokens_per_s=9.0, beat_age_s=0.0))
    speed = made.page.locator(".xk-stat", has_text="tokens/s").locator(".xk-value")
    expect(speed).to_have_text("9")
    for step in range(1, 5):
        made.push(
            given.running(
                n_tokens_done=10_000 + 5_000 * step, tokens_per_s=9.0, beat_age_s=0.0
            ),
            now=start + 10 * step,
        )
    expect(speed).to_have_text("500")
    # a new attempt starts behind: what the old one did is no speed of the new one
    made.push(
        given.running(attempt=2, n_tokens_done=20_000, tokens_per_s=77.0), now=start + 60
    )
    expect(speed).to_have_text("77")


def test_a_silent_kernel_is_noticed_and_forgiven(stub, given):
    made = stub(given.running())
    made.page.clock.run_for(14_000)
    stale = made.page.get_by_text(
        "No news for 0:14 — kernel or worker may be busy or gone."
    )
    expect(stale).to_be_visible()
    made.push(given.running())
    expect(stale).to_be_hidden()


def test_a_resting_run_is_never_called_stale(stub, given):
    made = stub(given.view("cancelled"))
    made.page.clock.run_for(60_000)
    expect(made.page.get_by_text("No news for")).to_be_hidden()


def test_quality_so_far_and_findings_are_shown(stub, given):
    made = stub(given.running(findings=("stuck: no progress for 3:02:00",)))
    expect(made.card).to_contain_text("0.183")
    expect(made.card).to_contain_text("212 (10.4 %)")
    expect(made.card).to_contain_text("dead so far")
    expect(made.page.get_by_role("listitem").first).to_contain_text("stuck: no progress")


def test_what_is_found_so_far_is_shown_with_the_tokens_that_it_is_of(stub, given):
    made = stub(given.running(preview=so_far()))
    found = made.page.get_by_role("group", name="found so far")
    expect(found).to_contain_text("So far, over 36,096 tokens")
    expect(found).to_contain_text("top example of 2 features drawn by lot")
    expect(found).to_contain_text("feature 402 1.51 % of tokens · max 11.1")
    expect(found.locator(".xk-peak")).to_have_text([" integers", " raised"])
    warmth = "(node) => Number(getComputedStyle(node).getPropertyValue('--a'))"
    shares = [node.evaluate(warmth) for node in found.locator(".xk-on").all()]
    assert shares.count(1) == 2  # each of its own maximum
    assert shares[0] == pytest.approx(4.4 / 18.42, abs=1e-3)
    # the card is not read out at every beat
    assert found.locator("[aria-live], [role=status]").count() == 0
    made.push(given.running(preview=so_far(50_000)))
    made.page.clock.run_for(100)
    expect(made.page.get_by_role("status")).to_have_text("")
    expect(found).to_contain_text("So far, over 50,000 tokens")
    made.push(given.completed(), highlights=given.highlights)
    expect(found).to_be_hidden()
    for figure in ("L0", "FVU", "dead"):
        expect(
            made.page.locator(".xk-label").get_by_text(figure, exact=True)
        ).to_be_visible()


def test_a_new_maximum_paints_its_own_row_only(stub, given):
    made = stub(given.running(preview=so_far()))
    rows = "[...document.querySelectorAll('.xk-sofar .xk-example')]"
    made.page.evaluate(f"window.before = {rows}.map((row) => row.firstChild)")
    made.push(given.running(preview=so_far(40_000, density=0.02, max_act=11.07)))
    same = f"{rows}.map((row, i) => row.firstChild === before[i])"
    expect(made.card).to_contain_text("2 % of tokens")
    assert made.page.evaluate(same) == [True, True]
    made.push(given.running(preview=so_far(max_act=20.0, acts=(0,) * 11 + (20.0,))))
    expect(made.page.locator(".xk-sofar .xk-peak").last).to_have_text(" </td>")
    assert made.page.evaluate(same) == [True, False]


def test_a_worker_that_sends_no_preview_and_one_without_features_show_less(stub, given):
    made = stub(given.running())
    found = made.page.get_by_role("group", name="found so far", include_hidden=True)
    expect(found).to_be_hidden()
    made.push(given.running(preview=Preview(n_tokens=512)))
    expect(found).to_have_text("So far, over 512 tokens")


def test_a_failed_run_shows_error_advice_and_traceback_on_demand(stub, given):
    view, more = all_cards(given)["failed"]
    made = stub(view, **more)
    expect(made.page.get_by_text("OutOfMemoryError: 2.1 GiB")).to_be_visible()
    expect(made.page.get_by_text("Settings(tile_tokens=512)")).to_be_visible()
    trace = made.page.get_by_text("Traceback (most recent call last)")
    expect(trace).to_be_hidden()
    made.page.get_by_text("Traceback", exact=True).click()
    expect(trace).to_be_visible()


def test_what_happened_is_shown_on_demand(stub, given):
    made = stub(given.running(), events=given.events)
    made.page.get_by_text("What happened (4)").click()
    expect(made.page.get_by_text("refused (3 times)")).to_be_visible()
    # an update keeps the list open
    made.push(given.running(n_tokens_done=70_000), events=given.events)
    expect(made.page.get_by_text("refused (3 times)")).to_be_visible()


# --- buttons ------------------------------------------------------------------------------


UNREACHABLE = "the queue's server is unreachable"


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("requested", ["Cancel"]),
        ("queued", ["Cancel"]),
        ("extracting", ["Cancel"]),
        ("publishing", []),
        ("completed", ["Open features", "Launch"]),
        ("failed", ["Resume"]),
        ("cancelled", ["Resume"]),
        ("interrupted", ["Resume"]),
    ],
)
def test_only_legal_buttons_are_offered(stub, given, *, state, names):
    made = stub(given.view(state))
    assert made.page.locator("header button").all_text_contents() == names


def test_a_request_that_found_no_queue_can_be_sent_again(stub, given):
    made = stub(given.view("requested", findings=(UNREACHABLE,)))
    names = made.page.locator("header button").all_text_contents()
    assert names == ["Send again", "Cancel"]


@pytest.mark.parametrize(
    ("state", "button"),
    [("extracting", "Cancel"), ("interrupted", "Resume"), ("requested", "Send again")],
)
def test_one_click_sends_one_message_until_it_is_answered(stub, given, *, state, button):
    made = stub(given.view(state, findings=(UNREACHABLE,)))
    made.click(button)
    pressed = made.page.locator("header button").first
    pressed.click(force=True)
    acts = made.acts()
    name = {"Send again": "launch"}.get(button, button.lower())
    assert [act["name"] for act in acts] == [name]
    assert acts[0]["id"]
    expect(pressed).to_have_attribute("aria-disabled", "true")
    made.ack()
    expect(made.button(button)).not_to_have_attribute("aria-disabled", "true")
    expect(made.page.get_by_text("accepted.")).to_be_visible()


def test_a_double_click_on_cancel_does_not_resume_what_it_cancelled(stub, given):
    made = stub(given.view("queued"))
    made.page.clock.pause_at(given.t0 + timedelta(seconds=60))
    made.click("Cancel")
    made.ack()
    made.page.clock.run_for(300)
    made.button("Cancel").click()  # the news are still on their way
    made.push(given.view("cancelled"))
    made.button("Resume").click()  # it stands where Cancel stood
    assert [act["name"] for act in made.acts()] == ["cancel"]
    made.button("Resume").press("Enter")  # no part of a double click
    assert [act["name"] for act in made.acts()] == ["cancel", "resume"]
    made.ack()
    made.push(given.view("queued"))
    made.page.clock.run_for(600)
    made.click("Cancel")
    assert [act["name"] for act in made.acts()] == ["cancel", "resume", "cancel"]


def test_after_700_ms_the_card_says_that_the_kernel_is_busy(stub, given):
    made = stub(given.running())
    made.click("Cancel")
    expect(made.button("Cancelling…")).to_be_visible()
    expect(made.page.get_by_text(BUSY)).to_be_hidden()
    made.page.clock.run_for(750)
    expect(made.page.get_by_text(f"Cancel sent — {BUSY}")).to_be_visible()
    made.ack()
    expect(made.page.get_by_text(BUSY)).to_be_hidden()


def test_a_refused_act_shows_the_reason_and_can_be_tried_again(stub, given):
    made = stub(given.view("interrupted"))
    made.click("Resume")
    made.ack(ok=False, reason="training smollm2-l15-topk32 is busy with run 77aa")
    expect(made.page.locator(".xk-note")).to_contain_text("busy with run 77aa")
    made.click("Resume")
    assert len(made.acts()) == 2


def test_an_answer_is_not_shown_again_when_the_same_state_comes_back(stub, given):
    made = stub(given.view("cancelled"))
    made.click("Resume")
    made.ack()
    expect(made.page.get_by_text("Resume accepted.")).to_be_visible()
    made.push(given.view("queued"))
    made.push(given.view("cancelled"))  # by somebody else
    expect(made.button("Resume")).to_be_visible()
    expect(made.page.get_by_text("Resume accepted.")).to_be_hidden()


def test_an_answer_to_somebody_else_changes_nothing(stub, given):
    made = stub(given.running())
    made.click("Cancel")
    made.page.evaluate("model.ack({id: 'another', ok: true, reason: ''})")
    expect(made.button("Cancelling…")).to_have_attribute("aria-disabled", "true")


def test_a_cancel_on_its_way_is_not_sent_twice(stub, given):
    made = stub(given.running(cancel_requested=True))
    made.click("Cancelling…")
    assert made.acts() == []
    expect(made.page.locator(".xk-note")).to_contain_text("stops within one batch")


# --- the refusal --------------------------------------------------------------------------


def test_launch_on_a_completed_run_refuses_the_mouse(stub, given):
    made = stub(given.completed(n_refusals=2))  # of other launches: no matter of this card
    expect(made.page.get_by_text("Launch refused.")).to_be_hidden()
    expect(made.page.locator(".xk-story")).to_contain_text("Completed 2026-11-23 21:16")
    made.click("Launch")
    assert made.acts() == []
    refusal = made.page.locator(".xk-refusal")
    for words in (
        "Launch refused.",
        "2026-11-23 21:16",
        "anna@lab-7",
        "/home/anna/sae/.extraction_kit/results/run_id=9f2c11d07a3be845",
        "run.browse()",
        'run = ws.launch("smollm2-l15-topk32", ..., generation=2)',
    ):
        expect(refusal).to_contain_text(words)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_launch_on_a_completed_run_refuses_the_keyboard_and_says_why_each_time(
    stub, given, key
):
    made = stub(given.completed())
    button = made.button("Launch")
    expect(button).to_have_attribute("aria-disabled", "true")
    assert not button.evaluate("(node) => node.disabled")
    for _ in range(2):  # after Open features
        made.page.keyboard.press("Tab")
    expect(button).to_be_focused()
    live = made.page.get_by_role("status")
    for _ in range(2):
        made.page.evaluate("document.querySelector('[role=status]').textContent = ''")
        made.page.keyboard.press(key)
        made.page.clock.run_for(100)
        expect(live).to_contain_text("Launch refused. Completed since 2026-11-23 21:16")
        expect(button).to_be_focused()
    assert made.acts() == []
    why = button.get_attribute("aria-describedby")
    assert "never computed again" in made.page.locator(f"[id='{why}']").text_content()


def test_a_refused_launch_is_shown_without_a_click(stub, given):
    made = stub(given.completed(refusal="already completed"))
    expect(made.page.locator(".xk-refusal")).to_be_visible()


def test_the_code_for_a_new_generation_can_be_copied(stub, given):
    made = stub(given.completed(refusal="already completed"))
    made.page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: "
        "{writeText: async (text) => { window.copied = text; }}})"
    )
    made.page.get_by_role("button", name="Copy run = ws.launch").click()
    expect(made.page.get_by_text("Copied")).to_be_visible()
    assert made.page.evaluate("copied") == (
        'run = ws.launch("smollm2-l15-topk32", ..., generation=2)'
    )


# --- safety -------------------------------------------------------------------------------


def test_markup_in_any_text_stays_text(stub, given):
    evil = " ".join(HOSTILE)
    view = given.view(
        "failed", training_id=evil, model=evil, hook_name=evil, worker=evil, error=evil,
        error_traceback=evil, advice=evil, refusal=evil, findings=(evil,), phase=evil,
    )  # fmt: skip
    made = stub(view, events=given.events, note=evil)
    hostile = so_far(tokens=HOSTILE, acts=(1.0, 0.5, 0.0, 0.2))
    made.push(given.running(training_id=evil, preview=hostile))
    expect(made.page.locator(".xk-sofar .xk-token", has_text="␀␇␛[31m␦")).to_be_visible()
    assert "\u202e" not in made.page.locator("#host").text_content()
    assert made.page.locator("#host img, #host script, #host b, #host td").count() == 0
    made.push(view, events=given.events, note=evil)
    expect(made.page.get_by_text("<img src=x onerror").first).to_be_visible()
    highlight = {"feature": 1, "density": 0.1, "max_act": 1.0}
    tokens = {"tokens": list(HOSTILE), "acts": [1.0, 0.5, 0.0, 0.2]}
    made.push(
        given.completed(training_id=evil, created_by=evil, results_dir=evil),
        highlights=[highlight | tokens],
    )
    made.click("Launch")
    # direction marks are written out: they turn nothing round
    token = made.page.locator(".xk-features .xk-token", has_text="⟨U+202E⟩ltr⟨U+2066⟩")
    expect(token).to_be_visible()
    assert "\u202e" not in made.page.locator("#host").text_content()
    assert made.page.locator("#host img, #host script, #host b, #host td").count() == 0
    assert made.page.title() == "card"
    made.picture("card-hostile-light")


def test_every_focusable_element_keeps_its_keys_from_the_notebook(stub, given):
    view, more = all_cards(given)["failed"]
    for made in (stub(view, **more), stub(given.completed(refusal="already completed"))):
        found = made.page.locator("#host :is(button, summary, a, input, [tabindex])").all()
        assert len(found) >= 3
        for node in found:
            assert node.get_attribute("data-lm-suppress-shortcuts") == "true"


def test_focus_never_falls_onto_the_notebook_when_a_button_goes(stub, given):
    made = stub(given.running())
    made.button("Cancel").focus()
    made.push(given.completed())
    where = "document.activeElement.dataset.lmSuppressShortcuts"
    assert made.page.evaluate(where) == "true"


def test_reduced_motion_is_respected(stub, given):
    moving = "() => document.getAnimations().length"
    view = given.running(cancel_requested=True)
    assert stub(view, motion="no-preference").page.evaluate(moving) > 0
    assert stub(view, motion="reduce").page.evaluate(moving) == 0


def test_the_page_says_hello_while_somebody_looks(stub, given):
    made = stub(given.running())
    hellos = "model.sent.filter((content) => content.kind === 'hello').length"
    assert made.page.evaluate(hellos) == 1
    made.page.clock.run_for(21_000)
    assert made.page.evaluate(hellos) == 3
    made.push(given.completed())
    made.page.clock.run_for(60_000)
    assert made.page.evaluate(hellos) <= 4


def test_nothing_is_left_behind_when_the_view_goes(stub, given):
    made = stub(given.running())
    assert made.page.evaluate("ticking.size") == 1
    made.page.evaluate("window.stop()")
    assert made.page.evaluate("model.listeners()") == 0
    assert made.page.evaluate("ticking.size") == 0
    assert made.page.locator("#host > *").count() == 0
    made.page.evaluate("model.sent.length = 0")
    made.page.clock.run_for(30_000)
    assert made.page.evaluate("model.sent.length") == 0


def test_the_source_has_no_markup_writes_and_no_addresses():
    folder = Path(widgets.__file__).parent
    files = [path for path in folder.iterdir() if path.suffix in {".js", ".css"}]
    assert {"page.js", "card.js", "browser.js", "browser.css", "dashboard.js"} <= {
        file.name for file in files
    }
    for file in files:
        # the name of a vocabulary, which nobody asks for
        name, text = file.name, file.read_text().replace("http://www.w3.org/2000/svg", "")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "http:",
            "https:",
            "eval(",
        ):
            assert word not in text, f"{word} in {name}"
