"""Chromium, and pages without a server: the files of a widget, and what goes wrong on a page."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import ConsoleMessage, Page, Route

from extraction_kit.widgets.assets import css, esm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCREENSHOTS = ROOT / "build" / "screenshots"
THEMES = Path(sys.prefix) / "share" / "jupyter" / "lab" / "themes" / "@jupyterlab"
STYLES = {"dashboard": ("card", "dashboard")}
LIGHT_AND_DARK = ("light", "dark")
BUSY = "waiting for the kernel (busy running a cell?)"
CONTRAST = (HERE / "contrast.js").read_text()
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


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


def _theme(name: str) -> str:
    if name == "none":
        return ""
    return (THEMES / f"theme-{name}-extension" / "index.css").read_text()


def serve(
    theme: str, trouble: list[str], widget: tuple[str, ...]
) -> Callable[[Route], None]:
    """Answer a page's requests with the files of a widget; any other one is trouble."""
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


def listen(page: Page, trouble: list[str]) -> None:
    """Note what the page throws or logs as an error."""

    def console(message: ConsoleMessage) -> None:
        if message.type == "error":
            trouble.append(f"console: {message.text}")

    page.on(
        "pageerror", lambda error: trouble.append(f"page error: {error.stack or error}")
    )
    page.on("console", console)


def worst_contrast(made):
    """Return the smallest ratio of contrast on a page, and the text that has it."""
    return made.page.evaluate(f"() => ({CONTRAST.strip().rstrip(';')})(document.body)")[0]
