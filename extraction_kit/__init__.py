"""SAE feature extractions from a notebook: launched once, resumed, published exactly.

>>> import extraction_kit as xk
>>> ws = xk.Workspace("extractions")  # doctest: +SKIP
>>> ws.register_training("my-sae", sae="path/to/sae", model="path/to/model")  # doctest: +SKIP
>>> run = ws.launch("my-sae", corpus="texts.jsonl")  # doctest: +SKIP
>>> run.wait().features()  # doctest: +SKIP
"""

from typing import Any

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus
from extraction_kit.errors import ExtractionKitError, Failure, Refused
from extraction_kit.lifecycle import RunState
from extraction_kit.local import LocalResult, extract_here
from extraction_kit.run import Run
from extraction_kit.trainings import Training
from extraction_kit.version import __version__ as __version__
from extraction_kit.workspace import (
    Workspace,
    launch,
    register_training,
    runs,
    sql,
)

__all__ = [
    "Corpus",
    "ExtractionConfig",
    "ExtractionKitError",
    "Failure",
    "LocalResult",
    "Refused",
    "Run",
    "RunState",
    "Settings",
    "Training",
    "Workspace",
    "extract_here",
    "launch",
    "register_training",
    "runs",
    "sql",
]


def load_ipython_extension(shell: Any) -> None:  # noqa: ANN401 - IPython has no types here
    """Add ``%%extract``, ``%runs`` and ``%run_status``: ``%load_ext extraction_kit``."""
    from extraction_kit import magics  # noqa: PLC0415 - only who asks for them needs IPython

    magics.load(shell)


def unload_ipython_extension(shell: Any) -> None:  # noqa: ANN401 - as above
    """Take them away again: ``%unload_ext extraction_kit``."""
    from extraction_kit import magics  # noqa: PLC0415 - as above

    magics.unload(shell)
