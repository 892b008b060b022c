"""Chromium, the card in a stub page, and a JupyterLab of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

from extraction_kit import widgets
from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import payload
from extraction_kit.widgets.card import esm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CARD = Path(widgets.__file__).parent
SCREENSHOTS = ROOT / "build" / "screenshots"
THEMES = Path(sys.prefix) / "share" / "jupyter" / "lab" / "themes" / "@jupyterlab"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
TOKEN = "t"  # noqa: S105 - of a server that lives for one test run on the loopback
T0 = datetime(2026, 11, 23, 21, 16, tzinfo=UTC)


def chromium_path() -> str:
    """A browser that is not there fails in CI and is a named skip elsewhere."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    reason = "no Chromium on PATH: apt-get install chromium"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


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
    content = payload.build(view, more.get("events", []), more.get("highlights", []), note=note)
    return content | {"seq": 1, "now": now, "beat_s": beat_s}


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

    def ack(self, *, ok: bool = True, reason: str = "") -> None:
        answer = {"id": self.acts()[-1]["id"], "ok": ok, "reason": reason}
        self.page.evaluate("(answer) => model.ack(answer)", answer)

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def _theme(name: str) -> str:
    if name == "none":
        return ""
    return (THEMES / f"theme-{name}-extension" / "index.css").read_text()


def _serve(theme: str, trouble: list[str]) -> Callable[[Route], None]:
    kinds = {".html": "text/html", ".css": "text/css"}

    def answer(route: Route) -> None:
        address = urlsplit(route.request.url)
        name = address.path.lstrip("/") or "stub.html"
        folder = HERE if name == "stub.html" else CARD
        if address.hostname != "xk.test":
            if address.scheme != "data":
                trouble.append(f"external request: {route.request.url}")
            route.abort()
        elif name == "theme.css":
            route.fulfill(body=_theme(theme), content_type="text/css")
        elif name == "card.js":
            route.fulfill(body=esm("card"), content_type="text/javascript")
        elif (folder / name).suffix in kinds and (folder / name).exists():
            kind = kinds[(folder / name).suffix]
            route.fulfill(body=(folder / name).read_text(), content_type=kind)
        elif name.endswith((".svg", ".woff2", ".woff")):
            route.fulfill(body="", content_type="image/svg+xml")  # of the theme's icons
        else:
            trouble.append(f"unknown file asked for: {name}")
            route.abort()

    return answer


def _listen(page: Page, trouble: list[str]) -> None:
    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            trouble.append(f"console: {message.text}")

    page.on("pageerror", lambda error: trouble.append(f"page error: {error}"))
    page.on("console", console)


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
        _listen(made.page, made.trouble)
        made.page.route("**/*", _serve(theme, made.trouble))
        made.page.clock.install(time=more.pop("clock", T0 + timedelta(seconds=19)))
        made.page.goto("http://xk.test/")
        made.page.wait_for_function("window.ready === true")
        made.page.evaluate("(state) => start(state)", a_state(view, **more))
        return made

    yield open_stub
    for made in opened:
        made.page.context.close()
    assert [line for made in opened for line in made.trouble] == []
