"""The static card: the same text for the same run, complete and harmless anywhere."""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest

from extraction_kit import widgets
from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import static, words
from extraction_kit.widgets.examples import ExamplesPage

T0 = datetime(2026, 11, 23, 21, 16, 7, tzinfo=UTC)
HIGHLIGHT = {
    "feature": 1187,
    "density": 0.00213,
    "max_act": 18.4,
    "tokens": [" a", "</td><b>x", "\n", "\u202eleft"],
    "acts": [0.0, 18.4, 2.0, 0.0],
}
EVIL = "<img src=x onerror=alert(1)> </script> & \u202e \ud800"


def a_view(state="completed", **changes):
    facts = {
        "run_id": "9f2c",
        "training_id": "t-7f3a",
        "generation": 1,
        "state": RunState(state),
        "attempt": 1,
        "job_id": "xk-t-7f3a-1a2b-g1-a1",
        "n_tokens": 100_000,
        "n_tokens_done": 36_500,
        "created_at": T0,
        "created_by": "anna@lab-7",
    }
    return RunView(**(facts | changes))


def a_completed_view(**changes):
    facts = {
        "started_at": T0 + timedelta(seconds=1),
        "ended_at": T0 + timedelta(seconds=60),
        "completed_at": T0 + timedelta(seconds=61),
        "results_dir": "/home/anna/.extraction_kit/results/run_id=9f2c",
        "l0": 32.04,
        "fvu": 0.18149,
        "n_dead": 41,
        "d_sae": 2048,
        "worker": "lab-7:4121",
    }
    return a_view(**(facts | changes))


class Balance(HTMLParser):
    """Collects text, tags and whether every element is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.words, self.sound = [], set(), [], True
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        self.sound = self.sound and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(page):
    found = Balance(page)
    assert found.sound
    assert not found.open
    return "".join(found.words)


def test_the_plain_text_is_one_line_that_a_log_can_be_searched_for():
    assert static.plain(a_completed_view()) == (
        "<Run t-7f3a g1 completed 100% of 100,000 tokens>"
    )
    assert static.plain(a_view("extracting", generation=2)) == (
        "<Run t-7f3a g2 extracting 36% of 100,000 tokens>"
    )


def test_99_9_per_cent_is_not_called_all():
    view = a_view("publishing", n_tokens_done=99_999)
    assert "99% of" in static.plain(view)


def test_a_completed_card_says_what_was_found_when_by_whom_and_where():
    text = read(static.html(a_completed_view(), highlights=[HIGHLIGHT]))
    for part in (
        "Completed 2026-11-23 21:17 UTC",
        "anna@lab-7",
        "/home/anna/.extraction_kit/results/run_id=9f2c",
        "32 L0",
        "0.181 FVU",
        "41 (2 %) dead",
        "feature 1187",
        "never computed again",
        "run.browse()",
        'ws.launch("t-7f3a", ..., generation=2)',
    ):
        assert part in text


@pytest.mark.parametrize("state", list(RunState))
def test_every_state_gives_sound_html_with_its_name(state):
    view = a_view(state, error=EVIL, error_traceback=EVIL, findings=(EVIL,), advice=EVIL,
                  checkpoint_tokens=20_000)  # fmt: skip
    assert state.capitalize() in read(static.html(view))


def test_markup_from_outside_stays_text():
    view = a_completed_view(
        training_id=EVIL, model=EVIL, hook_name=EVIL, created_by=EVIL, results_dir=EVIL,
        refusal=EVIL, findings=(EVIL,),
    )  # fmt: skip
    event = Happening(
        seq=1, run_id="9f2c", attempt=1, at=T0, kind=EVIL, actor=EVIL, text=EVIL
    )
    page = static.html(view, [event], [HIGHLIGHT])
    found = Balance(page)
    assert found.sound
    assert not found.tags & {"img", "script", "b"}
    assert "\u202e" not in page
    page.encode()  # a lone surrogate would stop every writer of notebooks


def test_the_card_of_a_finished_run_is_the_same_wherever_it_is_made(monkeypatch):
    here = a_completed_view()
    there = replace(
        here,
        created_by="ben@other",
        worker="other:9",
        results_dir="/srv/results/run_id=9f2c",
        completed_at=T0 + timedelta(days=3),
        ended_at=T0 + timedelta(days=3),
        tokens_per_s=1.0,
    )

    def bundle(view):
        made = widgets.mimebundle(view, highlights=[HIGHLIGHT])
        made["text/html"] = re.sub(r"<time.*?</time>", "TIME", made["text/html"])
        return made

    assert bundle(here) != bundle(there)
    monkeypatch.setenv("EXTRACTION_KIT_STATIC", "1")
    assert bundle(here) == bundle(there)


def test_the_words_survive_a_site_that_strips_every_style():
    page = static.html(a_completed_view(), highlights=[HIGHLIGHT])
    bare = re.sub(r' style="[^"]*"', "", page)
    assert "<strong><bdi>&lt;/td&gt;&lt;b&gt;x</bdi></strong>" in bare  # the peak is bold


def test_what_is_invisible_in_a_token_is_shown():
    assert words.token(" a\n\t\x00\u202e\x9b") == " a↵⇥␀⟨U+202E⟩␦"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03"), (-4, "0:00")]
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert words.duration(seconds) == text


@dataclass
class Example:
    act: float
    tokens: list
    acts: list


def test_examples_of_a_feature_are_text_for_every_place():
    windows = (Example(9.0, [" the", " <b>"], [0.0, 9.0]), Example(3.0, ["x"], [3.0]))
    page = ExamplesPage(feature=7, windows=windows)
    assert repr(page) == "<feature 7: 2 examples, max 9>"
    made = page._repr_mimebundle_()
    assert "<b>" in read(made["text/html"])
    assert "rgba(255,145,0,0.50)" in made["text/html"]
    assert "rgba(255,145,0,0.21)" in made["text/html"]  # 3 of 9: one scale for all
    assert "never fired" in read(
        ExamplesPage(feature=8, windows=())._repr_mimebundle_()["text/html"]
    )
    quiet = (Example(0.0, [" a"], [0.0]),)
    page = ExamplesPage(feature=7, windows=quiet, group="silent")
    assert repr(page) == "<feature 7: 1 silent examples, max 0>"
    assert " a" in read(page._repr_mimebundle_()["text/html"])
    none = ExamplesPage(feature=8, windows=(), group="random")
    assert "no example of random" in read(none._repr_mimebundle_()["text/html"])


def test_importing_the_package_imports_nothing_of_jupyter():
    code = (
        "import sys, extraction_kit, extraction_kit.widgets\n"
        "print({'IPython', 'ipywidgets', 'anywidget', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
