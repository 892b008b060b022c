"""A Jupyter server of its own, and notebooks in JupyterLab or Notebook 7 on it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import ROOT, SCREENSHOTS, chromium_path, listen

LAB, NOTEBOOK_7 = "doc/tree", "notebooks"  # what a notebook's address begins with
TOKEN = "t"  # noqa: S105 - of a server that lives for one test run on the loopback
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
        "--JupyterNotebookApp.expose_app_in_browser=True",
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
    under: str = LAB
    trouble: list[str] = field(default_factory=list)

    def open(self) -> None:
        address = f"{self.server.url}/{self.under}/{self.name}?token={TOKEN}&reset"
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

    def focus(self, node: Any) -> None:
        """Focus a node so that it stays: JupyterLab moves the focus a moment after a command."""
        node.evaluate("""async (node) => {
            for (let frames = 0; frames < 20; frames++) {
                if (document.activeElement !== node) {
                    node.focus({ preventScroll: true });
                    frames = 0;
                }
                await new Promise(requestAnimationFrame);
            }
        }""")

    def cell(self, index: int) -> Any:
        return self.page.locator(f'.jp-Notebook [data-windowed-list-index="{index}"]')

    def outputs(self, index: int) -> list[dict[str, Any]]:
        model = "window.jupyterapp.shell.currentWidget.content.model.cells"
        return self.page.evaluate(f"(i) => {model}.get(i).toJSON().outputs", index)

    def n_cells(self) -> int:
        return self.page.evaluate(
            "window.jupyterapp.shell.currentWidget.content.model.cells.length"
        )

    def theme(self, name: str) -> None:
        """Change the theme, which JupyterLab keeps for all notebooks of its server."""
        self.page.evaluate(
            "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})",
            name,
        )
        expect(self.page.locator("body")).to_have_attribute(
            "data-jp-theme-light", str("Light" in name).lower()
        )

    def picture(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture
def notebook(
    chromium: Browser, lab_server: LabServer, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """A function that opens a new notebook with the given cells, by default in JupyterLab."""
    opened: list[Notebook] = []

    def make(cells: list[str], under: str = LAB) -> Notebook:
        name = f"{request.node.name}.ipynb"
        (lab_server.root / name).write_text(json.dumps(_notebook(cells)))
        context = chromium.new_context(viewport={"width": 1280, "height": 900})
        made = Notebook(context.new_page(), lab_server, name, under)
        listen(made.page, made.trouble)
        opened.append(made)
        made.open()
        return made

    yield make
    for made in opened:
        made.page.context.close()
    lab_server.stop_kernels()
    # Notebook 7.6.5 throws errors of its own on every page; a widget's module comes as a blob.
    trouble = [
        line
        for made in opened
        for line in made.trouble
        if made.under == LAB or "blob:" in line
    ]
    assert not trouble, trouble
