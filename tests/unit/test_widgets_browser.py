"""The feature browser without a page: questions, answers, and what Python reads and sets."""

import json
import logging
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from extraction_kit import LocalResult
from extraction_kit.errors import BadQuery, ResultsDamaged, UnknownFeature
from extraction_kit.results import GROUPS
from extraction_kit.widgets.browser_view import BrowserView
from tests.results_to_browse import (
    CONTEXT_SIZE,
    DEAD,
    HOSTILE,
    LOUD,
    Shape,
    labelled,
    write_result,
)
from tests.unit.published import PublishedRuns


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return write_result(tmp_path_factory.mktemp("result") / "here")


@pytest.fixture
def browser(result):
    return result.browse(LOUD)


def ask(browser, name, **content):
    """Ask as the page does; the answer must survive JSON without NaN."""
    answer = browser.answer({"kind": "ask", "id": "7", "name": name, **content})
    assert answer["id"] == "7"
    return json.loads(json.dumps(answer, allow_nan=False))


def content(browser, name, **more):
    answer = ask(browser, name, **more)
    assert answer["ok"], answer
    return answer["content"]


def test_one_answer_fills_the_whole_browser(browser):
    found = content(browser, "open", rows=50)
    assert found["list"]["n"] == 600
    assert found["list"]["at"] == LOUD
    assert len(found["list"]["rows"]["feature"]) == 50
    assert found["feature"]["feature"] == LOUD
    assert found["marks"] == []
    assert "\u202e" not in json.dumps(found, ensure_ascii=False)  # it turns the page round


def test_what_is_sent_for_one_feature_is_small(browser):
    assert len(json.dumps(ask(browser, "open", rows=120))) < 60_000


def test_the_page_of_a_feature_says_what_the_readers_say(result, browser):
    for feature in (0, LOUD, 599):
        for group in GROUPS:
            page = content(browser, "feature", feature=feature, group=group)
            windows = result.windows(feature, k=100, group=group)
            assert page["groups"][group] == len(windows)
            for one, window in zip(page["examples"], windows, strict=True):
                assert one["acts"] == pytest.approx(window.acts, rel=1e-4)
                assert len(one["tokens"]) == len(window.tokens)
                assert one["peak"] == window.pos - window.start
                assert one["held_out"] == window.held_out
        full = result.histogram(feature).tolist()
        first, counts = page["hist"]["first"], page["hist"]["counts"]
        assert full[first : first + len(counts)] == counts
        assert sum(full) == sum(counts)
        logits = result.logits(feature, sign="bottom").project("text, value").fetchall()
        assert [value for _, value in page["logits"]["bottom"]] == pytest.approx(
            [value for _, value in logits], rel=1e-4
        )
        near = result.similar(feature).project("other").fetchall()
        assert [row[0] for row in page["similar"]] == [row[0] for row in near]
        tokens = result.top_tokens(feature).project("n_active").fetchall()
        assert [row[1] for row in page["tokens"]] == [row[0] for row in tokens]


def test_the_whole_context_is_there_on_request(browser):
    short = content(browser, "examples", feature=9, group="random", whole=False)
    whole = content(browser, "examples", feature=9, group="random", whole=True)
    for one, all_of_it in zip(short["examples"], whole["examples"], strict=True):
        assert one["before"] == one["after"] == []
        assert one["tokens"] == all_of_it["tokens"]
        parts = (all_of_it["before"], all_of_it["tokens"], all_of_it["after"])
        assert sum(map(len, parts)) == CONTEXT_SIZE


def test_what_a_run_did_not_keep_is_absent_with_its_reason(tmp_path):
    bare = write_result(tmp_path / "bare", Shape(d_sae=20, n_contexts=20, tables=()))
    page = content(bare.browse(), "open", rows=5)["feature"]
    assert set(page["absent"]) == {"logits", "tokens", "decoder", "coactivation"}
    assert page["absent"]["logits"] == "this run has no logits: n_logits is 0"
    assert page["similar"] == page["logits"]["top"] == []


def test_the_sql_of_the_browser_gives_the_list_shown(result, browser):
    listing = {"sort": "density", "descending": True, "life": "alive", "token": "paris"}
    found = content(browser, "list", listing=listing, rows=100)
    answer = result._browsed().ask(browser.sql)
    assert [row[0] for row in answer.fetchall()] == found["rows"]["feature"]
    assert found["n"] == len(found["rows"]["feature"]) > 0
    assert found["at"] == -1  # the examples of the feature shown do not peak on it
    found = content(browser, "feature", revision=found["revision"], row=2)
    assert (found["at"], browser.feature) == (2, found["feature"])


def test_rows_of_a_list_that_is_no_more_are_refused(browser):
    old = content(browser, "open", rows=1)["list"]["revision"]
    content(browser, "list", listing={"life": "dead"}, rows=1)
    for name, more in (("rows", {"start": 0, "count": 9}), ("feature", {"row": 0})):
        answer = ask(browser, name, revision=old, **more)
        assert not answer["ok"]
        assert "ask for it again" in answer["reason"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sql", {"query": "DROP TABLE features"}), (None, {}), ([], {}),
        ("feature", {"feature": 600}), ("feature", {"feature": "7"}),
        ("feature", {"feature": True}), ("feature", {}),
        ("feature", {"feature": 1, "group": "all"}), ("feature", {"feature": 1, "group": []}),
        ("feature", {"revision": 0, "row": 600}), ("feature", {"revision": 0, "row": -1}),
        ("rows", {"revision": 0, "start": -1, "count": 5}),
        ("rows", {"revision": 0, "start": 0, "count": "5"}),
        ("list", {"listing": {"sort": "x"}, "rows": 5}), ("list", {"rows": 5}),
        ("mark", {"feature": -1, "on": True}), ("open", {}),
    ],
    ids=str,
)  # fmt: skip
def test_only_the_questions_of_the_list_are_answered(browser, name, more):
    before = (browser.feature, browser.sql, browser.selection)
    answer = ask(browser, name, **more)
    assert answer["ok"] is False
    assert answer["reason"]
    assert (browser.feature, browser.sql, browser.selection) == before


def test_what_is_no_question_has_no_answer(browser):
    assert browser.answer({"kind": "hello"}) is None
    assert browser.answer("open") is None


def test_one_answer_never_holds_more_rows_than_a_screen_needs(browser):
    found = content(browser, "rows", revision=0, start=0, count=10**9)
    assert len(found["feature"]) == 400


def test_python_moves_the_browser_and_the_page_is_told(browser):
    told = []
    browser.connect(told.append)
    browser.feature = np.int64(11)
    assert browser.feature == 11
    assert told[0]["content"]["feature"]["feature"] == 11
    browser.selection = [np.int32(4), 2, 4]
    assert browser.selection == [4, 2]
    assert told[1] == {"kind": "told", "but": None, "content": {"marks": [4, 2]}}
    with pytest.raises(UnknownFeature, match="600"):
        browser.feature = 600
    with pytest.raises(UnknownFeature):
        browser.selection = [1, -1]
    assert (browser.feature, browser.selection, len(told)) == (11, [4, 2], 2)


def test_marks_of_the_page_are_the_selection_of_python(browser):
    assert content(browser, "mark", feature=9, on=True)["marks"] == [9]
    assert content(browser, "mark", feature=5, on=True)["marks"] == [9, 5]
    assert content(browser, "mark", feature=9, on=False)["marks"] == [5]
    assert browser.selection == [5]


def test_a_list_of_marked_features_follows_the_marks(browser):
    browser.selection = [9, 5, 30]
    found = content(browser, "list", listing={"among": [9, 5, 30]}, rows=2)
    assert found["n"] == 3
    found = content(browser, "mark", feature=9, on=False)
    assert found["list"]["rows"]["feature"] == [5, 30]
    assert "feature IN (5, 30)" in browser.sql
    told = []
    browser.connect(told.append)
    browser.selection = [44]
    assert told[0]["content"]["list"]["rows"]["feature"] == [44]
    assert "list" not in content(browser, "list", listing={}, rows=2)
    assert "list" not in content(browser, "mark", feature=9, on=True)


def test_what_one_output_asks_for_is_seen_by_the_others(browser):
    told = []
    browser.connect(told.append)
    found = content(browser, "list", view="a", listing={"life": "dead"}, rows=3)
    assert told == [{"kind": "told", "but": "a", "content": {"list": found}}]
    found = content(browser, "mark", view="a", feature=9, on=True)
    assert told[1] == {"kind": "told", "but": "a", "content": {"marks": [9]}}
    found = content(browser, "feature", view="b", feature=11, group="random")
    assert told[2] == {"kind": "told", "but": "b", "content": {"feature": found}}
    for name in ("open", "rows", "examples"):
        ask(browser, name, view="a", rows=1, revision=1, start=0, count=1, feature=1)
    assert not ask(browser, "mark", view="a", feature=-1, on=True)["ok"]
    browser.selection = [1]
    assert [one["but"] for one in told] == ["a", "a", "b", None]


def test_an_output_hears_of_changes_while_somebody_looks_at_it(browser, monkeypatch):
    view, sent = BrowserView(browser), []
    monkeypatch.setattr(view, "send", sent.append)

    def heard(feature):
        sent.clear()
        browser.feature = feature
        return len(sent)

    def says(kind, page, **more):
        view._on_message(view, {"kind": kind, "id": "1", "view": page, **more}, [])

    assert heard(1) == 0
    says("ask", "a", name="open", rows=5)
    says("ask", "b", name="open", rows=5)  # the output has a second view
    assert heard(2) == 1
    sent.clear()
    says("ask", "b", name="mark", feature=9, on=True)
    assert [message["kind"] for message in sent] == ["told", "answer"]
    says("bye", "a")
    assert heard(3) == 1
    sent.clear()
    says("ask", "b", name="mark", feature=9, on=False)  # nobody else looks
    assert [message["kind"] for message in sent] == ["answer"]
    says("bye", "b")
    says("bye", "b")
    assert heard(4) == 0
    assert browser._tellers == []  # the browser holds no output that is gone
    says("ask", "b", name="rows", revision=0, start=0, count=1)  # it came back
    assert heard(5) == 1
    view.close()


def test_an_interrupted_kernel_answers(browser, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(browser._pages, "page", stopped)
    answer = ask(browser, "feature", feature=1)
    assert not answer["ok"]
    assert answer["reason"] == "The kernel was interrupted before it answered: ask again."


def test_an_unknown_feature_is_refused_before_anything_is_shown(result):
    with pytest.raises(UnknownFeature):
        result.browse(10_000)


def test_a_result_that_is_damaged_while_it_is_browsed_says_so(result, tmp_path):
    shutil.copytree(result.folder, tmp_path / "copy")
    browser = LocalResult(tmp_path / "copy").browse()
    (tmp_path / "copy" / "results" / "examples.parquet").write_bytes(b"PAR1")
    answer = ask(browser, "feature", feature=3)
    assert not answer["ok"]
    assert "examples.parquet cannot be read" in answer["reason"]


def test_a_result_without_its_files_is_refused(result, tmp_path):
    shutil.copytree(result.folder, tmp_path / "copy")
    copy = LocalResult(tmp_path / "copy")
    (tmp_path / "copy" / "results" / "histograms.parquet").unlink()
    with pytest.raises(ResultsDamaged, match=r"histograms\.parquet"):
        copy.browse()


def test_a_result_of_another_release_is_refused(result, tmp_path):
    shutil.copytree(result.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "results" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(BadQuery, match="written in format 2"):
        LocalResult(tmp_path / "copy").browse()


def test_an_unforeseen_error_reaches_the_person_and_the_log(browser, monkeypatch, caplog):
    def breaks(*_, **__):
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(browser._pages, "page", breaks)
    with caplog.at_level(logging.CRITICAL, logger="extraction_kit"):
        answer = ask(browser, "feature", feature=1)
    assert answer["reason"] == "ZeroDivisionError: surprise"


# --- a run of a workspace -----------------------------------------------------------------


def test_a_run_is_browsed_and_its_sql_is_answered_by_the_workspace(tmp_path):
    stage = PublishedRuns(tmp_path / "ws")
    run = stage.ws.run(stage.completed())
    stage.completed("another")  # its features are not in the list
    browser = run.browse(5)
    listing = {"sort": "density", "descending": True, "token": "TOK1", "life": "alive"}
    found = content(browser, "list", listing=listing, rows=50)
    features = found["rows"]["feature"]
    assert 0 < len(features) == len(set(features)) < 16
    assert [row[0] for row in stage.ws.sql(browser.sql).fetchall()] == features
    assert run.run_id in browser.sql
    shown = [one["tokens"] for one in browser.page()["examples"]]
    assert shown == [window.tokens for window in run.windows(5)]
    assert repr(browser) == "<FeatureBrowser tiny: feature 5 of 16>"


# --- labels -------------------------------------------------------------------------------


def test_labels_are_shown_in_list_page_and_neighbours(result):
    browser = labelled(result, HOSTILE[0])
    found = content(browser, "open", rows=20)
    assert found["feature"]["label"] == HOSTILE[0]
    assert found["feature"]["similar"][0][::2] == [8, "eight"]
    assert found["list"]["rows"]["label"][LOUD : LOUD + 2] == [HOSTILE[0], "eight"]
    found = content(browser, "list", listing={"label": "eig", "sort": "label"}, rows=5)
    assert found["rows"]["feature"] == [8]


def test_a_label_that_is_written_in_the_browser_is_in_the_ledger(tmp_path):
    stage = PublishedRuns(tmp_path / "ws")
    run = stage.ws.run(stage.completed())
    browser, told = run.browse(5), []
    browser.connect(told.append)
    content(browser, "list", listing={"label": "dat"}, rows=5)
    assert content(browser, "said", feature=5) == {"name": None, "description": None}
    found = content(
        browser, "label", view="a", feature=5, texts={"name": "dates"}, group="random"
    )
    assert found["list"]["rows"]["feature"] == [5]
    assert (found["feature"]["label"], found["feature"]["group"]) == ("dates", "random")
    assert told[-1] == {"kind": "told", "but": "a", "content": found}
    content(browser, "label", feature=5, texts={"description": "of \u202e years"})
    assert browser.page()["description"] == "of \u27e8U+202E\u27e9 years"
    assert content(browser, "said", feature=5)["description"] == "of \u202e years"
    kept = stage.ws.labels("tiny").project("feature, name, description, source").fetchall()
    assert kept == [(5, "dates", "of \u202e years", "feature browser")]
    for texts in ({"name": "x" * 201}, {"name": 7}, {}, {"source": "me"}, None, []):
        assert not ask(browser, "label", feature=5, texts=texts)["ok"]
    bad_group = {"texts": {"name": "x"}, "group": "all"}
    assert not ask(browser, "label", feature=5, **bad_group)["ok"]
    assert content(browser, "said", feature=5)["name"] == "dates"
    content(browser, "label", feature=5, texts={"name": None, "description": None})
    assert stage.ws.labels("tiny").fetchall() == []


def test_a_result_outside_of_a_workspace_says_why_it_keeps_no_labels(browser):
    for name in ("said", "label"):
        answer = ask(browser, name, feature=5, texts={"name": "x"})
        assert "labels are kept by a workspace" in answer["reason"]


# --- static -------------------------------------------------------------------------------


class Balance(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words, self.sound = [], set(), [], True
        self.feed(page)
        self.close()
        self.sound = self.sound and not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.sound = self.sound and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_static_form_is_whole_harmless_and_the_same_each_time(result, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    bundle = labelled(result, HOSTILE[0])._repr_mimebundle_()
    assert bundle == labelled(result, HOSTILE[0])._repr_mimebundle_()
    assert bundle["text/plain"] == "<FeatureBrowser synthetic: feature 7 of 600>"
    found = Balance(bundle["text/html"])
    assert found.sound
    assert not found.tags & {"img", "script", "b", "svg"}
    text = "".join(found.words)
    for part in (
        f"Feature {LOUD}", HOSTILE[0], "of tokens", "promotes", "suppresses", "similar",
        "eight", "600 of 600 features", f"result.browse({LOUD})", "n_coactive is 0",
    ):  # fmt: skip
        assert part in text
    assert "\u202e" not in bundle["text/html"]


def test_a_dead_feature_has_a_static_form_too(result, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    found = Balance(result.browse(DEAD)._repr_mimebundle_()["text/html"])
    assert found.sound
    assert "never active" in "".join(found.words)


def test_the_static_list_names_the_measure_that_it_shows(browser, monkeypatch):
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    content(browser, "list", listing={"measure": "q99"}, rows=5)
    found = Balance(browser._repr_mimebundle_()["text/html"])
    assert "q99" in found.words
    assert "max_act" not in found.words


def test_without_a_kernel_only_the_static_form_is_given(result):
    assert set(result.browse()._repr_mimebundle_()) == {"text/plain", "text/html"}
