"""Processes that do the same thing at the same moment: ``python -m tests.acceptance.racers``.

One program imports everything and forks; each fork opens the workspace for itself. Before each
round all of them wait for one pipe to close, which the kernel tells them at once.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from extraction_kit import ExtractionConfig, Settings, Workspace
from extraction_kit.errors import RunRefused

ROOT = Path(__file__).parents[2]


def race(home: Path, settings: Settings, *, n: int, rounds: list[dict]) -> list[list[dict]]:
    """Let `n` processes make each call of `rounds` together; return what came, by round."""
    task = json.dumps({"home": str(home), "n": n, "rounds": rounds})
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.racers"],
        input=task, env=os.environ | settings.to_environment(),
        capture_output=True, text=True, cwd=ROOT, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    came = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(came) == n * len(rounds), done.stderr
    return [
        [one for one in came if one["round"] == number] for number in range(len(rounds))
    ]


def _call(workspace: Workspace, task: dict) -> dict:
    try:
        if "resume" in task:
            workspace.run(task["resume"]).resume()
            return {"came": "resumed", "run_id": task["resume"]}
        config = ExtractionConfig.from_dict(task["config"])
        corpus = Path(task["corpus"])
        run = workspace.launch(
            task["training_id"], corpus=corpus, config=config, strict=False
        )
    except RunRefused as refusal:
        return {"came": type(refusal).__name__, "run_id": refusal.run_id}
    came = "handle" if run.refusal is None else type(run.refusal).__name__
    return {"came": came, "run_id": run.run_id}


def _race(task: dict, number: int, gates: list[tuple[int, int]], ready: int) -> None:
    for _, closing in gates:
        os.close(closing)
    workspace = Workspace(task["home"])
    for at, (gate, _) in enumerate(gates):
        os.write(ready, b".")
        os.read(gate, 1)
        line = _call(workspace, task["rounds"][at]) | {"round": at, "racer": number}
        os.write(sys.stdout.fileno(), (json.dumps(line) + "\n").encode())


def main() -> None:
    """Fork the racers, open the gates one by one, wait for all."""
    task = json.load(sys.stdin)
    gates = [os.pipe() for _ in task["rounds"]]
    waiting, ready = os.pipe()
    racers = []
    for number in range(task["n"]):
        pid = os.fork()
        if pid == 0:
            _race(task, number, gates, ready)
            os._exit(0)
        racers.append(pid)
    os.close(ready)
    for _, closing in gates:
        for _ in racers:
            os.read(waiting, 1)  # also returns if all are dead
        os.close(closing)
    sys.exit(any(os.waitpid(pid, 0)[1] for pid in racers))


if __name__ == "__main__":
    main()
