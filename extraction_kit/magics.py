"""The IPython magics: ``%load_ext extraction_kit`` adds %%extract, %runs and %run_status.

They call what a cell of Python would call, on the default workspace, and return the same.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, context_matcher
from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser

from extraction_kit.config import ExtractionConfig
from extraction_kit.errors import (
    BadCorpus,
    BadInput,
    ExtractionKitError,
    UnknownRun,
    UnknownTraining,
)
from extraction_kit.run import Run
from extraction_kit.workspace import Workspace, default_workspace

if TYPE_CHECKING:
    import duckdb

_EXTRACT = (
    "%%extract TRAINING_ID [--corpus PATH] [--text-column NAME] [--generation N] [--wait]"
)
_STATUS = "%run_status RUN_ID (or TRAINING_ID)"
_LISTED = (
    "run_id, training_id, generation, state, n_tokens_done, n_tokens, l0, fvu, completed_at"
)


def _words(line: str) -> list[str]:
    """Take a line apart; quotes are as in a shell."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"{line}: {error}") from None


# --- the magics -----------------------------------------------------------------------------


def extract(line: str, cell: str = "") -> Run:
    """Launch an extraction, or find the one that is running or done, as ``xk.launch`` does.

    ::

        %%extract gpt2-l6 --corpus texts.jsonl --wait
        n_tokens = 1_000_000
        top_k = 50

    The body holds fields of ``ExtractionConfig`` as TOML; without one they have their
    defaults. ``--corpus`` is a path; without it the corpus of the training's newest run is
    taken. ``--wait`` waits for the end: interrupting the cell stops the waiting, never the
    run. ``--generation`` and ``--text-column`` are as in ``ws.launch``. As ``run = %extract
    gpt2-l6`` it takes no body.
    """
    arguments = _arguments(line)
    config = ExtractionConfig.from_toml(cell)
    workspace = default_workspace()
    corpus = arguments.corpus or _corpus_of_newest(workspace, arguments.training_id)
    run = workspace.launch(
        arguments.training_id,
        corpus=corpus,
        config=config,
        generation=arguments.generation,
        text_column=arguments.text_column,
    )
    return run.watch() if arguments.wait else run


def _arguments(line: str) -> Any:  # noqa: ANN401 - as argparse has them
    parser = MagicArgumentParser(add_help=False)
    parser.allow_abbrev = False
    parser.add_argument("training_id")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--text-column")
    parser.add_argument("--generation", type=int)
    parser.add_argument("--wait", action="store_true")
    try:
        return parser.parse_args(_words(line))
    except UsageError as error:
        raise UsageError(f"{error}. Type {_EXTRACT}") from None


def _corpus_of_newest(workspace: Workspace, training_id: str) -> Any:  # noqa: ANN401 - a Corpus
    """Return what the newest run of a training read."""
    runs = workspace[training_id].runs
    if not runs:
        raise BadCorpus(
            f"no corpus is given, and training {training_id!r} has no run whose corpus could "
            f"be taken: type `%%extract {training_id} --corpus texts.jsonl`"
        )
    return runs[0].corpus


def runs(line: str) -> "duckdb.DuckDBPyRelation":
    """List all runs, the newest first; ``ws.runs()`` has all columns.

    A DuckDB relation: ``_.df()`` in the next cell gives a DataFrame.
    """
    if line.strip():
        raise UsageError(f"%runs takes no argument. Type {_STATUS} for one run")
    workspace = default_workspace()
    workspace.reconcile()
    return workspace.runs().project(_LISTED)


def run_status(line: str) -> Run:
    """Return a run by its id, or of a training the run that is active, else the newest."""
    words = _words(line)
    if len(words) != 1:
        raise UsageError(f"one id is needed. Type {_STATUS}; %runs lists them")
    workspace, name = default_workspace(), words[0]
    try:
        return workspace.run(name)
    except UnknownRun:
        return _run_of_training(workspace, name)


def _run_of_training(workspace: Workspace, name: str) -> Run:
    try:
        found = workspace[name].runs
    except UnknownTraining:
        raise UnknownRun(run_id=name, known=_ids(workspace)) from None
    if not found:
        raise BadInput(
            f"training {name!r} has no run yet: type `%%extract {name} --corpus texts.jsonl`"
        )
    return next((run for run in found if not run.done()), found[0])


# --- completion -----------------------------------------------------------------------------

_ASSIGNED = re.compile(r"^\s*[\w., ]+=\s*(?=%)")  # `run = ` before a magic


def _ids(workspace: Workspace) -> list[str]:
    newest = workspace.sql("SELECT run_id FROM runs ORDER BY created_at DESC LIMIT 1000")
    return [*workspace._ipython_key_completions_(), *(row[0] for row in newest.fetchall())]


@context_matcher()  # type: ignore[untyped-decorator]
def complete(context: Any) -> dict[str, Any]:  # noqa: ANN401 - IPython's CompletionContext
    """Complete ids, options and, in the body of %%extract, the fields of the config."""
    try:
        found = list(_completions(context))
    except ExtractionKitError:  # a Tab key never shows an error
        found = []
    # Where these are wanted, no name of Python is.
    return {"completions": found, "suppress": bool(found), "ordered": True}


def _completions(context: Any) -> Iterator[SimpleCompletion]:  # noqa: ANN401 - as above
    first = context.full_text.lstrip("\n").split("\n")[0].split()
    before = context.text_until_cursor
    if first[:1] == ["%%extract"] and not before.lstrip().startswith("%%"):
        names, typed = list(ExtractionConfig.__dataclass_fields__), before
    else:
        words = _ASSIGNED.sub("", before).split(" ")
        names, typed = _names_after(words[:-1]), words[-1]
    for name in names:
        if name.startswith(typed):
            # IPython replaces its own token, which begins after a "-" of an id
            yield SimpleCompletion(context.token + name[len(typed) :])


def _names_after(words: list[str]) -> list[str]:
    words = [word for word in words if word]
    if words[-1:] == ["--corpus"]:
        return []  # IPython completes paths
    if words[:1] in (["%%extract"], ["%extract"]):
        options = ["--corpus", "--generation", "--text-column", "--wait"]
        given = len(words) > 1
        return options if given else default_workspace()._ipython_key_completions_()
    if words == ["%run_status"]:
        return _ids(default_workspace())
    return []


# --- in and out -----------------------------------------------------------------------------


def with_body(lines: list[str]) -> list[str]:
    """Give a cell that is only ``%%extract ...`` a body: IPython refuses it without one."""
    is_alone = lines and lines[0].split()[:1] == ["%%extract"] and not "".join(lines[1:])
    return [lines[0].rstrip("\n") + "\n", "\n"] if is_alone else lines


_MAGICS = {
    "extract": ("line_cell", extract),
    "runs": ("line", runs),
    "run_status": ("line", run_status),
}


def load(shell: Any) -> None:  # noqa: ANN401 - IPython's InteractiveShell
    """Register the magics and their completion with a shell."""
    for name, (kind, function) in _MAGICS.items():
        shell.register_magic_function(function, magic_kind=kind, magic_name=name)
    shell.Completer.custom_matchers.append(complete)
    shell.input_transformers_cleanup.append(with_body)


def unload(shell: Any) -> None:  # noqa: ANN401 - as above
    """Take the magics and their completion away again."""
    for name, (_, function) in _MAGICS.items():
        for kind in shell.magics_manager.magics.values():
            if kind.get(name) is function:
                del kind[name]
    shell.Completer.custom_matchers.remove(complete)
    shell.input_transformers_cleanup.remove(with_body)
