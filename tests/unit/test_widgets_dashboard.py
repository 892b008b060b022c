"""The dashboard without a page: what is read, what is sent, and what a page may ask."""

import json
import threading
import time
from html.parser import HTMLParser

import pytest

from extraction_kit import Workspace, service, widgets
from extraction_kit.errors import LedgerBusy
from extraction_kit.lifecycle import RunState
from extraction_kit.liveness import Beat
from extraction_kit.overview import Overview
from extraction_kit.reconcile import beat_key, progress_key
from extraction_kit.watcher import Watcher
from extraction_kit.widgets import board, dashboard_static
from extraction_kit.widgets.board import FIELDS, RunBoard
from extraction_kit.widgets.dashboard import Dashboard
from extraction_kit.widgets.hub import Hub, Pace
from tests.many_runs import T0, write_runs
from tests.results_to_browse import write_result
from tests.unit.lab import Lab

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "\u202eltr\u2066 \x00\x07\x1b[31m\x7f",
)
FAST = Pace(viewed_s=0.01, resting_s=0.01, unviewed_s=0.02, beat_s=30.0)


@pytest.fixture
def written(tmp_path):
    return write_runs(tmp_path / "ws", 40)


@pytest.fixture
def source(written):
    return Watcher(written.bench)


class Page:
    """What a board sees of a page: it keeps what it was sent, as JSON."""

    def __init__(self, source, pace=FAST):
        self.messages, self.selection = [], None
        self.arrived = threading.Condition()
        self.hub, self.pace = Hub(pace), pace
        self.board = RunBoard(source, self.hub, push=self._push, select=self._select)
        self.first = self._json(self.board.full(pace))

    def _json(self, message):
        return json.loads(json.dumps(message, allow_nan=False))

    def _push(self, message):
        with self.arrived:
            self.messages.append(self._json(message))
            self.arrived.notify_all()

    def _select(self, run_ids):
        self.selection = run_ids

    def tick(self):
        """Let the board look once; return what it sent."""
        n = len(self.messages)
        self.board.tick(self.pace)
        return self.messages[n:]

    def ask(self, **message):
        answer = self.board.answer({"id": "7", **message})
        assert answer["kind"] == "ack"
        assert answer["id"] == "7"
        return answer

    def await_(self, kind, fits=lambda _: True):
        def found():
            return [one for one in self.messages if one["kind"] == kind and fits(one)]

        with self.arrived:
            assert self.arrived.wait_for(found, 10), self.messages[-1:]
            return found()[-1]

    def leave(self):
        self.board.heard_at = float("-inf")


@pytest.fixture
def page(source):
    made = Page(source)
    yield made
    made.leave()


def set_error(written, run_id, error):
    """Write another error, and that the run has changed."""
    with written.bench.store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE runs SET error = ? WHERE run_id = ?", (error, run_id)
        )
        connection.exec_driver_sql(
            "UPDATE events SET change = (SELECT max(change) + 1 FROM events) WHERE run_id = ?",
            (run_id,),
        )


def rows_of(full):
    rows = [dict(zip(full["fields"], row, strict=True)) for row in full["rows"]]
    return {row["run_id"]: row for row in rows}


# --- what is read -------------------------------------------------------------------------


def test_every_run_is_there_with_what_its_own_view_says(source):
    source.overview.read()
    lines = source.overview.lines
    views = source.views()
    assert set(lines) == {view.run_id for view in views}
    for view in views:
        line = lines[view.run_id]
        for name in ("training_id", "generation", "state", "attempt", "n_tokens",
                     "n_tokens_done", "phase", "tokens_per_s", "l0", "fvu", "n_dead", "d_sae",
                     "model", "hook_name", "worker", "checkpoint_tokens", "cancel_requested",
                     "results_bytes", "created_by", "error"):  # fmt: skip
            assert getattr(line, name) == getattr(view, name), name
        assert line.created_at == view.created_at.timestamp()


def test_only_what_changed_is_read_again(written, source):
    overview = source.overview
    before = overview.read()
    assert len(overview.changed_since(0)) == 40
    assert overview.read() == before
    run_id = written.ids("extracting")[0]
    written.beat(run_id, 2, 500_000)
    after = overview.read()
    changed = overview.changed_since(before)
    assert list(changed) == [run_id]
    assert changed[run_id].n_tokens_done == 500_000
    waiting = written.ids("queued")[0]
    service.cancel(written.bench, waiting)
    overview.read()
    assert {one: line.state for one, line in overview.changed_since(after).items()} == {
        waiting: "cancelled"
    }


def test_beats_are_read_where_they_are_files_and_where_they_are_rows(tmp_path, ledger_url):
    lab = Lab(tmp_path / "ws", ledger_url)
    first, second = (lab.begun(lab.content(name)) for name in ("first", "second"))
    overview = Overview(lab.bench)
    overview.read()
    for run_id, n_done in ((first, 100), (second, 200)):
        lab.bench.beats.write(
            run_id, 1, Beat(number=1, phase="extracting", n_tokens_done=n_done)
        )
    lab.bench.beats.write(second, 2, Beat(number=9, n_tokens_done=900))  # no attempt of it
    before = overview.read()
    done = {run_id: line.n_tokens_done for run_id, line in overview.lines.items()}
    assert done == {first: 100, second: 200}
    lab.bench.beats.write(first, 1, Beat(number=2, n_tokens_done=300, tokens_per_s=20.0))
    overview.read()
    ((run_id, line),) = overview.changed_since(before).items()
    assert (run_id, line.n_tokens_done, line.tokens_per_s) == (first, 300, 20.0)


def test_a_run_of_another_process_appears_and_a_deleted_one_goes(tmp_path):
    lab = Lab(tmp_path / "ws")
    overview = Overview(lab.bench)
    overview.read()
    assert not overview.lines
    run_id = lab.begun(lab.content())
    first = overview.read()
    assert overview.lines[run_id].state == "extracting"
    lab.publish(run_id)
    lab.recorded(run_id)
    lab.ws.run(run_id).delete()
    overview.read()
    assert overview.changed_since(first) == {run_id: None}
    lab.ws.restore(run_id)
    overview.read()
    assert overview.lines[run_id].state == "completed"


def test_a_ledger_that_was_built_anew_replaces_all_that_was_known(tmp_path):
    lab = Lab(tmp_path / "ws")
    kept = lab.completed("kept")
    lost = lab.begun(lab.content("lost"))
    overview = Overview(lab.bench)
    revision = overview.read()
    lab.bench.paths.ledger.write_bytes(b"no database" * 100)
    lab.ws.repair(apply=True)
    overview.read()
    assert set(overview.lines) == {kept}
    assert overview.changed_since(revision)[lost] is None


def test_runs_that_nobody_serves_and_stuck_ones_are_named(tmp_path):
    lab = Lab(tmp_path / "ws", stuck_after_s=7200.0, beat_s=1.0)
    run_id = lab.begun(lab.content())
    waiting = lab.begun(lab.content("waits"))
    lab.sql("UPDATE runs SET state = 'queued' WHERE run_id = ?", waiting)
    run = lab.record(run_id)
    observed = lab.bench.observations()
    lab.bench.paths.beats.mkdir(exist_ok=True)
    for key, value in ((beat_key(run), "None"), (progress_key(run), "none")):
        observed._seen[key] = (value, 7300.0, 0.0)
    observed.save(keep={beat_key(run), progress_key(run)})
    seconds = [0.0]
    overview = Overview(lab.bench, clock=lambda: seconds[0])
    overview.read()
    seconds[0] = 0.4  # health is looked at, not yet the evidence
    revision = overview.read()
    assert overview.lines[waiting].findings == ("the server does not answer",)
    assert overview.lines[run_id].findings == (
        "its worker is not heard since 2 h",
        "stuck: no progress since 2 h",
    )
    assert overview.health.server == "stopped"
    assert overview.health.free_bytes > 0
    assert set(overview.changed_since(revision - 1)) == {run_id, waiting}


def test_costly_looks_take_their_share_of_the_time_only(written, monkeypatch):
    seconds, looks = [0.0], []

    def slow():
        looks.append(seconds[0])
        seconds[0] += 1.0

    overview = Overview(written.bench, clock=lambda: seconds[0])
    monkeypatch.setattr(overview, "_reconcile", slow)
    while seconds[0] < 400:
        overview.read()
        seconds[0] += 0.25
    assert 3 <= len(looks) <= 5  # a second of work each, a hundredth of the time


# --- what is sent -------------------------------------------------------------------------


def test_the_first_message_holds_every_run(written, page):
    assert page.first["kind"] == "full"
    rows = rows_of(page.first)
    assert set(rows) == {row["run_id"] for row in written.rows}
    assert page.first["fields"] == list(FIELDS)


def test_a_change_is_sent_as_the_fields_that_changed(written, page):
    page.tick()
    run_id = written.ids("extracting")[0]
    written.beat(run_id, 2, 600_000, tokens_per_s=123.0)
    (message,) = page.tick()
    assert message["kind"] == "delta"
    assert set(message["rows"]) == {run_id}
    assert message["rows"][run_id]["n_tokens_done"] == 600_000
    assert "training_id" not in message["rows"][run_id]
    assert page.tick() == []


def test_messages_are_numbered_and_a_gap_is_filled_with_everything(
    written, page, monkeypatch
):
    run_id = written.ids("extracting")[0]
    numbers = [page.first["seq"]]
    for step in range(3):
        written.beat(run_id, 2 + step, 600_000 + step)
        numbers += [message["seq"] for message in page.tick()]
    assert numbers == list(range(1, len(numbers) + 1))
    monkeypatch.setattr(page.hub, "attend", lambda _: None)  # the test ticks, no thread
    page.ask(kind="hello", seq=numbers[-1])
    assert page.tick() == []
    page.ask(kind="hello", seq=numbers[-1] - 1)
    assert page.tick() == []  # the last one may be on its way
    page.ask(kind="hello", seq=-1)
    (message,) = page.tick()
    assert message["kind"] == "full"
    assert rows_of(message)[run_id]["n_tokens_done"] == 600_002
    monkeypatch.setattr(board, "LATE_S", 0.0)
    page.ask(kind="hello", seq=message["seq"])
    assert page.tick() == []
    for wrong in (-1, 1, None, "1", message["seq"] + 9):
        page.ask(kind="hello", seq=wrong)
        (message,) = page.tick()
        assert message["kind"] == "full"


def test_nobody_looking_costs_a_look_now_and_then(written, source):
    page = Page(source, Pace(lease_s=0.0, unviewed_s=30.0))
    page.tick()
    written.beat(written.ids("extracting")[0], 2, 600_000)
    assert page.tick() == []  # not due
    page.board._ticked_at -= 31
    assert len(page.tick()) == 1


def test_trouble_with_the_ledger_is_told_once_and_so_is_its_end(page, monkeypatch):
    page.tick()
    overview = page.board._source.overview
    with monkeypatch.context() as broken:
        broken.setattr(
            overview, "read", lambda: (_ for _ in ()).throw(LedgerBusy("locked \u202e"))
        )
        (message,) = page.tick()
        assert message["note"] == "cannot read the runs: locked ⟨U+202E⟩"
        assert page.tick() == []
    (message,) = page.tick()
    assert message["note"] is None


def test_while_runs_are_active_silence_is_broken_by_a_beat(written, source):
    page = Page(source, Pace(beat_s=0.0))
    assert page.tick()[0]["rows"] == {}
    for state in ("extracting", "publishing", "queued", "requested"):
        for run_id in written.ids(state):
            with written.bench.store.write() as connection:
                connection.exec_driver_sql(
                    "UPDATE runs SET state = 'failed' WHERE run_id = ?", (run_id,)
                )
                connection.exec_driver_sql(
                    "UPDATE events SET change = (SELECT max(change) + 1 FROM events)"
                    " WHERE run_id = ?", (run_id,)
                )  # fmt: skip
    page.tick()
    page.tick()
    assert page.tick() == []


def test_text_of_the_ledger_is_tame_before_it_leaves(tmp_path):
    written = write_runs(tmp_path / "ws", 12, names=HOSTILE, per_training=1)
    page = Page(Watcher(written.bench))
    text = json.dumps(page.first, ensure_ascii=False)
    assert HOSTILE[0] in text  # the page shows it as text
    assert "\u202e" not in text
    assert "\u2066" not in text
    failed = written.ids("failed")[0]
    page.tick()
    service.cancel(written.bench, written.ids("queued")[0])  # the cursor moves
    set_error(written, failed, HOSTILE[2])
    text = json.dumps([page.tick(), page.tick()], ensure_ascii=False)
    assert "ltr" in text
    assert "\u202e" not in text


# --- the hub ------------------------------------------------------------------------------


def test_the_hub_notices_a_run_of_another_process_while_nothing_runs(tmp_path):
    lab = Lab(tmp_path / "ws")
    lab.completed("first")
    # looked at, it is as quick as with active runs: only `viewed_s` is short
    page = Page(lab.ws._watcher, Pace(viewed_s=0.05, resting_s=60.0, unviewed_s=60.0))
    page.hub.attend(page.board)
    page.ask(kind="hello", seq=1)
    new = lab.begun(lab.content("second"))  # a second connection, as another kernel has
    message = page.await_("delta", lambda one: new in one["rows"])
    assert message["rows"][new]["state"] == "extracting"
    assert message["rows"][new]["training_id"] == "second"
    page.leave()


def test_a_forgotten_dashboard_costs_nothing_and_comes_back_with_a_hello(written, source):
    page = Page(source, Pace(viewed_s=0.01, unviewed_s=0.01, forget_s=0.05, lease_s=0.02))
    page.hub.attend(page.board)
    deadline = time.monotonic() + 10
    while page.hub.running:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    written.beat(written.ids("extracting")[0], 2, 600_000)
    page.ask(kind="hello", seq=-1)
    assert page.await_("full")
    page.leave()


def test_cards_and_dashboards_share_one_thread(written, source):
    def hubs():
        return {one for one in threading.enumerate() if one.name == "extraction_kit hub"}

    before = hubs()  # of other tests, not ended yet
    page = Page(source)
    page.hub.attend(page.board)
    run_id = written.ids("extracting")[0]
    page.ask(kind="open", view="v", run_id=run_id)
    page.await_("card")
    assert len(hubs() - before) == 1
    page.ask(kind="open", view="v", run_id=None)
    page.leave()


# --- what a page may ask ------------------------------------------------------------------


def test_an_open_run_is_shown_by_a_card_with_its_story(written, page):
    run_id = written.ids("failed")[0]
    assert page.ask(kind="open", view="v1", run_id=run_id)["ok"]
    message = page.await_("card")
    assert message["view"] == "v1"
    view = message["state"]["view"]
    assert view["run_id"] == run_id
    assert view["error_traceback"].startswith("Traceback")
    assert message["state"]["events"]
    assert page.ask(kind="open", view="v1", run_id=None)["ok"]


def test_the_features_of_a_run_are_opened_and_let_go_of(written, page, tmp_path):
    waiting = written.ids("queued")[0]
    page.ask(kind="ask", name="browse", view="v", run_id=waiting)
    refused = page.await_("answer", lambda one: one["id"] == "7")
    assert "has no results yet" in refused["reason"]
    result = write_result(tmp_path / "result")  # a ledger of many runs has no results
    page.board._source.browser = lambda _, __: result.browse()
    shown = []
    for question in ("1", "2"):
        asked = {"kind": "ask", "name": "browse", "view": "v", "run_id": "any"}
        page.board.answer({"id": question, **asked})
        answer = page.await_("answer", lambda one, wanted=question: one["id"] == wanted)
        shown.append(page.board._desk._browsers.shown["v"])
        assert answer["content"] == {"model_id": shown[-1].model_id}
    assert [view.comm is None for view in shown] == [True, False]
    page.ask(kind="open", view="v", run_id=None)
    assert [view.comm is None for view in shown] == [True, True]


def test_unknown_runs_cannot_be_opened_and_the_reason_comes_back(page):
    answer = page.ask(kind="open", view="v", run_id="0123")
    assert not answer["ok"]
    assert "0123" in answer["reason"]


def test_views_that_vanish_do_not_gather(written, page):
    for number, row in enumerate(written.rows[:12]):
        page.ask(kind="open", view=f"v{number}", run_id=row["run_id"])
    assert len(page.board._open) == 8


def test_runs_are_cancelled_and_resumed_and_the_ledger_says_by_whom(written, page):
    waiting = written.ids("queued")[0]
    assert page.ask(kind="act", name="cancel", run_id=waiting) == {
        "kind": "ack", "id": "7", "ok": True, "reason": ""
    }  # fmt: skip
    assert service.read_run(written.bench, waiting).state == "cancelled"


def test_a_completed_run_is_refused_with_the_reason_of_its_card(written, page):
    run_id = written.ids("completed")[0]
    for name in ("resume", "cancel"):
        answer = page.ask(kind="act", name=name, run_id=run_id)
        assert not answer["ok"]
        assert answer["reason"].startswith("completed since 2026-11-24")
        assert "A completed run is never run again" in answer["reason"]


def test_the_selection_is_what_the_page_says_of_known_runs(written, source):
    board = Dashboard(source)
    page = Page(source)
    page.board._select = board.select
    known = [row["run_id"] for row in written.rows[:2]]
    assert page.ask(kind="select", run_ids=[*known, "0123"])["ok"]
    assert board.selection == known


CLOSED = [
    {"kind": "sql", "query": "DROP TABLE runs"},
    {"kind": "act", "name": "delete", "run_id": "x"},
    {"kind": "act", "name": "__class__", "run_id": "x"},
    {"kind": "act", "name": ["cancel"], "run_id": "x"},
    {"kind": "act", "name": "cancel", "run_id": None},
    {"kind": "act", "name": "cancel", "run_id": {"a": 1}},
    {"kind": "open", "view": {}, "run_id": ["x"]},
    {"kind": "select", "run_ids": "x"},
    {"kind": None},
    {"kind": ["hello"]},
    {},
]


@pytest.mark.parametrize("number", range(len(CLOSED)))
def test_anything_else_is_refused_and_changes_nothing(written, page, number):
    states = {row["run_id"]: row["state"] for row in written.rows}
    assert not page.ask(**CLOSED[number])["ok"]
    assert {view.run_id: str(view.state) for view in page.board._source.views()} == states


@pytest.mark.parametrize("message", [None, "hello", 3, ["hello"]])
def test_what_is_no_message_is_not_answered(page, message):
    assert page.board.answer(message) is None


# --- static -------------------------------------------------------------------------------


class Texts(HTMLParser):
    """Gathers tags, attributes and texts of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def test_the_plain_form_is_one_line_and_the_same_each_time(written, source):
    text = repr(Dashboard(source))
    assert text == repr(Dashboard(Watcher(written.bench)))
    counts = (f"{len(written.ids(state))} {state}" for state in RunState)
    assert text == f"<Dashboard of 40 runs: {', '.join(counts)}>"


def test_a_workspace_without_runs_says_how_to_begin(tmp_path):
    board = Workspace(tmp_path / "ws").dashboard()
    bundle = board._repr_mimebundle_()
    assert bundle["text/plain"] == "<Dashboard of no runs>"
    assert "ws.launch(...)" in bundle["text/html"]


def test_a_long_ledger_is_cut_and_says_how_to_see_the_rest(tmp_path):
    written = write_runs(tmp_path / "ws", 60)
    overview = Overview(written.bench)
    overview.read()
    html = dashboard_static.html(overview.lines)
    seen = Texts(html)
    assert seen.tags.count("tr") == 51
    assert "10 older runs not shown: ws.runs() returns all of them" in seen.text
    order = [seen.text.find(row["run_id"]) for row in written.rows[:50]]
    assert order == sorted(order)
    assert all(row["run_id"] not in html for row in written.rows[50:])


def test_static_html_shows_hostile_text_as_text(tmp_path):
    written = write_runs(tmp_path / "ws", 12, names=HOSTILE, per_training=1)
    set_error(written, written.ids("failed")[0], HOSTILE[0])
    overview = Overview(written.bench)
    overview.read()
    seen = Texts(dashboard_static.html(overview.lines))
    assert "img" not in seen.tags
    assert "script" not in seen.tags
    assert HOSTILE[0] in seen.text
    assert "\u202e" not in seen.text


def test_under_test_the_html_names_no_machine_and_is_not_live(source, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    bundle = Dashboard(source)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "gpu-" not in bundle["text/html"]
    assert f"{T0:%Y-%m-%d}" in bundle["text/html"]
    assert widgets.static_only()


def test_without_a_kernel_there_is_no_live_part(source):
    assert set(Dashboard(source)._repr_mimebundle_()) == {"text/plain", "text/html"}
