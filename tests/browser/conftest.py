"""What the tests of the widgets are given: Chromium, a widget in a stub page, a JupyterLab."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import card, dashboard_view, payload
from extraction_kit.widgets.board import RunBoard
from extraction_kit.widgets.browser import FeatureBrowser
from extraction_kit.widgets.browser_view import FILES
from extraction_kit.widgets.hub import Hub, Pace
from tests.browser.lab import lab_server, notebook  # noqa: F401 - fixtures
from tests.browser.pages import FLAGS, SCREENSHOTS, chromium_path, listen, serve

T0 = datetime(2026, 11, 23, 21, 16, tzinfo=UTC)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


# --- tier 1: the card's own files in a page without a server ------------------------------


def a_view(state: str = "extracting", **changes: Any) -> RunView:
    facts = {
        "run_id": "9f2c11d07a3be845",
        "training_id": "smollm2-l15-topk32",
        "generation": 1,
        "state": RunState(state),
        "attempt": 1,
        "job_id": "xk-smollm2-l15-topk32-1a2b3c4d5e-g1-a1",
        "n_tokens": 100_000,
        "n_tokens_done": 36_352,
        "created_at": T0,
        "created_by": "anna@lab-7",
        "started_at": T0 + timedelta(seconds=2),
        "d_sae": 2048,
        "model": "SmolLM2-135M",
        "hook_name": "blocks.15.hook_resid_post",
    }
    return RunView(**(facts | changes))


def running(**changes: Any) -> RunView:
    facts = {
        "phase": "extracting", "tokens_per_s": 2214.0, "l0": 32.0, "fvu": 0.1827,
        "n_dead": 212, "worker": "lab-7:4121", "beat_age_s": 0.4,
    }  # fmt: skip
    return a_view(**(facts | changes))


def completed(**changes: Any) -> RunView:
    facts = {
        "state": "completed", "n_tokens_done": 100_000, "l0": 32.0, "fvu": 0.1814,
        "n_dead": 41, "ended_at": T0 + timedelta(seconds=49),
        "completed_at": T0 + timedelta(seconds=50),
        "results_dir": "/home/anna/sae/.extraction_kit/results/run_id=9f2c11d07a3be845",
    }  # fmt: skip
    return a_view(**(facts | changes))


HIGHLIGHTS = [
    {
        "feature": 1187, "density": 0.00213, "max_act": 18.42,
        "tokens": [" The", " return", " value", " is", " a", " tuple", " of", " two",
                   " integers", ",", " which", "\n", "may", " be", " negative", "."],
        "acts": [0, 2.1, 4.4, 0, 0.8, 9.3, 3.0, 14.2, 18.42, 1.1, 0, 0, 0, 0, 6.2, 0],
    },
    {
        "feature": 402, "density": 0.0151, "max_act": 11.07,
        "tokens": ["If", " the", " file", " cannot", " be", " opened", ",", " an",
                   " OSError", " is", " raised", ";", " 東京", " naïve", " </td>"],
        "acts": [0, 0, 0, 3.3, 0, 1.2, 0, 2.4, 8.8, 7.1, 11.07, 0.5, 0, 0, 0],
    },
]  # fmt: skip

EVENTS = [
    Happening(seq=i, run_id="9f2c11d07a3be845", attempt=1, at=T0 + timedelta(seconds=i * 2),
              kind=kind, actor=actor, text=text, count=count)
    for i, (kind, actor, text, count) in enumerate([
        ("launched", "launcher", "by anna@lab-7: 100,000 tokens of pydoc.txt", 1),
        ("enqueue", "launcher", "job `xk-smollm2-l15-topk32-1a2b3c4d5e-g1-a1`", 1),
        ("claim", "worker", "worker lab-7:4121", 1),
        ("refused", "launcher", "launch: already completed", 3),
    ])
]  # fmt: skip


class Given:
    """Runs as a card may meet them."""

    view = staticmethod(a_view)
    running = staticmethod(running)
    completed = staticmethod(completed)
    highlights = HIGHLIGHTS
    events = EVENTS
    t0 = T0


@pytest.fixture(scope="session")
def given() -> type[Given]:
    return Given


def a_state(view: RunView, **more: Any) -> dict[str, Any]:
    """What the hub would send for `view`."""
    now = more.pop("now", (T0 + timedelta(seconds=19)).timestamp())
    beat_s = more.pop("beat_s", 4.0)
    note = more.pop("note", None)
    content = payload.build(
        view, more.get("events", []), more.get("highlights", []), note=note
    )
    browser = more.pop("browser", None)
    return content | {"seq": 1, "now": now, "beat_s": beat_s, "browser": browser}


@dataclass
class Stub:
    """A page with one card; `page` is Playwright's."""

    page: Page
    trouble: list[str] = field(default_factory=list)

    @property
    def card(self) -> Any:
        return self.page.get_by_role("group").first

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def click(self, name: str) -> None:
        """Click with the mouse, also where Playwright would wait for aria-disabled to go."""
        self.button(name).click(force=True)

    def push(self, view: RunView, **more: Any) -> None:
        self.page.evaluate("(state) => model.push(state)", a_state(view, **more))

    def acts(self) -> list[dict[str, Any]]:
        return self.page.evaluate("model.acts()")

    def ack(self, *, ok: bool = True, reason: str = "", **more: Any) -> None:
        answer = {"id": self.acts()[-1]["id"], "ok": ok, "reason": reason, **more}
        self.page.evaluate("(answer) => model.ack(answer)", answer)

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def stub(chromium: Browser) -> Iterator[Callable[..., Stub]]:
    """A function that opens a card; any page error or outside request fails the test."""
    opened: list[Stub] = []

    def open_stub(
        view: RunView, *, theme: str = "light", width: int = 920, **more: Any
    ) -> Stub:
        options = {"reduced_motion": more.pop("motion", "reduce"), "timezone_id": "UTC"}
        options["color_scheme"] = "dark" if theme == "dark" else "light"
        context = chromium.new_context(viewport={"width": width, "height": 100}, **options)
        made = Stub(context.new_page())
        opened.append(made)
        listen(made.page, made.trouble)
        made.page.route("**/*", serve(theme, made.trouble, card.PARTS))
        made.page.clock.install(time=more.pop("clock", T0 + timedelta(seconds=19)))
        made.page.goto("http://xk.test/")
        made.page.wait_for_function("window.ready === true")
        embeds = more.pop("embeds", True)
        started = "([state, embeds]) => start('state', state, embeds)"
        made.page.evaluate(started, [a_state(view, **more), embeds])
        return made

    yield open_stub
    for made in opened:
        made.page.context.close()
    assert [line for made in opened for line in made.trouble] == []


@pytest.fixture
def shown(chromium: Browser) -> Iterator[Callable[..., Stub]]:
    """A function that shows a feature browser; its questions are answered by Python here."""
    opened: list[Stub] = []

    def show(
        browser: FeatureBrowser, *, theme: str = "light", width: int = 1180, height: int = 900,
        **options: Any,
    ) -> Stub:  # fmt: skip
        options = {"reduced_motion": "reduce"} | options
        options["color_scheme"] = "dark" if theme == "dark" else "light"
        context = chromium.new_context(
            viewport={"width": width, "height": height}, **options
        )
        made = Stub(context.new_page())
        opened.append(made)
        listen(made.page, made.trouble)
        made.page.route("**/*", serve(theme, made.trouble, FILES))
        told: list[dict[str, Any]] | None = None  # while a question is answered

        def kernel(message: dict[str, Any]) -> list[dict[str, Any]]:
            nonlocal told
            told = []
            answer = browser.answer(message)
            found, told = [*told, *([answer] if answer else [])], None
            return found

        def tell(message: dict[str, Any]) -> None:
            if told is None:
                made.page.evaluate("(told) => model.fire('msg:custom', told)", message)
            else:
                told.append(message)

        made.page.expose_function("kernel", kernel)
        made.page.goto("http://xk.test/")
        made.page.wait_for_function("window.ready === true")
        made.page.evaluate(
            "(facts) => start('facts', facts)", payload.safe(browser.facts())
        )
        browser.connect(tell)
        made.page.wait_for_selector("[data-feature]")
        return made

    yield show
    for made in opened:
        made.page.context.close()
    assert [line for made in opened for line in made.trouble] == []


@dataclass
class BoardStub(Stub):
    """A page with a dashboard; its runs, its hub and its answers are the real ones.

    What the hub's thread pushes is kept until the test, whose thread alone may talk to the
    page, lets it through.
    """

    board: RunBoard | None = None
    hub: Hub | None = None
    pushed: queue.Queue[Any] = field(default_factory=queue.Queue)
    answers: list[Any] = field(default_factory=list)
    loses: Callable[[Any], bool] = lambda _: False  # a message that never arrives

    def answer(self, message: Any) -> list[Any]:
        self.answers.append(self.board.answer(message))
        return [one for one in self.answers[-1:] if one is not None]

    def let_through(self) -> None:
        with suppress(queue.Empty):
            while True:
                message = self.pushed.get_nowait()
                if not self.loses(message):
                    self.page.evaluate("(told) => model.fire('msg:custom', told)", message)

    def until(self, condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Let messages through until `condition` holds; asserts of `expect` are awaited."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.let_through()
            try:
                found = condition()
            except AssertionError:
                found = False
            if found or (found is None and time.monotonic() < deadline):
                return
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(20)

    def row(self, run_id: str) -> Any:
        return self.page.locator(f'[data-run="{run_id}"]')

    def rows(self) -> list[str]:
        """The ids of the rows in the page, from the top."""
        return self.page.evaluate(
            "[...document.querySelectorAll('[data-run]')].sort((a, b) =>"
            " a.ariaRowIndex - b.ariaRowIndex).map((row) => row.dataset.run)"
        )


FAST = Pace(
    viewed_s=0.05, resting_s=0.05, unviewed_s=0.1, beat_s=30.0, lease_s=60.0, linger_s=0.0
)


@pytest.fixture
def dashboard(chromium: Browser) -> Iterator[Callable[..., BoardStub]]:
    """A function that shows the dashboard of a workspace, as the kernel's parts serve it."""
    opened: list[BoardStub] = []

    def show(
        source: Any, *, theme: str = "light", width: int = 1180, height: int = 900,
        select: Callable[..., None] = lambda _: None, pace: Pace = FAST, **options: Any,
    ) -> BoardStub:  # fmt: skip
        options = {"reduced_motion": "reduce", "timezone_id": "UTC"} | options
        options["color_scheme"] = "dark" if theme == "dark" else "light"
        context = chromium.new_context(
            viewport={"width": width, "height": height}, **options
        )
        made = BoardStub(context.new_page(), hub=Hub(pace))
        opened.append(made)
        listen(made.page, made.trouble)
        made.page.route("**/*", serve(theme, made.trouble, dashboard_view.PARTS))
        made.board = RunBoard(source, made.hub, push=made.pushed.put, select=select)
        made.page.expose_function("kernel", made.answer)
        made.page.goto("http://xk.test/")
        made.page.wait_for_function("window.ready === true")
        made.page.evaluate("(state) => start('state', state)", made.board.full(pace))
        made.hub.attend(made.board)
        made.page.wait_for_selector("[role=rowgroup]")
        return made

    yield show
    for made in opened:
        made.board.heard_at = float("-inf")  # the hub forgets it
        made.page.context.close()
    assert [line for made in opened for line in made.trouble] == []
