"""What the notebooks find when they are tested: the demo's parts in a new, empty workspace.

pytest's fixtures do not reach notebook cells, hooks do; a kernel inherits this environment.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = "build/demo-parts"
_home = tempfile.TemporaryDirectory(prefix="xk-notebooks-")


def pytest_collection_finish(session) -> None:
    """Make the demo's model, texts and SAE if need be, and point the notebooks to them."""
    if not getattr(session, "items", None) or session.config.option.collectonly:
        return
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "parts.lock").open("w") as lock:  # of several processes one does
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "extraction_kit.demo", "--parts-only"]
        subprocess.run([*command, "--workspace", PARTS], cwd=ROOT, check=True)  # noqa: S603
    (Path(_home.name) / "demo").symlink_to(ROOT / PARTS / "demo")
    os.environ["EXTRACTION_KIT_HOME"] = _home.name
    os.environ["EXTRACTION_KIT_STATIC"] = "1"


def pytest_sessionfinish() -> None:
    """Stop the server and the worker that the notebooks started."""
    if os.environ.get("EXTRACTION_KIT_HOME") == _home.name:
        command = [
            sys.executable,
            "-m",
            "extraction_kit",
            "--workspace",
            _home.name,
            "down",
        ]
        subprocess.run(command, check=False)  # noqa: S603
    _home.cleanup()
