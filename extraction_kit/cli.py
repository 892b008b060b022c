"""The command ``extraction-kit``.

Exit codes: 0 done, 1 what was asked for failed or was refused, 2 wrong usage.
"""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from extraction_kit import indexing
from extraction_kit.config import ExtractionConfig
from extraction_kit.disk import DiskUse, size_text
from extraction_kit.doctor import examine
from extraction_kit.errors import BadConfig, BadSettings, ExtractionKitError, naming
from extraction_kit.lifecycle import RunState
from extraction_kit.monitor import look, watch
from extraction_kit.paths import find_workspace
from extraction_kit.purging import OLDER_THAN
from extraction_kit.repair import plan, repair
from extraction_kit.version import __version__
from extraction_kit.views import RunView
from extraction_kit.workbench import Workbench
from extraction_kit.worker import serve
from extraction_kit.workspace import Workspace

OK, FAILED, USAGE = 0, 1, 2

_STATUS_FIELDS = (
    "run_id", "training_id", "generation", "state", "attempt", "job_id", "progress",
    "n_tokens_done", "n_tokens", "created_at", "completed_at", "results_dir", "error",
    "findings", "advice",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.call(arguments)
    except ExtractionKitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="extraction-kit",
        description="SAE feature extractions: launched once, resumed, published exactly.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="default: EXTRACTION_KIT_HOME, else the nearest .extraction_kit",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "up", _up, help_="start the embedded server and a worker")
    _add(commands, "down", _down, help_="stop them; a running job writes a checkpoint")
    status = _add(commands, "status", _status, help_="show all runs, the newest first")
    status.add_argument("run_id", nargs="?", help="one run, with its events")
    status.add_argument("--json", action="store_true", help="a list of objects")
    worker = _add(commands, "worker", _worker, help_="serve the queue in this terminal")
    worker.add_argument(
        "--slot", type=int, default=1, help="which of this machine's workers it is"
    )
    worker.add_argument("--burst", action="store_true", help="stop when the queue is empty")
    _add_launch(commands)
    resume = _add(
        commands, "resume", _resume, help_="continue a run that failed, stopped or is stuck"
    )
    resume.add_argument("run_id")
    resume.add_argument(
        "--force",
        action="store_true",
        help="a stuck run's process cannot be seen from here",
    )
    cancel = _add(commands, "cancel", _cancel, help_="stop a run at its next batch")
    cancel.add_argument("run_id")
    monitor = _add(
        commands, "monitor", _monitor, help_="reconcile, and alert about stuck runs"
    )
    monitor.add_argument("--once", action="store_true", help="look once, then end")
    index = _add(
        commands, "index", _index, help_="build the indexes over many runs, if it is time"
    )
    index.add_argument(
        "--now", action="store_true", help="also below Settings.index_above runs"
    )
    repair_ = _add(
        commands, "repair", _repair, help_="restore ledger rows from published results"
    )
    repair_.add_argument("--yes", action="store_true", help="do it without asking")
    _add_deletion(commands)
    _add(
        commands, "verify", _verify, help_="read every published byte, name what is damaged"
    )
    _add(commands, "doctor", _doctor, help_="check this machine and say what to do")
    return parser


def _add_deletion(commands: Any) -> None:  # noqa: ANN401 - see `_add`
    delete = _add(commands, "delete", _delete, help_="hide a run; its files go later")
    delete.add_argument("run_id")
    restore = _add(commands, "restore", _restore, help_="bring a deleted run back")
    restore.add_argument("run_id")
    purge = _add(commands, "purge", _purge, help_="remove the files of deleted runs")
    purge.add_argument(
        "--older-than",
        default=OLDER_THAN,
        metavar="AGE",
        help="of runs deleted so long ago: 30d, 12h, 90m (default: %(default)s)",
    )
    purge.add_argument("--yes", action="store_true", help="do it without asking")


def _add(
    commands: Any,  # noqa: ANN401 - argparse has no public type for it
    name: str,
    call: Callable[[argparse.Namespace], int],
    *,
    help_: str,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=help_, description=help_
    )
    command.set_defaults(call=call)
    return command


def _add_launch(commands: Any) -> None:  # noqa: ANN401 - see `_add`
    launch = _add(commands, "launch", _launch, help_="launch an extraction, or find it")
    launch.add_argument("training_id")
    launch.add_argument("--corpus", required=True, help=".txt, .jsonl, .parquet or .npy")
    launch.add_argument("--text-column", help="default: text")
    launch.add_argument(
        "--config", type=Path, help="TOML file with ExtractionConfig fields"
    )
    launch.add_argument("--n-tokens", type=int, help="valid tokens to measure")
    launch.add_argument("--generation", type=int, help="compute completed content anew")
    launch.add_argument("--wait", action="store_true", help="wait for the end")
    launch.add_argument(
        "--estimate", action="store_true", help="say what it would take, launch nothing"
    )


def _open(arguments: argparse.Namespace) -> Workspace:
    return Workspace(arguments.workspace)


# --- commands -------------------------------------------------------------------------------


def _up(arguments: argparse.Namespace) -> int:
    workspace = _open(arguments)
    workspace.up()
    print(f"workspace {workspace.home}")
    print(f"server    {workspace.settings.redis_url or 'embedded, alive'}")
    print("worker    alive")
    return OK


def _down(arguments: argparse.Namespace) -> int:
    workspace = _open(arguments)
    workspace.down()
    print(f"stopped; runs and results of {workspace.home} stay as they are")
    return OK


def _status(arguments: argparse.Namespace) -> int:
    workspace = _open(arguments)
    if arguments.run_id is not None and not arguments.json:
        print(workspace.run(arguments.run_id).explain())
        return OK
    views = workspace.views()
    if arguments.run_id is not None:
        views = [workspace.run(arguments.run_id).view]
    use = workspace.disk()
    if arguments.json:
        print(json.dumps([_row(view, use) for view in views], indent=1))
    else:
        _print_table(views, use)
    return OK


def _row(view: RunView, use: DiskUse) -> dict[str, Any]:
    values = view.to_dict()
    row = {name: values[name] for name in _STATUS_FIELDS}
    size = use.runs.get(view.run_id)
    return row | {
        "results_bytes": None if size is None else size.results,
        "checkpoint_bytes": None if size is None else size.checkpoints,
        "corpus_digest": None if size is None else size.corpus_digest,
        "corpus_bytes": None if size is None else use.corpora[size.corpus_digest],
    }


def _print_table(views: Sequence[RunView], use: DiskUse) -> None:
    if not views:
        print("no runs yet: launch one with ws.launch(...) or `extraction-kit launch`")
    for view in views:
        tokens = f"{view.n_tokens_done:,}/{view.n_tokens:,} tokens"
        size = use.runs.get(view.run_id)
        n_bytes = 0 if size is None else size.results + size.checkpoints
        print(
            f"{view.run_id}  {view.state:<12}{view.progress:>5.0%}  {tokens:>28}  "
            f"{size_text(n_bytes):>10}  {view.training_id} g{view.generation} "
            f"a{view.attempt}  {view.created_at:%Y-%m-%d %H:%M}"
        )
        for note in view.findings:
            print(f"    ! {note}")
    print(f"disk  {use!r}")


def _worker(arguments: argparse.Namespace) -> int:
    home = (arguments.workspace or find_workspace()).expanduser().absolute()
    if arguments.slot < 1:
        raise BadSettings(f"--slot {arguments.slot}: an integer from 1 is allowed")
    serve(home, slot_number=arguments.slot, burst=arguments.burst)
    return OK


def _launch(arguments: argparse.Namespace) -> int:
    workspace = _open(arguments)
    content: dict[str, Any] = {
        "corpus": Path(arguments.corpus),
        "config": _config(arguments),
        "text_column": arguments.text_column,
    }
    if arguments.estimate:
        print(repr(workspace.estimate(arguments.training_id, **content)))
        return OK
    run = workspace.launch(
        arguments.training_id, **content, generation=arguments.generation, strict=False
    )
    print(run.run_id if run.refusal is None else f"{run.run_id}: {run.refusal}")
    if arguments.wait and run.refusal is None:
        run.wait()
        print(repr(run))
    ended_badly = run.done() and run.state is not RunState.COMPLETED
    return FAILED if ended_badly else OK


def _config(arguments: argparse.Namespace) -> ExtractionConfig:
    config = ExtractionConfig()
    if arguments.config is not None:
        with naming(f"--config {arguments.config}"):
            config = ExtractionConfig.from_toml(_text_of(arguments.config))
    if arguments.n_tokens is not None:
        config = config.replace(n_tokens=arguments.n_tokens)
    return config


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{error}. A TOML file of fields is wanted") from error


def _resume(arguments: argparse.Namespace) -> int:
    run = _open(arguments).run(arguments.run_id)
    print(repr(run.resume(force=arguments.force)))
    return OK


def _cancel(arguments: argparse.Namespace) -> int:
    print(repr(_open(arguments).run(arguments.run_id).cancel()))
    return OK


def _delete(arguments: argparse.Namespace) -> int:
    run = _open(arguments).run(arguments.run_id).delete()
    print(f"{run!r}\n`extraction-kit restore {run.run_id}` brings it back")
    return OK


def _restore(arguments: argparse.Namespace) -> int:
    print(repr(_open(arguments).restore(arguments.run_id)))
    return OK


def _purge(arguments: argparse.Namespace) -> int:
    workspace = _open(arguments)
    shown = workspace.purge(older_than=arguments.older_than)
    print(shown)
    if not shown.is_needed:
        return OK
    if not (arguments.yes or _confirmed()):
        print("nothing was removed; `extraction-kit purge --yes` does it")
        return FAILED
    purged = workspace.purge(older_than=arguments.older_than, apply=True)
    print(f"\n{purged}")
    return FAILED if purged.problems else OK


def _monitor(arguments: argparse.Namespace) -> int:
    home = (arguments.workspace or find_workspace()).expanduser().absolute()
    bench = Workbench.open(home)
    if arguments.once:
        for line in look(bench):
            print(line)
        if indexing.is_due(bench):
            print(indexing.build(bench))
    else:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        watch(bench, lambda line: print(line, flush=True), stop)
    return OK


def _index(arguments: argparse.Namespace) -> int:
    home = (arguments.workspace or find_workspace()).expanduser().absolute()
    os.nice(10)  # whatever else this machine does is more urgent
    print(indexing.build(Workbench.open(home), now=arguments.now))
    return OK


def _repair(arguments: argparse.Namespace) -> int:
    home = (arguments.workspace or find_workspace()).expanduser().absolute()
    planned = plan(home)
    print(planned)
    if planned.is_needed:
        if not (arguments.yes or _confirmed()):
            print("nothing was changed; `extraction-kit repair --yes` does it")
            return FAILED
        planned = repair(home)
        print(f"\n{planned}")
    return OK if planned.is_sound else FAILED


def _confirmed() -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input("Type yes to do this: ").strip().lower() == "yes"
    except EOFError:
        return False


def _verify(arguments: argparse.Namespace) -> int:
    found = _open(arguments).verify()
    print(found)
    return OK if found.is_sound else FAILED


def _doctor(arguments: argparse.Namespace) -> int:
    home = (arguments.workspace or find_workspace()).expanduser().absolute()
    findings = examine(home)
    for finding in findings:
        print(finding)
    return FAILED if any(finding.is_problem for finding in findings) else OK
