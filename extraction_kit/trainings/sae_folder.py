"""SAEs as SAELens saves them (``cfg.json`` + ``sae_weights.safetensors``), v6 and before.

Whatever is not understood is refused by name: an SAE read by the wrong formula gives
numbers that look right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import safe_open

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadSae
from extraction_kit.lifecycle import digest_of
from extraction_kit.trainings.files import TensorHeader, read_json, read_tensor_headers

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
ARCHITECTURES = ("standard", "topk", "jumprelu")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
FLOATS = ("F64", "F32", "F16", "BF16")
_ACTIVATIONS = ("relu", "topk")  # named in configs written before SAELens 6
_ADVICE = "save the SAE with sae.save_inference_model(folder) of SAELens, or copy it again"
_FOREIGN = {  # marker file -> whose it is
    "sae.safetensors": "sparsify",
    "ae.pt": "dictionary_learning",
    "params.npz": "Gemma Scope",
    "params.safetensors": "Gemma Scope 2",
    "hyperparams.json": "Llama Scope",
}


@dataclass(frozen=True, kw_only=True)
class SaeSpec:
    """A trained SAE, as far as its files say without loading the weights."""

    path: str
    """Absolute folder."""
    format: str
    """``saelens``."""
    architecture: str
    """``standard``, ``topk`` or ``jumprelu``."""
    d_in: int
    d_sae: int
    k: int | None
    """Active features per token of a ``topk`` SAE."""
    apply_b_dec_to_input: bool
    normalize_activations: str
    """``none``, ``layer_norm`` or ``constant_norm_rescale``."""
    rescale_acts_by_decoder_norm: bool
    hook_name: str | None
    metadata: Mapping[str, Any]
    """``model_name``, ``context_size``, ``prepend_bos`` and others, as found."""
    digest: str
    """Over every field that changes the activations, and the bytes of the weights."""


def describe_sae(path: Path | str, *, cache: Path | None = None) -> SaeSpec:
    """Describe the SAE in a folder; shapes come from the header of its weight file.

    Parameters
    ----------
    path : Path or str
        Folder with ``cfg.json`` and ``sae_weights.safetensors``.
    cache : Path, optional
        Folder that remembers the digest of the weights.

    Raises
    ------
    BadSae
        The folder is missing or torn, its parts contradict each other, or it asks for
        something that this package does not compute.
    """
    folder = _folder(path)
    config = read_json(folder / CONFIG, BadSae, _ADVICE)
    headers = read_tensor_headers(folder / WEIGHTS, BadSae, _ADVICE)
    where = str(folder / CONFIG)
    architecture, k = _architecture(config, where)
    d_in, d_sae = (_size(config, name, where) for name in ("d_in", "d_sae"))
    if k is not None and k > d_sae:
        raise BadSae(f"{where} has k={k}, more than d_sae={d_sae}: correct one of them")
    _check_shapes(folder / WEIGHTS, headers, architecture=architecture, sizes=(d_in, d_sae))
    _check_scaling(folder / WEIGHTS, headers)
    _check_heads(config, where)
    computed = {
        "format": "saelens",
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "k": k,
        "apply_b_dec_to_input": _flag(config, "apply_b_dec_to_input", True, where=where),
        "normalize_activations": _normalization(config, where),
        "rescale_acts_by_decoder_norm": _flag(
            config, "rescale_acts_by_decoder_norm", False, where=where
        ),
    }
    weights = file_digest(folder / WEIGHTS, cache)
    metadata = _metadata(config)
    hook_name = metadata.get("hook_name")
    return SaeSpec(
        path=str(folder),
        hook_name=hook_name if isinstance(hook_name, str) and hook_name else None,
        metadata=metadata,
        digest=digest_of(computed | {"weights": weights}),
        **computed,  # type: ignore[arg-type]
    )


def _folder(path: Path | str) -> Path:
    if not isinstance(path, (str, Path)):
        raise BadSae(
            f"sae={type(path).__name__} object: a worker can only load an SAE from a "
            "folder. Type sae.save_inference_model(folder), then pass that folder"
        )
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise BadSae(
            f"sae={str(path)!r} is not a folder: pass the local folder that holds {CONFIG} "
            f"and {WEIGHTS}"
        )
    if not (folder / CONFIG).exists() or not (folder / WEIGHTS).exists():
        _refuse_other(folder)
    return folder


def _refuse_other(folder: Path) -> None:
    """Raise a better error than "no cfg.json" where the folder shows what it is."""
    for marker, owner in _FOREIGN.items():
        if (folder / marker).exists():
            raise BadSae(
                f"{folder} holds {marker}, an SAE of {owner}: the SAELens format is "
                f"supported ({CONFIG} + {WEIGHTS}). Convert it with SAELens: {_ADVICE}"
            )
    inner = sorted(config.parent.name for config in folder.glob(f"*/{CONFIG}"))
    if inner:
        raise BadSae(
            f"{folder} holds several SAEs ({', '.join(inner[:5])}"
            f"{', ...' if len(inner) > 5 else ''}): pass one, for example "  # noqa: PLR2004 - a short list
            f"{str(folder / inner[0])!r}"
        )


def _size(config: Mapping[str, Any], name: str, where: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadSae(f"{where} has {name}={value!r}: an integer above 0 is needed")
    return value


def _flag(config: Mapping[str, Any], name: str, default: bool, *, where: str) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise BadSae(f"{where} has {name}={value!r}: true or false is needed")
    return value


def _architecture(config: Mapping[str, Any], where: str) -> tuple[str, int | None]:
    """Return architecture and k; before v6 a topk SAE is saved as ``standard``."""
    architecture = config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        _refuse_architecture(architecture, where)
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    if activation is not None and activation not in _ACTIVATIONS:
        raise BadSae(
            f"{where} has activation_fn_str={activation!r}: {' and '.join(_ACTIVATIONS)} "
            "are supported. This SAE cannot be extracted with this version"
        )
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if architecture != "topk":
        return architecture, None
    options = config.get("activation_fn_kwargs") or {}
    inner = options.get("k") if isinstance(options, Mapping) else None
    return "topk", _size({"k": config.get("k", inner)}, "k", where)


def _refuse_architecture(architecture: object, where: str) -> NoReturn:
    advice = "choose an SAE of one of these kinds"
    if isinstance(architecture, str) and "batchtopk" in architecture:
        advice = (
            "this is a training checkpoint: sae.save_inference_model(folder) of SAELens "
            "saves it as jumprelu with its threshold"
        )
    raise BadSae(
        f"{where} has architecture={architecture!r}: {', '.join(ARCHITECTURES)} are "
        f"supported; {advice}"
    )


def _normalization(config: Mapping[str, Any], where: str) -> str:
    value = config.get("normalize_activations")
    if value is None or value is False:
        return "none"
    if value is True or value in ("expected_average_only_in", "covariance_whitening"):
        raise BadSae(
            f"{where} has normalize_activations={value!r}: it must be folded into the "
            "weights first, with sae.fold_activation_norm_scaling_factor(factor) of "
            "SAELens, and saved as 'none'"
        )
    if value not in NORMALIZATIONS:
        raise BadSae(
            f"{where} has normalize_activations={value!r}: {', '.join(NORMALIZATIONS)} "
            "are supported"
        )
    return str(value)


def _check_shapes(
    path: Path,
    headers: Mapping[str, TensorHeader],
    *,
    architecture: str,
    sizes: tuple[int, int],
) -> None:
    d_in, d_sae = sizes
    shapes = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_in),
        "b_enc": (d_sae,),
        "b_dec": (d_in,),
    }
    if architecture == "jumprelu":
        if "log_threshold" in headers:
            raise BadSae(
                f"{path} holds log_threshold: it is a training checkpoint; "
                "sae.save_inference_model(folder) of SAELens saves its threshold"
            )
        shapes["threshold"] = (d_sae,)
    for name, shape in shapes.items():
        _check_tensor(path, name, headers.get(name), shape=shape)
    extra = sorted(set(headers) - set(shapes) - {"scaling_factor"})
    if extra:
        raise BadSae(
            f"{path} holds {', '.join(extra)}, which a {architecture} SAE does not have: "
            f"{CONFIG} names the wrong architecture, or this kind is not supported "
            f"({', '.join(ARCHITECTURES)} are)"
        )


def _check_tensor(
    path: Path, name: str, header: TensorHeader | None, *, shape: tuple[int, ...]
) -> None:
    if header is None:
        raise BadSae(f"{path} has no tensor {name}: {_ADVICE}")
    if header.shape != shape:
        raise BadSae(
            f"{path} has {name} of shape {list(header.shape)}, but {CONFIG} says "
            f"{list(shape)} (d_in, d_sae): the two files are not of the same SAE; {_ADVICE}"
        )
    if header.dtype not in FLOATS:
        raise BadSae(
            f"{path} has {name} of type {header.dtype}: {', '.join(FLOATS)} are supported"
        )


def _check_scaling(path: Path, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse a finetuned scaling factor: nobody folds it after loading."""
    header = headers.get("scaling_factor")
    if header is None:
        return
    if header.dtype == "BF16":
        raise BadSae(f"{path} has scaling_factor of type BF16: save the SAE as float32")
    with safe_open(path, framework="numpy") as file:
        ones = bool((file.get_tensor("scaling_factor") == 1).all())
    if not ones:
        raise BadSae(
            f"{path} has a scaling_factor other than 1: it must be folded into W_dec; "
            "load and save the SAE with SAELens 6 or later"
        )


def _check_heads(config: Mapping[str, Any], where: str) -> None:
    metadata = _metadata(config)
    head = metadata.get("hook_head_index")
    if head is not None:
        raise BadSae(
            f"{where} has hook_head_index={head!r}: SAEs of a single attention head are "
            "not supported, SAEs of a whole hook_z are"
        )
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise BadSae(
            f"{where} has reshape_activations={reshape!r}: none and hook_z are supported"
        )


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of v6, or what stood at top level before."""
    inner = config.get("metadata")
    if isinstance(inner, Mapping):
        return dict(inner)
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    names = (
        "hook_point", "hook_name", "hook_point_head_index", "hook_head_index", "model_name",
        "model_class_name", "model_from_pretrained_kwargs", "context_size", "prepend_bos",
        "dataset_path", "seqpos_slice", "sae_lens_training_version", "neuronpedia_id",
    )  # fmt: skip
    return {renamed.get(name, name): config[name] for name in names if name in config}
