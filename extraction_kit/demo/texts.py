"""Real English that every Python brings along: its reference topics and its docstrings."""

import ast
import hashlib
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from extraction_kit import atomic
from extraction_kit.errors import BadCorpus

MIN_CHARACTERS = 200
"""Shorter docstrings say too little to be a document."""
_MIN_DOCUMENTS = 500
_SKIPPED = frozenset(
    {
        "__pycache__", "dist-packages", "idlelib", "idle_test", "lib2to3", "site-packages",
        "test", "tests", "turtledemo",
    }
)  # fmt: skip
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def write_texts(path: Path, report: Callable[[int, int], None] | None = None) -> None:
    """Write the documents of this Python to a ``.jsonl`` file.

    Parameters
    ----------
    path : Path
        Appears when it is complete.
    report : callable, optional
        Called with files read and their number.

    Raises
    ------
    BadCorpus
        This Python came without its sources or reference topics.
    """
    files = stdlib_files()
    documents = [*topics()]
    for number, file in enumerate(files):
        documents += docstrings(file)
        if report is not None:
            report(number + 1, len(files))
    ordered = mixed(documents)
    if len(ordered) < _MIN_DOCUMENTS:
        raise BadCorpus(
            f"this Python brings {len(ordered)} texts, {_MIN_DOCUMENTS} are needed: its "
            f"sources are not in {sysconfig.get_path('stdlib')}. Run the demo with another "
            "Python, for example make demo PYTHON=/path/to/python3.12"
        )
    lines = (json.dumps({"text": text}) + "\n" for text in ordered)
    atomic.write_file(path, "".join(lines).encode())


def topics() -> list[str]:
    """Return the language reference as ``help()`` shows it; [] where it is left out."""
    try:
        from pydoc_data.topics import topics as found  # noqa: PLC0415 - some leave it out
    except ImportError:
        return []
    return [found[name] for name in sorted(found)]


def stdlib_files() -> list[Path]:
    """Return the source files of the standard library, without tests, in order."""
    root = Path(sysconfig.get_path("stdlib"))
    inner = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in inner if not _SKIPPED.intersection(path.parts)]


def docstrings(file: Path) -> Iterator[str]:
    """Yield the longer docstrings of a source file; nothing in it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, _WITH_DOCSTRING) else None
        if text is not None and len(text) >= MIN_CHARACTERS and _is_unicode(text):
            yield text


def mixed(documents: Iterable[str]) -> list[str]:
    """Return each document once, in an order that mixes subjects and is always the same."""
    return sorted(set(documents), key=lambda text: hashlib.sha256(text.encode()).digest())


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as an escape
        return False
    return True
