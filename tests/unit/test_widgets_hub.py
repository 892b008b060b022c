# ruff: noqa: ARG002 - the source in memory answers the same for every run
"""The hub: one thread that sends what changed, survives trouble and goes when done."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from extraction_kit import widgets
from extraction_kit.errors import LedgerBusy, NothingToResume, ResultsDamaged
from extraction_kit.lifecycle import RunState
from extraction_kit.views import RunView
from extraction_kit.widgets import hub as hubs
from extraction_kit.widgets import payload
from extraction_kit.widgets.acts import act
from extraction_kit.widgets.hub import Hub, Watch
from tests.unit.hubs import FAST, fast_hub, until

T0 = datetime(2026, 11, 23, 21, 16, tzinfo=UTC)


class Runs:
    """A small source in memory."""

    def __init__(self, *run_ids):
        self.rows = {
            run_id: RunView(
                run_id=run_id, training_id="t", generation=1, state=RunState.EXTRACTING,
                attempt=1, job_id="j", n_tokens=100, n_tokens_done=0, created_at=T0,
                created_by="anna@lab",
            )
            for run_id in run_ids
        }  # fmt: skip
        self.trouble = None
        self.reads = 0
        self.threads = set()

    def set(self, run_id, **changes):
        row = self.rows[run_id]
        self.rows[run_id] = replace(row, change=row.change + 1, **changes)

    def view(self, run_id):
        return self.rows[run_id]

    def views(self, run_ids):
        self.reads += 1
        self.threads.add(threading.current_thread().name)
        if self.trouble:
            raise self.trouble
        return [self.rows[run_id] for run_id in run_ids]

    def cursor(self):
        if self.trouble:
            raise self.trouble
        return sum(row.change for row in self.rows.values())

    def events(self, run_id):
        return []

    def highlights(self, run_id, n):
        return [
            {"feature": 1, "density": 0.1, "max_act": 1.0, "tokens": ["a"], "acts": [1.0]}
        ]

    def cancel(self, run_id):
        self.set(run_id, state=RunState.CANCELLED)
        return self.rows[run_id]

    def relaunch(self, run_id):
        raise OSError("disk on fire")

    def resume(self, run_id):
        raise NothingToResume(
            run_id=run_id, state="", because="nothing to resume: launch it"
        )


class Card:
    """What the hub sees of a card: it keeps what it was sent."""

    def __init__(self, runs, run_id="a", **options):
        self.messages, self.frozen = [], []
        self.arrived = threading.Condition()
        freeze = self._freeze if options.pop("freeze", False) else None
        self.watch = Watch(
            source=runs, run_id=run_id, push=self._push, freeze=freeze, **options
        )

    def _push(self, message):
        with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()

    def _freeze(self, *what):
        with self.arrived:
            self.frozen.append(what)
            self.arrived.notify_all()

    def await_(self, condition):
        with self.arrived:
            assert self.arrived.wait_for(lambda: condition(self), 10), self.messages[-1:]

    def await_state(self, state):
        self.await_(lambda card: card.messages and card.last["state"] == state)

    @property
    def last(self):
        return self.messages[-1]["view"]


@pytest.fixture
def hub():
    with fast_hub() as made:
        yield made


def test_one_thread_serves_all_cards(hub):
    runs = Runs("a", "b")
    cards = [Card(runs, "a"), Card(runs, "b"), Card(runs, "a")]
    for card in cards:
        hub.watch(card.watch)
    for card in cards:
        card.await_state("extracting")
    assert runs.threads == {"extraction_kit hub"}


def test_only_what_changed_is_sent(hub):
    runs = Runs("a")
    card = Card(runs)
    hub.watch(card.watch)
    card.await_state("extracting")
    before = runs.reads
    until(lambda: runs.reads > before + 5)
    assert len(card.messages) == 1
    runs.set("a", n_tokens_done=50)
    card.await_(lambda card: len(card.messages) == 2)
    assert [message["seq"] for message in card.messages] == [1, 2]
    # the age of a beat alone is no news
    runs.rows["a"] = replace(runs.rows["a"], beat_age_s=3.0)
    before = runs.reads
    until(lambda: runs.reads > before + 5)
    assert len(card.messages) == 2


def test_an_unchanged_run_is_sent_again_so_that_silence_means_trouble():
    hub = Hub(replace(FAST, beat_s=0.02))
    card = Card(Runs("a"))
    hub.watch(card.watch)
    card.await_(lambda card: len(card.messages) >= 3)
    hub.drop(card.watch)


def test_never_more_often_than_the_pace_however_often_somebody_wakes_it():
    hub = Hub(replace(FAST, viewed_s=0.1))
    runs = Runs("a")
    card = Card(runs)
    started = time.monotonic()
    hub.watch(card.watch)
    while time.monotonic() - started < 0.45:
        hub.wake(card.watch)
        threading.Event().wait(0.002)
    hub.drop(card.watch)
    assert runs.reads <= 6


def test_the_thread_ends_when_all_is_final_and_comes_back_for_a_new_run(hub):
    runs = Runs("a", "b")
    card = Card(runs, "a")
    hub.watch(card.watch)
    card.await_state("extracting")
    runs.set("a", state=RunState.COMPLETED)
    card.await_state("completed")
    assert card.messages[-1]["highlights"][0]["feature"] == 1
    until(lambda: not hub.running)
    again = Card(runs, "b")
    hub.watch(again.watch)
    again.await_state("extracting")
    assert hub.running


def test_a_resting_run_stays_watched_and_shows_when_it_is_resumed(hub):
    runs = Runs("a")
    runs.set("a", state=RunState.INTERRUPTED)
    card = Card(runs)
    hub.watch(card.watch)
    card.await_state("interrupted")
    runs.set("a", state=RunState.EXTRACTING, attempt=2)
    card.await_state("extracting")


def test_the_live_card_gives_way_to_the_static_one_when_the_run_completes(hub):
    runs = Runs("a")
    card = Card(runs, freeze=True)
    hub.watch(card.watch)
    card.await_state("extracting")
    runs.set("a", state=RunState.COMPLETED)
    card.await_(lambda card: card.frozen)
    view, _, highlights = card.frozen[0]
    assert view.state is RunState.COMPLETED
    assert highlights


def test_a_card_shown_completed_stays_live_for_a_while():
    hub = Hub(replace(FAST, linger_s=3600.0))
    runs = Runs("a")
    runs.set("a", state=RunState.COMPLETED)
    card = Card(runs, freeze=True, view=runs.view("a"))
    hub.watch(card.watch)
    card.await_state("completed")
    until(lambda: card.watch.freeze_at is not None)
    assert card.frozen == []
    hub.drop(card.watch)


def test_trouble_is_written_into_the_card_and_forgotten_when_it_is_over(hub):
    runs = Runs("a")
    card = Card(runs)
    hub.watch(card.watch)
    card.await_state("extracting")
    runs.trouble = LedgerBusy("the ledger stayed locked")
    card.await_(lambda card: "the ledger stayed locked" in str(card.messages[-1]["note"]))
    runs.trouble = None
    runs.set("a", n_tokens_done=70)
    card.await_(lambda card: card.messages[-1]["note"] is None)
    assert card.last["n_tokens_done"] == 70


def test_a_broken_card_does_not_stop_the_others(hub):
    runs = Runs("a")

    def broken(_):
        raise RuntimeError("its page is gone")

    hub.watch(Watch(source=runs, run_id="a", push=broken))
    card = Card(runs)
    hub.watch(card.watch)
    card.await_state("extracting")


def test_a_refusal_is_shown_until_the_run_moves_on(hub):
    runs = Runs("a")
    runs.set("a", state=RunState.INTERRUPTED)
    card = Card(runs, refusal="it rests", refused_in=RunState.INTERRUPTED)
    hub.watch(card.watch)
    card.await_(lambda card: card.messages and card.last["refusal"] == "it rests")
    runs.set("a", state=RunState.EXTRACTING)
    card.await_(lambda card: card.last["refusal"] is None)


def test_a_card_without_a_reader_is_written_less_often():
    hub = Hub(replace(FAST, unviewed_s=3600.0, lease_s=0.05))
    runs = Runs("a")
    card = Card(runs)
    hub.watch(card.watch)
    card.await_state("extracting")
    until(lambda: not hub._viewed(card.watch))
    until(lambda: hub._period() == 3600.0)
    card.watch.heard()
    hub.wake(card.watch)
    card.await_(lambda card: len(card.messages) >= 2)
    hub.drop(card.watch)


def test_each_process_has_its_own_hub(monkeypatch):
    first = hubs.current()
    assert hubs.current() is first
    monkeypatch.setattr("extraction_kit.widgets.hub.os.getpid", lambda: -1)
    assert hubs.current() is not first


# --- clicks -------------------------------------------------------------------------------


def test_a_click_does_what_its_button_says():
    runs = Runs("a")
    assert act(runs, "a", "cancel") == (True, "")
    assert runs.view("a").state is RunState.CANCELLED


def test_a_refusal_is_told_in_its_own_words():
    assert act(Runs("a"), "a", "resume") == (False, "nothing to resume: launch it")


def test_an_unexpected_error_reaches_the_person_who_clicked():
    assert act(Runs("a"), "a", "launch") == (False, "OSError: disk on fire")


@pytest.mark.parametrize("name", ["__init__", "views", None, 3, ["cancel"]])
def test_only_the_three_acts_can_be_asked_for(name):
    ok, reason = act(Runs("a"), "a", name)
    assert not ok
    assert "allowed are launch, cancel, resume" in reason


# --- shown --------------------------------------------------------------------------------


@pytest.fixture
def displayed():
    """A function that shows a run in an IPython without a kernel and returns the bundle."""
    shell = InteractiveShell.instance()

    def show(runs, **options):
        with capture_output() as captured:
            widgets.show(runs, "a", **options)
        return captured.outputs[0].data

    yield show
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_without_a_kernel_a_run_is_shown_as_text_and_html(displayed):
    bundle = displayed(Runs("a"), refusal="it rests")
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == "<Run t g1 extracting 0% of 100 tokens>"
    assert "it rests" in bundle["text/html"]


def test_a_result_that_cannot_be_read_does_not_hide_the_card(displayed, monkeypatch):
    runs = Runs("a")
    runs.set("a", state=RunState.COMPLETED)

    def damaged(*_):
        raise ResultsDamaged("features.parquet is missing")

    monkeypatch.setattr(runs, "highlights", damaged)
    assert "completed 100%" in displayed(runs)["text/plain"]


# --- messages -----------------------------------------------------------------------------


def test_a_message_is_json_for_every_encoder():
    view = replace(
        Runs("a").view("a"), l0=float("nan"), fvu=float("inf"), model="\ud800\u202e"
    )
    made = payload.build(view)
    assert made["view"]["l0"] is None
    assert made["view"]["fvu"] is None

    assert made["view"]["model"] == "?⟨U+202E⟩"


def test_of_a_long_traceback_the_end_is_kept():
    view = replace(Runs("a").view("a"), error_traceback="x" * 100_000 + "the reason")
    shown = payload.build(view)["view"]["error_traceback"]
    assert len(shown) < 21_000
    assert shown.endswith("the reason")
