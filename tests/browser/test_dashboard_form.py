"""On the dashboard's page: a launch is seen before it is made, runs are opened and compared."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from extraction_kit import ExtractionConfig, Settings, Workspace
from extraction_kit.lifecycle import RunState
from tests.unit.lab import RESULT, Lab
from tests.unit.synthetic import synthetic

pytestmark = pytest.mark.browser

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
CONFIG = ExtractionConfig(n_tokens=2000, context_size=32, top_k=5)


@pytest.fixture
def ws(tmp_path, tiny):
    """A real training in a workspace whose server is away: launches stay requested."""
    away = Settings(redis_url=f"unix://{tmp_path / 'away.sock'}", min_free_bytes=0)
    made = Workspace(tmp_path / "ws", settings=away)
    made.register_training("tiny", sae=tiny.saes["topk"], model=tiny.model)
    return made


@pytest.fixture
def opened(dashboard, ws):
    """The dashboard of that workspace with its form open."""

    def show(**options):
        made = dashboard(ws._watcher, **options)
        made.button("New run…").click()
        return made

    return show


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Two completed runs of one SAE, with different numbers, and one run at work."""
    lab = Lab(tmp_path_factory.mktemp("done") / "ws")
    lab.first = lab.completed("gpt2-l6")
    lab.second = lab.begun(lab.content("gpt2-l6", seed=1))
    other = synthetic(seed=1).result
    lab.publish(lab.second, replace(other, summary=RESULT.summary))
    lab.recorded(lab.second)
    lab.active = lab.begun(lab.content("smollm2-l15"))
    return lab


def outcome(made):
    return made.page.locator(".xk-outcome")


def says(made, *texts):
    for text in texts:
        made.until(
            lambda text=text: expect(outcome(made)).to_contain_text(text, timeout=300)
        )


def fill(made, name, text):
    field = made.page.get_by_label(name, exact=True)
    field.fill(text)
    field.press("Enter")


def launch(made):
    return made.page.locator(".xk-form .xk-main")


def assert_readable(made):
    found = made.page.evaluate(f"() => ({CONTRAST.strip().rstrip(';')})(document.body)")
    assert found[0][0] >= 4.5, found[0]


# --- the form -----------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_new_run_is_foreseen_then_launched_then_attached_to(opened, ws, tiny, theme):
    made = opened(theme=theme)
    says(made, "Type the path of a file of texts")
    expect(launch(made)).to_have_attribute("aria-disabled", "true")
    expect(made.page.get_by_label("Training", exact=True)).to_be_focused()
    fill(made, "Tokens", "2000")
    fill(made, "Context size", "32")
    fill(made, "File", str(tiny.corpus))
    says(
        made, "A new run", "2,000 tokens in", "memory", "disk", "xk-tiny-", "n_tokens=2000"
    )
    assert ws.views() == []  # nothing was launched by looking
    assert made.acts() == []
    assert_readable(made)
    made.picture(f"form-new-{theme}")
    launch(made).click()
    expect(launch(made)).to_have_text("Launching…")
    made.until(lambda: len(made.rows()) == 1)
    (run_id,) = made.rows()
    row = made.row(run_id)
    made.until(lambda: expect(row).to_have_attribute("aria-selected", "true", timeout=300))
    assert ws.run(run_id).state is RunState.REQUESTED
    assert [act["wish"]["training_id"] for act in made.acts()] == ["tiny"]
    says(made, f"Attaches to run {run_id[:8]}", "under way")
    launch(made).click()
    made.until(lambda: len(made.acts()) == 2)
    made.until(lambda: expect(launch(made)).to_have_text("Attach", timeout=300))
    assert [view.run_id for view in ws.views()] == [run_id]


def test_what_cannot_be_launched_is_told_in_the_form(opened, ws, tiny):
    busy = ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    made = opened()
    says(made, f"Attaches to run {busy.run_id[:8]}")  # its corpus and config are proposed
    expect(made.page.get_by_label("Top k", exact=True)).to_have_value("5")
    fill(made, "Top k", "6")
    says(made, "Refused: the training is busy", f"ws.run('{busy.run_id}').cancel()")
    assert_readable(made)
    made.picture("form-busy-light")
    launch(made).click(force=True)
    assert made.acts() == []
    busy.cancel()  # the form hears of it
    says(made, "A new run")
    fill(made, "Top k", "5")
    says(made, f"Refused: run {busy.run_id[:8]} waits for a person", "run.resume()")
    made.button("Show this run").click()
    card = made.page.locator(".xk-card")
    made.until(
        lambda: expect(card).to_have_attribute("data-state", "cancelled", timeout=300)
    )
    made.button("Show this run").click()  # it is shown: it stays
    expect(card).to_have_count(1)
    fill(made, "Top k", "5000")
    says(made, "top_k=5000: an integer from 1 to 1000 is allowed")
    assert_readable(made)
    made.page.locator(".xk-detail").get_by_role("button", name="Close").click()


def with_a_column_of_another_name(tiny, folder):
    """The texts of the corpus in a column that is called body, beside another one of texts."""
    texts = (json.loads(line)["text"] for line in tiny.corpus.read_text().splitlines())
    path = folder / "posts.jsonl"
    path.write_text("\n".join(json.dumps({"id": "7", "body": text}) for text in texts))
    return path


def says_what_fits_an_earlier_corpus(made):
    """With the corpus of a run chosen another context size is asked for."""
    says(made, "waits for a person")
    column = made.page.get_by_label("Text column", exact=True)
    expect(column).to_be_hidden()
    fill(made, "Context size", "16")
    says(made, "Context size: the corpus of run", "prepared with 32, and 16 is asked for")
    says(made, 'Choose "A file…" as the corpus')
    corpus = made.page.get_by_label("Corpus", exact=True)
    corpus.select_option(label="A file…")  # as it is called there
    expect(column).to_be_visible()
    says(made, "text_column='body'")  # path and column are still there


def test_the_column_of_a_files_texts_is_chosen_and_an_earlier_corpus_says_what_fits(
    opened, ws, tiny, tmp_path
):
    made = opened()
    says(made, "Type the path")
    fill(made, "Tokens", "2000")
    fill(made, "Context size", "32")
    fill(made, "File", str(with_a_column_of_another_name(tiny, tmp_path)))
    says(made, "has no column 'text', but id, body")
    fill(made, "Text column", "body")
    says(made, "A new run", "text_column='body'")
    launch(made).click()
    made.until(lambda: len(made.rows()) == 1)
    (act,) = made.acts()
    assert act["wish"]["text_column"] == "body"
    ws.run(made.rows()[0]).cancel()
    for _ in range(2):  # closed, and opened again: the corpus of that run is proposed
        made.button("New run…").click()
    says_what_fits_an_earlier_corpus(made)
    made.picture("form-column-light")


def test_what_cannot_be_read_is_told_in_the_form_as_text(opened, ws):
    made = opened()
    says(made, "Type the path")
    fill(made, "File", "texts.jsonl")
    made.page.get_by_text("More", exact=True).click()
    more = made.page.get_by_label("Other fields of ExtractionConfig, as TOML")
    more.fill("topk = 3")
    more.blur()
    says(made, "unknown option topk (did you mean top_k?)")
    more.fill("")
    fill(made, "File", "<img src=x onerror=alert(1)>.txt")
    says(made, "'<img src=x onerror=alert(1)>.txt': there is no such file")
    expect(launch(made)).to_have_attribute("aria-disabled", "true")
    assert made.page.locator("#host img").count() == 0
    assert ws.views() == []


def test_a_completed_run_is_refused_with_what_a_person_may_want_instead(opened, ws, tiny):
    run = ws.launch("tiny", corpus=tiny.corpus, config=CONFIG)
    with ws._bench.store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET state = 'completed', completed_at = created_at,"
            " results_dir = '/data/results'"
        )
    made = opened()
    says(made, f"Refused: run {run.run_id[:8]} is completed", "results in /data/results")
    assert_readable(made)
    made.picture("form-completed-light")
    expect(launch(made)).to_have_attribute("aria-disabled", "true")
    launch(made).press("Enter")
    status = made.page.get_by_role("status").first
    expect(status).to_have_text(f"Refused: run {run.run_id[:8]} is completed")
    assert made.acts() == []
    made.button("Compute anew, as generation 2").click()
    says(made, "A new run", "generation=2")
    expect(launch(made)).not_to_have_attribute("aria-disabled", "true")
    fill(made, "Generation", "7")
    says(made, "generation 2 is the next one")


def test_the_form_is_used_by_keyboard_and_keeps_its_keys(opened):
    made = opened()
    says(made, "Type the path")
    made.page.get_by_text("More", exact=True).click()
    bare = made.page.evaluate(
        "[...document.querySelectorAll('.xk-form :is(button, input, select, textarea,"
        " summary)')].filter((node) => !node.hasAttribute('data-lm-suppress-shortcuts')"
        " || !(node.labels?.length || node.textContent.trim()))"
        ".map((node) => node.outerHTML)"
    )
    assert bare == []
    made.page.get_by_label("File", exact=True).press("Escape")
    expect(made.page.get_by_role("form", name="launch a run")).to_be_hidden()
    button = made.button("New run…")
    expect(button).to_be_focused()
    expect(button).to_have_attribute("aria-expanded", "false")
    button.press("Enter")
    expect(made.page.get_by_label("Training", exact=True)).to_be_focused()


def test_a_workspace_without_trainings_says_what_to_type(dashboard, tmp_path):
    made = dashboard(Workspace(tmp_path / "empty")._watcher)
    made.button("New run…").click()
    says(made, "No training is registered yet", "ws.register_training(")


def test_a_busy_kernel_is_waited_for_visibly(opened, monkeypatch):
    made = opened()
    says(made, "Type the path")
    monkeypatch.setattr(made.board, "answer", lambda _: None)
    fill(made, "File", "texts.jsonl")
    expect(made.page.locator(".xk-form .xk-hint")).to_have_text(
        "Waiting for the kernel (busy running a cell?)"
    )
    expect(launch(made)).to_have_attribute("aria-disabled", "true")
    launch(made).click(force=True)
    expect(made.page.locator(".xk-form .xk-hint")).to_contain_text("Nothing was launched")


# --- comparing and opening ------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_completed_runs_are_compared_below_the_table(dashboard, lab, theme):
    made = dashboard(lab.ws._watcher, theme=theme)
    made.row(lab.active).locator(".xk-c-check").click()
    compare = made.page.get_by_role("button", name="Compare", exact=True)
    compare.click(force=True)
    answers = made.page.get_by_role("list", name="answers")
    expect(answers).to_contain_text("two completed runs can be compared")
    made.button("Clear").click()
    for run_id in (lab.first, lab.second):
        made.row(run_id).locator(".xk-c-check").click()
    expect(compare).not_to_have_attribute("aria-disabled", "true")
    compare.click()
    table = made.page.get_by_role("table", name="The largest differences")
    made.until(lambda: table.count() == 1)
    largest = (
        lab.ws.sql(f"FROM compare('{lab.first}', '{lab.second}')")
        .project("feature")
        .limit(8)
    )
    shown = table.locator("tbody tr td:first-child").all_inner_texts()
    assert shown == [str(feature) for (feature,) in largest.fetchall()]
    expect(made.page.locator(".xk-differs")).to_contain_text("16 features; 0 dead in A")
    detail = made.page.locator(".xk-detail")
    expect(detail).to_contain_text(f'ws.compare("{lab.first}", "{lab.second}")')
    assert_readable(made)
    made.picture(f"dashboard-compare-{theme}")
    grid = made.page.locator(".xk-grid")
    grid.focus()
    made.page.keyboard.press("Escape")
    expect(table).to_have_count(0)


def test_features_are_opened_of_one_completed_run_or_of_two_side_by_side(dashboard, lab):
    made = dashboard(lab.ws._watcher)
    features = made.page.get_by_role("button", name="Open features", exact=True)
    made.row(lab.active).locator(".xk-c-check").click()
    expect(features).to_have_attribute("aria-disabled", "true")
    features.click(force=True)
    expect(made.page.get_by_role("list", name="answers")).to_contain_text(
        "No features to open: 1 extracting selected, the features of one completed run"
    )
    made.row(lab.active).locator(".xk-c-check").click()
    made.row(lab.first).locator(".xk-c-check").click()
    features.click()
    # a page that can show one widget in another: test_dashboard_lab.py
    detail = made.page.locator(".xk-detail")
    expect(detail).to_contain_text(f'browser = ws.run("{lab.first}").browse()')
    expect(detail).to_contain_text("run the line above in a cell")
    made.row(lab.second).locator(".xk-c-check").click()
    made.row(
        lab.second
    ).click()  # its card has the same button, which opens them in its place
    card = made.page.locator(".xk-card")
    made.until(
        lambda: expect(card).to_have_attribute("data-state", "completed", timeout=300)
    )
    card.get_by_role("button", name="Open features").press("Enter")
    expect(card).to_have_count(0)
    expect(detail).to_contain_text(f'browser = ws.run("{lab.second}").browse()')
    expect(detail.get_by_role("button", name="Close", exact=True)).to_be_focused()
    features.click()
    beside = f'ws.run("{lab.first}").browse(compare=ws.run("{lab.second}"))'
    expect(detail).to_contain_text(beside)
