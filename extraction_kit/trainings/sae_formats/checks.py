"""Fields and tensor headers of an SAE, checked with errors that name file and field."""

import math
from collections.abc import Mapping
from typing import Any

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import TensorHeader
from extraction_kit.trainings.sae_formats.spec import SaeSpec, tensor_shapes

FLOATS = ("F64", "F32", "F16", "BF16")


def size(config: Mapping[str, Any], name: str, where: str) -> int:
    """Return a field that is an integer above 0."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadSae(f"{where} has {name}={value!r}: an integer above 0 is needed")
    return value


def flag(config: Mapping[str, Any], name: str, default: bool, *, where: str) -> bool:
    """Return a field that is true or false."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise BadSae(f"{where} has {name}={value!r}: true or false is needed")
    return value


def positive(config: Mapping[str, Any], name: str, where: str) -> float:
    """Return a field that is a finite number above 0."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadSae(f"{where} has {name}={value!r}: a number above 0 is needed")
    if not 0 < value < math.inf:
        raise BadSae(f"{where} has {name}={value!r}: a finite number above 0 is needed")
    return float(value)


def section(config: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """Return a field that is an object."""
    value = config.get(name)
    if not isinstance(value, Mapping):
        raise BadSae(f"{where} has {name}={value!r}: an object is needed")
    return value


def text(value: object) -> str | None:
    """Return `value` if it is a text that says something."""
    return value if isinstance(value, str) and value else None


def check_k(spec: SaeSpec, where: str) -> None:
    """Refuse a k that the number of features cannot give."""
    if spec.k is None:
        return
    if spec.k > spec.d_sae:
        raise BadSae(
            f"{where} has k={spec.k}, more than d_sae={spec.d_sae}: correct one of them"
        )
    if spec.architecture == "groupmax" and spec.d_sae % spec.k:
        raise BadSae(
            f"{where} has k={spec.k} groups, which do not divide d_sae={spec.d_sae}: "
            "correct one of them"
        )


def check_tensors(
    spec: SaeSpec,
    headers: Mapping[str, TensorHeader],
    *,
    also: tuple[str, ...] = (),
    advice: str,
) -> None:
    """Refuse a weight file that does not hold just what `spec` is made of.

    Parameters
    ----------
    spec : SaeSpec
        What the tensors should fit.
    headers : mapping
        What the file holds.
    also : tuple of str
        Tensors that may be there and change nothing.
    advice : str
        Ends the sentence of an error: what to do.
    """
    expected = tensor_shapes(spec)
    names = {ours: spec.named(ours) for ours in expected}
    for ours, (theirs, transposed) in names.items():
        shape = expected[ours][::-1] if transposed else expected[ours]
        _check_tensor(spec, theirs, headers.get(theirs), shape=shape, advice=advice)
    extra = sorted(set(headers) - {theirs for theirs, _ in names.values()} - set(also))
    if extra:
        raise BadSae(
            f"{spec.file} holds {', '.join(extra)}, which this kind of SAE "
            f"({spec.architecture}{' with a skip connection' * spec.skip}) does not have: its "
            "config names the wrong architecture, or this kind is not supported"
        )


def _check_tensor(
    spec: SaeSpec,
    name: str,
    header: TensorHeader | None,
    *,
    shape: tuple[int, ...],
    advice: str,
) -> None:
    if header is None:
        raise BadSae(f"{spec.file} has no tensor {name}: {advice}")
    one_for_all = name == spec.named("threshold")[0] and header.shape in {(), (1,)}
    if header.shape != shape and not one_for_all:
        raise BadSae(
            f"{spec.file} has {name} of shape {list(header.shape)}, but d_in={spec.d_in}, "
            f"d_sae={spec.d_sae} and its kind need {list(shape)}: config and weights are not "
            f"of the same SAE; {advice}"
        )
    if header.dtype not in FLOATS:
        raise BadSae(
            f"{spec.file} has {name} of type {header.dtype}: {', '.join(FLOATS)} are "
            "supported"
        )
