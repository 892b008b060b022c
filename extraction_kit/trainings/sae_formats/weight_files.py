"""Headers of weight files: safetensors, NumPy's npz and PyTorch's pt, without torch.

A pt file holds a pickle. It is read here by an unpickler that knows an ordered dict and
tensor headers and nothing else: any other name in it is refused, none is ever imported.
"""

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import safe_open

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import TensorHeader, read_tensor_headers

_MAX_PICKLE = 2**24
"""Bytes: the headers of a state dict are some kilobytes, whatever the size of its tensors."""
_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i"}
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_NUMPY = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32"}
_TORN = (
    OSError, EOFError, ValueError, KeyError, TypeError, IndexError, AttributeError,
    ImportError, struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip


@dataclass(frozen=True)
class _TorchTensor:
    """One tensor of a pt file: where its numbers are, not the numbers."""

    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes from the start of the storage to the end of this tensor."""
        return (self.offset + math.prod(self.shape)) * _BYTES.get(self.dtype, 1)


class _Unknown(Exception):
    """The pickle asks for something other than tensors in a dict."""


class _HeadersOnly(pickle.Unpickler):
    """Builds tensor headers; can name no class or function but those listed here."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - as pickle has it
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _tensor,
            "torch._utils._rebuild_parameter": _parameter,
        }
        found = known.get(f"{module}.{name}")
        if found is None:
            raise _Unknown(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> tuple[str, str]:  # noqa: ANN401 - as pickle has it
        kind, dtype, key, _location, _numel = pid
        if kind != "storage" or dtype not in _STORAGES.values():
            raise _Unknown(str(kind))
        return dtype, str(key)


def _tensor(
    storage: tuple[str, str], offset: int, shape: tuple[int, ...], *_: object
) -> Any:  # noqa: ANN401 - called by pickle
    dtype, key = storage
    return _TorchTensor(dtype, key, offset, tuple(int(n) for n in shape))


def _parameter(tensor: _TorchTensor, *_: object) -> _TorchTensor:
    return tensor


def read_headers(path: Path, advice: str) -> dict[str, TensorHeader]:
    """Return the header of each tensor in a weight file; no tensor is read.

    Raises
    ------
    BadSae
        The file is missing or torn, or a pt file holds anything but a dict of tensors.
    """
    if path.suffix == ".safetensors":
        return read_tensor_headers(path, BadSae, advice)
    if not path.is_file():
        raise BadSae(f"there is no {path}: {advice}")
    try:
        if path.suffix == ".npz":
            return _npz_headers(path)
        return {
            name: TensorHeader(dtype=tensor.dtype, shape=tensor.shape)
            for name, tensor in _torch_tensors(path).items()
        }
    except _Unknown as error:
        raise BadSae(
            f"{path} holds {error}, which is not a tensor of a state dict: nothing else is "
            "unpickled, because a pickle can run any program. Save only the weights: "
            "torch.save(sae.state_dict(), path)"
        ) from None
    except _TORN as error:
        raise BadSae(
            f"{path} ({path.stat().st_size:,} bytes) is torn or not a {path.suffix} file of "
            f"tensors ({type(error).__name__}: {error}): {advice}"
        ) from None


def read_number(path: Path, name: str) -> float:
    """Return a tensor of one element; `read_headers` has accepted the file."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            return float(file.get_tensor(name).reshape(-1)[0])
    if path.suffix == ".npz":
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return float(arrays[name].reshape(-1)[0])
    tensor = _torch_tensors(path)[name]
    with zipfile.ZipFile(path) as archive:
        root = _root(archive)
        little = _byte_order(archive, root) == "little"
        form = ("<" if little else ">") + _FORMATS[tensor.dtype]
        start = tensor.offset * struct.calcsize(form)
        with archive.open(f"{root}/data/{tensor.key}") as data:
            found = struct.unpack_from(
                form, data.read(start + struct.calcsize(form)), start
            )
    return float(found[0])


# --- npz ---


def _npz_headers(path: Path) -> dict[str, TensorHeader]:
    with zipfile.ZipFile(path) as archive:
        headers = {}
        for member in archive.namelist():
            with archive.open(member) as file:
                headers[member.removesuffix(".npy")] = _npy_header(file)
        return headers


def _npy_header(file: IO[bytes]) -> TensorHeader:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise _Unknown("an array of Python objects")
    return TensorHeader(dtype=_NUMPY.get(dtype.str[1:], dtype.str), shape=shape)


# --- pt ---


def _torch_tensors(path: Path) -> Mapping[str, _TorchTensor]:
    with zipfile.ZipFile(path) as archive:
        root = _root(archive)
        member = f"{root}/data.pkl"
        if archive.getinfo(member).file_size > _MAX_PICKLE:
            raise ValueError(f"its pickle is larger than {_MAX_PICKLE:,} bytes")
        with archive.open(member) as file:
            found = _HeadersOnly(file).load()
        if not isinstance(found, dict):
            raise _Unknown(f"a {type(found).__name__}")
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, _TorchTensor):
                raise _Unknown(f"{name!r}, a {type(value).__name__}")
            there = archive.getinfo(f"{root}/data/{value.key}").file_size
            if there < value.n_bytes:
                raise ValueError(
                    f"{name} needs {value.n_bytes:,} bytes, {there:,} are there"
                )
        return found


def _root(archive: zipfile.ZipFile) -> str:
    """Return the folder in the archive: torch names it after the file, or ``archive``."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("no data.pkl: it was not written by torch.save of torch >= 1.6")
    return pickles[0].removesuffix("/data.pkl")


def _byte_order(archive: zipfile.ZipFile, root: str) -> str:
    try:
        return archive.read(f"{root}/byteorder").decode()
    except KeyError:  # before torch 2.1
        return "little"
