"""A trained SAE in a folder: which library wrote it, and what it says.

The weight file shows the format. Two of them in one folder are never chosen between: the
path of the one that is meant decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, NoReturn

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import read_json
from extraction_kit.trainings.sae_formats import (
    dictionary_learning,
    explicit,
    gemma_scope,
    llama_scope,
    saelens,
    sparsify,
)
from extraction_kit.trainings.sae_formats.spec import SaeSpec, spec_digest

_SHOWN = 5
_DEPTH = 3  # folders below the given one in which SAEs are looked for, to name them


class _Format(NamedTuple):
    owner: str
    weights: str
    config: str | None
    describe: Callable[[Path, Path], SaeSpec]


FORMATS = (
    _Format("SAELens", saelens.WEIGHTS, saelens.CONFIG, saelens.describe),
    _Format("sparsify", sparsify.WEIGHTS, sparsify.CONFIG, sparsify.describe),
    _Format(
        "dictionary_learning",
        dictionary_learning.WEIGHTS,
        dictionary_learning.CONFIG,
        dictionary_learning.describe,
    ),
    _Format("Gemma Scope", gemma_scope.WEIGHTS, None, gemma_scope.describe),
    _Format(
        "Gemma Scope 2",
        gemma_scope.WEIGHTS_2,
        gemma_scope.CONFIG_2,
        gemma_scope.describe_2,
    ),
    _Format("Llama Scope", llama_scope.WEIGHTS, llama_scope.CONFIG, llama_scope.describe),
)


def describe_sae(path: Path | str, *, cache: Path | None = None) -> SaeSpec:
    """Describe an SAE; shapes come from the header of its weight file.

    Parameters
    ----------
    path : Path or str
        A folder written by SAELens, sparsify or dictionary_learning, or of Gemma Scope or
        Llama Scope, or with a ``sae_spec.json``; or the weight file in it, where a folder
        holds several.
    cache : Path, optional
        Folder that remembers the digest of the weights.

    Raises
    ------
    BadSae
        The folder is missing, torn or ambiguous, its parts contradict each other, or it
        asks for something that this package does not compute.
    """
    given = _absolute(path)
    if (given / explicit.SPEC).is_file():  # the owner's word goes before the files' names
        spec = explicit.describe(given, given / explicit.SPEC)
    else:
        found, folder = _detect(given)
        spec = found.describe(folder, _weights(given, found, folder))
    spec = replace(spec, path=str(given))
    return replace(spec, digest=spec_digest(spec, file_digest(spec.file, cache)))


def _absolute(path: Path | str) -> Path:
    if not isinstance(path, (str, Path)):
        raise BadSae(
            f"sae={type(path).__name__} object: a worker cannot load an object of this "
            "notebook. Save it and pass the folder: sae.save_model(folder) of SAELens (in "
            "training: save_inference_model), or its weights with a "
            f"{explicit.SPEC} beside them that names your code, "
            "factory='module:function'. Or measure it here, in this process: "
            "xk.extract_here(sae, model=..., corpus=...)"
        )
    given = Path(path).expanduser().absolute()
    if not given.exists():
        raise BadSae(
            f"sae={str(path)!r} is not a folder, nor a file: pass the local folder of an SAE, "
            f"which holds {_markers()}"
        )
    return given


def _markers() -> str:
    return " or ".join(f"{each.weights} ({each.owner})" for each in FORMATS)


def _detect(given: Path) -> tuple[_Format, Path]:
    """Return the format of what was given, and the folder that its files are in."""
    if given.is_file():
        return _of_file(given)
    found = [each for each in FORMATS if (given / each.weights).is_file()]
    if len(found) > 1:
        choices = " or ".join(
            f"sae={str(given / each.weights)!r} for {each.owner}" for each in found
        )
        raise BadSae(f"{given} holds SAEs in several formats: type {choices}")
    if not found:
        _refuse(given)
    if found[0].weights == saelens.WEIGHTS and not (given / saelens.CONFIG).exists():
        _refuse_llamascopium(given)
    return found[0], given


def _of_file(given: Path) -> tuple[_Format, Path]:
    for each in FORMATS:
        parts = Path(each.weights).parts
        if given.parts[-len(parts) :] == parts:
            return each, given.parents[len(parts) - 1]
    if given.suffix == ".pt" and given.parent.name == "checkpoints":  # ae_<step>.pt
        return FORMATS[2], given.parent
    raise BadSae(
        f"sae={str(given)!r} is no weight file of a known format: {_markers()} are known. "
        "Pass the SAE's folder"
    )


def _weights(given: Path, found: _Format, folder: Path) -> Path:
    return given if given.is_file() else folder / found.weights


def _refuse(folder: Path) -> NoReturn:
    """Raise the error that what is in the folder calls for."""
    for each in FORMATS:
        if (
            each.config
            and (folder / each.config).is_file()
            and each.config != "config.json"
        ):
            needed = " or ".join(
                f"{other.weights} ({other.owner})"
                for other in FORMATS
                if other.config == each.config
            )
            raise BadSae(
                f"there is no {folder}/{needed} beside {each.config}: copy it again"
            )
    inner = list(_inner(folder))
    if inner:
        shown = ", ".join(inner[:_SHOWN]) + (", ..." if len(inner) > _SHOWN else "")
        raise BadSae(
            f"{folder} holds {'several SAEs' if len(inner) > 1 else 'an SAE deeper inside'} "
            f"({shown}): pass one, for example {str(folder / inner[0])!r}"
        )
    raise BadSae(
        f"{folder} holds no SAE of a known format: {_markers()} shows one. Other weights can "
        f"be described in a {explicit.SPEC} beside them"
    )


def _refuse_llamascopium(folder: Path) -> None:
    """Tell the format that has its weight file's name in common with SAELens."""
    config = folder / "config.json"
    if config.is_file() and "hook_point_in" in read_json(config, BadSae, "copy it again"):
        raise BadSae(
            f"{folder} holds an SAE of Llamascopium (config.json beside {saelens.WEIGHTS}), "
            "which is not supported: convert it with SAELens, or describe its tensors in a "
            f"{explicit.SPEC}"
        )


def _inner(folder: Path) -> Iterator[str]:
    """Yield the folders below that hold SAEs, relative to `folder`."""
    found = set()
    for depth in range(1, _DEPTH + 1):
        for each in FORMATS:
            for file in folder.glob("*/" * depth + each.weights):
                found.add(file.parents[each.weights.count("/")])
    yield from sorted(str(each.relative_to(folder)) for each in found)
