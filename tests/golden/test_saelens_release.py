"""A release of SAELens is loaded by sae-lens itself, from a hub on this machine.

Run by `make golden`, in an environment that has sae-lens. Package, list of releases and
download client are the real ones; the hub is a local server that answers as huggingface.co
does to the download of a file, and has one repository: the tiny SAE under a release's name.
"""

import hashlib
import http.server
import shutil
import threading
from pathlib import Path

import pytest

from extraction_kit import ExtractionConfig, Workspace
from extraction_kit.errors import BadSae

pytestmark = pytest.mark.golden

RELEASE, SAE_ID = "gemma-2b-res-jb", "blocks.0.hook_resid_post"
REPOSITORY = "jbloom/Gemma-2b-Residual-Stream-SAEs"
FOLDER = "gemma_2b_blocks.0.hook_resid_post_16384_anthropic"
COMMIT = "0" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers ``/<repository>/resolve/<revision>/<path>`` from a folder."""

    root: Path
    asked: list[str]

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, *, with_body):
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        self.asked.append(f"{self.command} {repository} {name}")
        file = self.root / repository / name
        if not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch):
    """Serve the tiny SAE under the name of a release; return what was asked for."""
    root = tmp_path / "hub"
    shutil.copytree(tiny.sae, root / REPOSITORY / FOLDER)
    handler = type("TinyHub", (Hub,), {"root": root, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_release_is_downloaded_once_and_measured_like_its_folder(hub, tiny, tmp_path):
    ws = Workspace(tmp_path / "ws")
    released = ws.register_training("released", sae=(RELEASE, SAE_ID), model=tiny.model)
    assert f"GET {REPOSITORY} {FOLDER}/sae_weights.safetensors" in hub
    n_asked = len(hub)
    assert ws.register_training("again", sae=(RELEASE, SAE_ID), model=tiny.model).sae
    assert len(hub) == n_asked
    by_folder = ws.register_training("folder", sae=tiny.sae, model=tiny.model)
    assert released.hookpoint == by_folder.hookpoint
    assert released.sae.metadata["release"] == RELEASE
    config = ExtractionConfig(n_tokens=2000, context_size=32)
    digests = set()
    for training_id in ("released", "folder"):
        try:
            run = ws.launch(training_id, corpus=tiny.corpus, config=config)
            digests.add(run.result(120)["result_digest"])
        finally:
            ws.down()
    assert len(digests) == 1


def test_what_saelens_does_not_know_is_refused_in_its_own_words(hub, tiny, tmp_path):
    ws = Workspace(tmp_path / "ws")
    with pytest.raises(BadSae, match=r"ID blocks\.99 not found in release"):
        ws.register_training("x", sae=(RELEASE, "blocks.99"), model=tiny.model)
    with pytest.raises(BadSae, match="nobody-res-jb not found"):
        ws.register_training("x", sae=("nobody-res-jb", SAE_ID), model=tiny.model)
    assert hub == []
