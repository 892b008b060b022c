"""Any state dict, described by its owner: ``sae_spec.json`` + the weight file it names.

For weights of which no library's format says enough (Goodfire, DeepSeek-R1, Qwen Scope,
circuit-tracer). The fields are those of `SaeSpec`; what changes the numbers has no default,
because a guess would look right::

    {"weights": "layer20.sae.pt", "architecture": "topk", "k": 50, "d_in": 2048,
     "d_sae": 32768, "apply_b_dec_to_input": false, "hook_name": "model.layers.20",
     "tensors": {"W_enc": "W_enc^T", "W_dec": "W_dec^T"}}

``tensors`` maps our names to the file's, with ``^T`` where the file holds the transpose;
``ignored`` lists tensors of the file that the SAE does not use.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import read_json
from extraction_kit.trainings.sae_formats.checks import (
    check_k,
    check_tensors,
    flag,
    positive,
    section,
    size,
    text,
)
from extraction_kit.trainings.sae_formats.spec import (
    INPUT,
    OUTPUT,
    SaeSpec,
    tensor_shapes,
)
from extraction_kit.trainings.sae_formats.weight_files import read_headers

SPEC = "sae_spec.json"
ARCHITECTURES = ("standard", "jumprelu", "topk", "groupmax", "gated")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_NEEDED = ("weights", "architecture", "d_in", "d_sae", "apply_b_dec_to_input")
_OPTIONAL = (
    "k", "tensors", "ignored", "hook_name", "hook_name_out", "d_out", "transcoder", "skip",
    "normalize_activations", "rescale_acts_by_decoder_norm", "threshold", "input_scale",
    "metadata",
)  # fmt: skip
_ADVICE = f"correct {SPEC}, or the file"


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE as its owner does in ``sae_spec.json``, which is `file`."""
    where = str(file)
    config = read_json(file, BadSae, "it says how the SAE encodes")
    _check_names(config, where)
    architecture = _one_of(config, "architecture", allowed=ARCHITECTURES, where=where)
    transcoder = flag(config, "transcoder", False, where=where)
    given = "threshold" in config and architecture == "jumprelu"
    spec = SaeSpec(
        path=str(folder),
        format="explicit",
        architecture=architecture,
        d_in=size(config, "d_in", where),
        d_sae=size(config, "d_sae", where),
        k=size(config, "k", where) if architecture in {"topk", "groupmax"} else None,
        apply_b_dec_to_input=flag(config, "apply_b_dec_to_input", False, where=where),
        normalize_activations=_one_of(
            config, "normalize_activations", allowed=NORMALIZATIONS, where=where
        ),
        rescale_acts_by_decoder_norm=flag(
            config, "rescale_acts_by_decoder_norm", False, where=where
        ),
        hook_name=text(config.get("hook_name")),
        metadata=dict(section(config, "metadata", where)) if "metadata" in config else {},
        digest="",
        d_out=size(config, "d_out", where) if "d_out" in config else None,
        reconstructs=OUTPUT if transcoder else INPUT,
        hook_name_out=text(config.get("hook_name_out")),
        skip=flag(config, "skip", False, where=where),
        weights=_weights(config, where),
        tensors=_tensors(config, where),
        threshold=positive(config, "threshold", where) if given else None,
        input_scale=positive(config, "input_scale", where)
        if "input_scale" in config
        else 1.0,
    )
    _check_combination(spec, config, where)
    check_k(spec, where)
    headers = read_headers(spec.file, _ADVICE)
    check_tensors(spec, headers, also=tuple(_ignored(config, where)), advice=_ADVICE)
    return spec


def _check_names(config: Mapping[str, Any], where: str) -> None:
    absent = [name for name in _NEEDED if name not in config]
    if absent:
        raise BadSae(f"{where} lacks {', '.join(absent)}: these have no default")
    unknown = sorted(set(config) - set(_NEEDED) - set(_OPTIONAL))
    if unknown:
        raise BadSae(
            f"{where} has {', '.join(unknown)}: {', '.join((*_NEEDED, *_OPTIONAL))} are known"
        )


def _one_of(
    config: Mapping[str, Any], name: str, *, allowed: tuple[str, ...], where: str
) -> str:
    value = config.get(name, allowed[0])
    if value not in allowed:
        raise BadSae(f"{where} has {name}={value!r}: {', '.join(allowed)} are supported")
    return str(value)


def _weights(config: Mapping[str, Any], where: str) -> str:
    name = text(config.get("weights"))
    if name is None or Path(name).is_absolute() or ".." in Path(name).parts:
        raise BadSae(
            f"{where} has weights={config.get('weights')!r}: the name of a file in the same "
            "folder is needed"
        )
    return name


def _tensors(config: Mapping[str, Any], where: str) -> dict[str, str]:
    tensors = section(config, "tensors", where) if "tensors" in config else {}
    for ours, theirs in tensors.items():
        if text(theirs) is None:
            raise BadSae(
                f"{where} has tensors.{ours}={theirs!r}: a tensor's name is needed"
            )
    return dict(tensors)


def _ignored(config: Mapping[str, Any], where: str) -> list[str]:
    ignored = config.get("ignored", [])
    if not isinstance(ignored, list) or not all(isinstance(each, str) for each in ignored):
        raise BadSae(f"{where} has ignored={ignored!r}: a list of names is needed")
    return ignored


def _check_combination(spec: SaeSpec, config: Mapping[str, Any], where: str) -> None:
    """Refuse fields that this kind of SAE would not look at, or that contradict others."""
    misplaced = {
        "k": spec.k is None,
        "threshold": spec.architecture != "jumprelu",
        "hook_name_out": spec.reconstructs == INPUT,
        "d_out": spec.reconstructs == INPUT,
        "skip": spec.reconstructs == INPUT,
        "rescale_acts_by_decoder_norm": spec.architecture == "gated",
    }
    idle = [name for name, nowhere in misplaced.items() if nowhere and config.get(name)]
    idle += [f"tensors.{name}" for name in spec.tensors if name not in tensor_shapes(spec)]
    if idle:
        kind = "transcoder" if spec.reconstructs == OUTPUT else "autoencoder"
        raise BadSae(
            f"{where} has {', '.join(idle)}, which a {spec.architecture} {kind} does not "
            "have: remove it, or correct architecture or transcoder"
        )
    if spec.apply_b_dec_to_input and spec.reconstructs == OUTPUT:
        raise BadSae(
            f"{where} has apply_b_dec_to_input=True for a transcoder: its b_dec is a bias of "
            "what it writes"
        )
