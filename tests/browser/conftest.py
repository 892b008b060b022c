"""Chromium, the card in a stub page, and a JupyterLab of its own."""

import json
import os
import queue
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

from extraction_kit.lifecycle import RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import dashboard_view, payload
from extraction_kit.widgets.assets import css, esm
from extraction_kit.widgets.board import RunBoard
from extraction_kit.widgets.browser import FeatureBrowser
from extraction_kit.widgets.browser_view import FILES
from extraction_kit.widgets.hub import Hub, Pace

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCREENSHOTS = ROOT / "build" / "screenshots"
THEMES = Path(sys.prefix) / "share" / "jupyter" / "lab" / "themes" / "@jupyterlab"
STYLES = {"dashboard": ("card", "dashboard")}
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
    content = payload.build(
        view, more.get("events", []), more.get("highlights", []), note=note
    )
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


def _serve(
    theme: str, trouble: list[str], widget: tuple[str, ...]
) -> Callable[[Route], None]:
    files = {
        "": ("text/html", (HERE / "stub.html").read_text),
        "theme.css": ("text/css", lambda: _theme(theme)),
        "widget.js": ("text/javascript", lambda: esm(*widget)),
        "widget.css": ("text/css", lambda: css(*STYLES.get(widget[-1], widget[-1:]))),
    }

    def answer(route: Route) -> None:
        address = urlsplit(route.request.url)
        name = address.path.lstrip("/")
        if address.hostname != "xk.test":
            if address.scheme != "data":
                trouble.append(f"external request: {route.request.url}")
            route.abort()
        elif name in files:
            kind, read = files[name]
            route.fulfill(body=read(), content_type=kind)
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
        made.page.route("**/*", _serve(theme, made.trouble, ("card",)))
        made.page.clock.install(time=more.pop("clock", T0 + timedelta(seconds=19)))
        made.page.goto("http://xk.test/")
        made.page.wait_for_function("window.ready === true")
        made.page.evaluate("(state) => start('state', state)", a_state(view, **more))
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
        _listen(made.page, made.trouble)
        made.page.route("**/*", _serve(theme, made.trouble, FILES))
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

    def until(self, condition: Callable[[], Any], timeout_s: float = 20.0) -> None:
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
        _listen(made.page, made.trouble)
        made.page.route("**/*", _serve(theme, made.trouble, dashboard_view.PARTS))
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


# --- tier 2: a JupyterLab of its own --------------------------------------------------------

LAB_OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class LabServer:
    """A running JupyterLab; `root` is the folder that it shows."""

    url: str
    root: Path

    def ask(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(  # noqa: S310 - our own server
            f"{self.url}{path}", method=method, headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            body = answer.read()
        return json.loads(body) if body else None

    def stop_kernels(self) -> None:
        for session in self.ask("/api/sessions"):
            with suppress(urllib.error.HTTPError):  # its kernel ended by itself
                self.ask(f"/api/sessions/{session['id']}", "DELETE")


def _lab_environment(home: Path) -> dict[str, str]:
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")  # fmt: skip
    folders = {name: str(home / name.lower()) for name in names}
    config = Path(folders["JUPYTER_CONFIG_DIR"]) / "labconfig"
    config.mkdir(parents=True)
    (config / "default_setting_overrides.json").write_text(json.dumps(LAB_OVERRIDES))
    clean = {
        name: text for name, text in os.environ.items() if "EXTRACTION_KIT" not in name
    }
    return clean | folders | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@contextmanager
def _lab(home: Path, root: Path) -> Iterator[LabServer]:
    port = _free_port()
    command = [
        sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser",
        "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    server = LabServer(f"http://127.0.0.1:{port}", root)
    with (
        (home / "lab.log").open("wb") as log,
        subprocess.Popen(
            command, env=_lab_environment(home), stdout=log, stderr=log, cwd=root
        ) as process,
    ):
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, (home / "lab.log").read_text()
            assert time.monotonic() < deadline, "JupyterLab did not answer within 60 s"
            try:
                server.ask("/api/status")
                break
            except OSError:
                time.sleep(0.1)
        try:
            yield server
        finally:
            server.stop_kernels()
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    chromium_path()
    home = tmp_path_factory.mktemp("jupyter")
    with _lab(home, tmp_path_factory.mktemp("notebooks")) as server:
        yield server


def _notebook(cells: list[str]) -> dict[str, Any]:
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [
            {"cell_type": "code", "id": f"cell-{i}", "metadata": {}, "source": source,
             "outputs": [], "execution_count": None}
            for i, source in enumerate(cells)
        ],
    }  # fmt: skip


IDLE = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.sessionContext.isReady
        && panel.sessionContext.session?.kernel?.status === 'idle';
}"""


@dataclass
class Notebook:
    """One notebook in its own browser page."""

    page: Page
    server: LabServer
    name: str
    trouble: list[str] = field(default_factory=list)

    def open(self) -> None:
        address = f"{self.server.url}/doc/tree/{self.name}?token={TOKEN}&reset"
        self.page.goto(address, timeout=60_000)
        self.page.wait_for_function(IDLE, timeout=60_000)

    def command(self, name: str) -> None:
        """Execute a JupyterLab command and wait for its end."""
        self.page.evaluate("(name) => window.jupyterapp.commands.execute(name)", name)

    def start(self, name: str) -> None:
        """Execute a JupyterLab command without waiting."""
        self.page.evaluate("(name) => void window.jupyterapp.commands.execute(name)", name)

    def select(self, index: int) -> None:
        panel = "window.jupyterapp.shell.currentWidget.content"
        self.page.evaluate(f"(i) => {{ {panel}.activeCellIndex = i }}", index)

    def cell(self, index: int) -> Any:
        return self.page.locator(f'.jp-Notebook [data-windowed-list-index="{index}"]')

    def outputs(self, index: int) -> list[dict[str, Any]]:
        model = "window.jupyterapp.shell.currentWidget.content.model.cells"
        return self.page.evaluate(f"(i) => {model}.get(i).toJSON().outputs", index)

    def n_cells(self) -> int:
        return self.page.evaluate(
            "window.jupyterapp.shell.currentWidget.content.model.cells.length"
        )

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def notebook(
    chromium: Browser, lab_server: LabServer, request: pytest.FixtureRequest
) -> Iterator[Callable[[list[str]], Notebook]]:
    """A function that opens a new notebook with the given cells in JupyterLab."""
    opened: list[Notebook] = []

    def make(cells: list[str]) -> Notebook:
        name = f"{request.node.name}.ipynb"
        (lab_server.root / name).write_text(json.dumps(_notebook(cells)))
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        made = Notebook(context.new_page(), lab_server, name)
        _listen(made.page, made.trouble)
        opened.append(made)
        made.open()
        return made

    yield make
    for made in opened:
        made.page.context.close()
    lab_server.stop_kernels()
    assert [line for made in opened for line in made.trouble] == []
