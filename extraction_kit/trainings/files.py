"""Small files and the headers of big ones, with errors that say which file is torn."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from extraction_kit.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """What the header of a safetensors file says of one tensor."""

    dtype: str  # the format's own names: "F32", "BF16", ...
    shape: tuple[int, ...]


def read_json(path: Path, error: type[BadInput], advice: str) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises
    ------
    BadInput
        As `error`: the file is missing, torn, or holds something else; `advice` ends the
        sentence.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise error(f"there is no {path}: {advice}") from None
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror}): {advice}") from cause
    except ValueError as cause:
        raise error(f"{path} is not valid JSON ({cause}): {advice}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds a {type(value).__name__}, not a JSON object: {advice}")
    return value


def read_tensor_headers(
    path: Path, error: type[BadInput], advice: str
) -> dict[str, TensorHeader]:
    """Return the header of each tensor in a safetensors file; no tensor is read.

    Raises
    ------
    BadInput
        As `error`: the file is missing, or shorter or longer than its header says.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {
                name: TensorHeader(dtype=part.get_dtype(), shape=tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except FileNotFoundError:
        raise error(f"there is no {path}: {advice}") from None
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause}): {advice}") from cause
    except SafetensorError as cause:
        raise error(
            f"{path} ({path.stat().st_size:,} bytes) is torn or not a safetensors file "
            f"({cause}): {advice}"
        ) from None
