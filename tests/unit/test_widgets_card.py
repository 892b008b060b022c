"""The kernel side of a run card: what a page may ask, and the features opened in the card."""

import threading
from dataclasses import replace

import pytest

from extraction_kit import service
from extraction_kit.catalog.tables import FEATURES
from extraction_kit.run import Run
from extraction_kit.widgets import display
from extraction_kit.widgets.card import RunCard
from extraction_kit.widgets.hub import Hub, Watch
from tests.results_to_browse import write_result
from tests.unit.hubs import FAST, fast_hub, until
from tests.unit.lab import Lab


class Shown:
    """A card as it stands in a notebook: it keeps what its page is told."""

    def __init__(self, hub, source, run_id, *, freeze=False):
        self.told, self.states, self.frozen = [], [], []
        self._told = threading.Condition()
        view = source.view(run_id)
        kept = (lambda *what: self.frozen.append(what)) if freeze else None
        self.watch = Watch(source=source, run_id=run_id, view=view, freeze=kept)
        self.card = RunCard(hub, self.watch, {})
        self.card.send = self._hear
        self.watch.push = self.states.append

    def _hear(self, content):
        with self._told:
            self.told.append(content)
            self._told.notify_all()

    def click(self, name, asked="1"):
        """Press a button of the page; return how the kernel acknowledged it."""

        def acks():
            return [one for one in self.told if (one["kind"], one["id"]) == ("ack", asked)]

        self.card._on_message(None, {"kind": "act", "id": asked, "name": name}, None)
        with self._told:
            assert self._told.wait_for(acks, 30), self.told
        return acks()[-1]

    @property
    def browsers(self):
        return self.card._browsers.shown


@pytest.fixture
def hub():
    with fast_hub() as made:
        yield made


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "ws")


@pytest.fixture
def source(lab, tmp_path, monkeypatch):
    """The lab's runs; the result that is browsed is one that has texts, which theirs lack."""
    result = write_result(tmp_path / "result")
    monkeypatch.setattr(lab.ws._watcher, "browser", lambda *_: result.browse())
    monkeypatch.setattr(lab.ws._watcher, "highlights", lambda *_: [])
    return lab.ws._watcher


def test_features_are_made_when_asked_for_once_and_let_go_of_when_closed(lab, source, hub):
    shown = Shown(hub, source, lab.completed())
    hub.watch(shown.watch)
    until(lambda: shown.states)
    assert shown.browsers == {}  # nobody asked
    answer = shown.click("features")
    (view,) = shown.browsers.values()
    assert (answer["ok"], answer["browser"]) == (True, view.model_id)
    assert shown.told[0] == {
        "kind": "progress", "id": "1", "text": "Opening the features…"
    }  # fmt: skip
    until(
        lambda: shown.states[-1]["browser"] == view.model_id
    )  # for a page that is reloaded
    again = shown.click("features", asked="2")  # another view of the card
    assert again["browser"] == view.model_id
    assert list(shown.browsers.values()) == [view]
    assert shown.click("close", asked="3")["ok"]
    assert shown.browsers == {}
    assert view.comm is None
    until(lambda: shown.states[-1]["browser"] is None)
    assert shown.click("features", asked="4")["browser"] not in {None, answer["browser"]}


def test_a_card_is_not_replaced_while_its_features_are_open(lab, source, hub):
    shown = Shown(hub, source, lab.completed(), freeze=True)
    shown.click("features")
    hub.watch(shown.watch)
    until(lambda: shown.states and shown.states[-1]["browser"])
    for _ in range(3):  # looks of the hub, each of which would have replaced it
        before = len(shown.states)
        hub.wake(shown.watch)
        until(lambda before=before: len(shown.states) > before)
    assert shown.frozen == []
    shown.click("close", asked="2")
    until(lambda: shown.frozen)


def test_a_run_that_ends_before_a_persons_eyes_can_still_be_clicked(lab, source):
    hub = Hub(replace(FAST, linger_s=3600.0))
    run_id = lab.begun(lab.content())
    looked_at, unseen = (Shown(hub, source, run_id, freeze=True) for _ in range(2))
    looked_at.card._on_message(None, {"kind": "hello", "id": "1"}, None)
    for shown in (looked_at, unseen):
        hub.watch(shown.watch)
    lab.publish(run_id)
    lab.recorded(run_id)
    until(
        lambda: unseen.frozen
    )  # nobody looks, as where a notebook is executed by a program
    until(lambda: looked_at.watch.freeze_at is not None)
    assert looked_at.frozen == []
    hub.drop(looked_at.watch)


def test_what_has_no_features_is_refused_whatever_the_page_believes(
    lab, hub, tmp_path, monkeypatch
):
    source = lab.ws._watcher
    at_work = Shown(hub, source, lab.begun(lab.content("busy")))
    assert "has no results yet" in refused(at_work)
    deleted = Shown(hub, source, lab.completed("deleted", seed=1))
    lab.ws.run(deleted.watch.run_id).delete()
    assert "ws.restore(" in refused(deleted)
    result = write_result(tmp_path / "result")
    (tmp_path / "result" / "results" / FEATURES.file).unlink()
    monkeypatch.setattr(source, "browser", lambda *_: result.browse())
    damaged = Shown(hub, source, lab.completed("damaged", seed=2))
    assert FEATURES.file in refused(damaged)


def refused(shown):
    """Why the kernel does not open the features; nothing of them is left."""
    answer = shown.click("features")
    assert (answer["ok"], answer["browser"]) == (False, None)
    assert shown.browsers == {}
    assert not shown.watch.opening
    return answer["reason"]


def test_a_card_tells_of_a_refusal_only_where_its_own_launch_was_refused(
    lab, source, monkeypatch
):
    shown = []
    monkeypatch.setattr(display, "display", lambda bundle, **_: shown.append(bundle))
    run_id = lab.completed()
    refusal = service.launch(lab.bench, lab.content()).refusal  # somebody's, in some cell
    Run(source, run_id, refusal=refusal).show()
    lab.ws.run(run_id).show()
    launched, only_shown = (bundle["text/html"] for bundle in shown)
    assert "<strong>Refused:" in launched
    assert "<strong>Refused:" not in only_shown
    assert "Completed <time" in only_shown
    assert str(lab.folder(run_id)) in only_shown
    assert "<bdi>refused</bdi>" in only_shown  # on demand, in what happened
    view = lab.ws.run(run_id).view
    assert (view.refusal, view.n_refusals) == (None, 1)


def test_an_act_that_is_none_names_those_that_are(lab, hub):
    shown = Shown(hub, lab.ws._watcher, lab.completed())
    assert shown.click("delete") == {
        "kind": "ack", "id": "1", "ok": False,
        "reason": "unknown action 'delete'; allowed are launch, cancel, resume, features, close",
    }  # fmt: skip
