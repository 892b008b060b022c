"""An environment of its own for each peer, and processes in it that answer with JSON."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FOLDER = ROOT / "build/bench/peers"
OURS = "ours"
THREADS = os.environ.get("PEERS_THREADS", str(os.cpu_count() or 1))
"""As many as there are cores, which is what each tool takes if nothing is said."""
LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class NotInstalled(RuntimeError):
    """The environment of a peer cannot be made here; says why."""


def python_of(environment: str) -> str:
    """Return the Python of an environment; make it if it is not there, or out of date.

    Raises
    ------
    NotInstalled
        With the last lines that pip said.
    """
    if environment == OURS:
        return sys.executable
    requirements = HERE / f"requirements-{environment}.txt"
    folder = FOLDER / environment
    stamp, python = folder / "installed", str(folder / "bin" / "python")
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {requirements.name} into {folder} ...", flush=True)  # noqa: T201 - minutes
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--no-deps",
            "-r",
            str(requirements),
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled(" ".join(done.stderr.strip().splitlines()[-3:])[-400:])
    stamp.write_text(wanted)
    return python


def inputs() -> Path:
    """Return the folder of what all are measured on; write it if it is not there."""
    folder = FOLDER / "inputs"
    if not (folder / "tokens.npy").exists():
        run(OURS, "inputs.py", str(folder), answers=False)
    return folder


def run(environment: str, script: str, *arguments: str, answers: bool = True) -> Any:
    """Run a script of this folder with `THREADS`; return the JSON of its last line."""
    command = [python_of(environment), str(HERE / script), *arguments]
    variables = {**os.environ, **dict.fromkeys(LIMITS, THREADS)}
    variables |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    variables["PYTHONPATH"] = str(ROOT) if environment == OURS else ""
    done = subprocess.run(
        command, capture_output=True, text=True, env=variables, check=False
    )
    if done.returncode:
        words = f"{script} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}"
        raise RuntimeError(words)
    return json.loads(done.stdout.strip().splitlines()[-1]) if answers else None
