"""One process that has imported everything heavy, and forks a program per request.

Importing torch takes seconds; a fork of a process that has imported it, and never used it,
takes milliseconds. ``python -m tests.acceptance.matrix.zygote`` reads one JSON request per
line and answers with the pid of a process that is nobody's child, in its own session.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[3]
PRELOADED = (  # what a job imports, some of it only when it loads a model
    "duckdb",
    "extraction_kit.catalog.snapshot",
    "pandas",  # duckdb imports it, if it is there
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "transformers.quantizers.auto",
)


class Zygote:
    """The test's side: starts the process, sends it requests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.acceptance.matrix.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT), os.environ.get("PYTHONPATH", "")]
                ),
            },
        )
        assert self._answer() == "ready"

    def start(self, program, *, log, environment, **request):
        """Start a program; return its pid."""
        message = {
            "program": program,
            "log": str(log),
            "environment": environment,
            "request": {name: str(value) for name, value in request.items()},
        }
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._answer())

    def close(self):
        """End the zygote; what it started lives on."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _answer(self):
        answer = self._process.stdout.readline().decode().strip()
        assert answer, "the zygote has ended: see its standard error"
        return answer


def main():
    """Be the zygote."""
    for name in PRELOADED:
        importlib.import_module(name)
    from tests.acceptance.matrix import held  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test
    os.write(1, b"ready\n")
    for line in iter(sys.stdin.readline, ""):
        _fork(json.loads(line), held.run)


def _fork(message, run):
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    child = os.fork()
    if child:
        os.write(1, f"{child}\n".encode())
        os._exit(0)
    code = 1
    try:
        _become(message)
        run(message["program"], message["request"])
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the end of a forked process: all goes to its log
        traceback.print_exc()
    finally:
        os._exit(code)


def _become(message):
    log = os.open(message["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(message["environment"])


if __name__ == "__main__":
    main()
