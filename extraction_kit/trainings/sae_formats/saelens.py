"""SAELens, v6 and before: ``cfg.json`` + ``sae_weights.safetensors``.

Inference and training checkpoints. A batchtopk or matryoshka SAE encodes as jumprelu with
the one threshold that its training has estimated (SAELens, ``batchtopk_sae.py``).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import TensorHeader, read_json
from extraction_kit.trainings.sae_formats.checks import (
    check_k,
    check_tensors,
    flag,
    size,
    text,
)
from extraction_kit.trainings.sae_formats.spec import OUTPUT, SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers, read_number

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_ACTIVATIONS = ("relu", "topk")  # named in configs written before SAELens 6
_ADVICE = "save the SAE with sae.save_inference_model(folder) of SAELens, or copy it again"
_BATCH_TOPK = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = {  # architecture -> (how it encodes, skip connection)
    "transcoder": ("standard", False),
    "skip_transcoder": ("standard", True),
    "jumprelu_transcoder": ("jumprelu", False),
    "jumprelu_skip_transcoder": ("jumprelu", True),
}
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *_BATCH_TOPK, *_TRANSCODERS)
_REASONS = {
    "abstopk": "its activations can be negative, the statistics are of positive ones",
    "temporal": "it encodes a token by looking at others",
    "matching_pursuit": "it encodes in many steps",
}
_TOPK_THRESHOLD = "topk_threshold"


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE of SAELens; shapes come from the header of its weight file."""
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG, BadSae, _ADVICE)
    headers = read_headers(file, _ADVICE)
    named = _named_architecture(config, where)
    architecture, skip = _TRANSCODERS.get(named, (named, False))
    metadata = _metadata(config)
    spec = SaeSpec(
        path=str(folder),
        format="saelens",
        architecture="jumprelu" if architecture in _BATCH_TOPK else architecture,
        d_in=size(config, "d_in", where),
        d_sae=size(config, "d_sae", where),
        k=_k(config, where) if architecture == "topk" else None,
        apply_b_dec_to_input=_centred(config, named, where),
        normalize_activations=_normalization(config, where),
        rescale_acts_by_decoder_norm=_rescaled(config, named, where),
        hook_name=text(metadata.get("hook_name")),
        metadata=metadata,
        digest="",
        skip=skip,
        weights=file.name,
    )
    if named in _TRANSCODERS:
        spec = _transcoder(spec, size(config, "d_out", where))
    if architecture in _BATCH_TOPK:
        spec = _batch_topk(spec, headers)
    _refuse_training_threshold(spec, headers)
    check_k(spec, where)
    check_tensors(spec, headers, also=("scaling_factor",), advice=_ADVICE)
    _check_scaling(file, headers)
    _check_heads(config, metadata, where)
    return spec


def _named_architecture(config: Mapping[str, Any], where: str) -> str:
    """Return the architecture; before v6 a topk SAE is saved as ``standard``."""
    architecture = config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        reason = _REASONS.get(str(architecture), "choose an SAE of one of these kinds")
        raise BadSae(
            f"{where} has architecture={architecture!r}: {', '.join(ARCHITECTURES)} are "
            f"supported; {reason}"
        )
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    if activation is not None and activation not in _ACTIVATIONS:
        raise BadSae(
            f"{where} has activation_fn_str={activation!r}: {' and '.join(_ACTIVATIONS)} "
            "are supported. This SAE cannot be extracted with this version"
        )
    if architecture == "standard" and activation == "topk":
        return "topk"
    return str(architecture)


def _k(config: Mapping[str, Any], where: str) -> int:
    options = config.get("activation_fn_kwargs") or {}
    inner = options.get("k") if isinstance(options, Mapping) else None
    return size({"k": config.get("k", inner)}, "k", where)


def _centred(config: Mapping[str, Any], named: str, where: str) -> bool:
    centred = flag(config, "apply_b_dec_to_input", named not in _TRANSCODERS, where=where)
    if centred and named in _TRANSCODERS:
        raise BadSae(
            f"{where} has apply_b_dec_to_input=True: the b_dec of a {named} is a bias of "
            "what it writes, and cannot be subtracted from what it reads. Set it to false"
        )
    return centred


def _rescaled(config: Mapping[str, Any], named: str, where: str) -> bool:
    if named == "gated" or named in _TRANSCODERS:  # SAELens does not look at it there
        return False
    return flag(config, "rescale_acts_by_decoder_norm", False, where=where)


def _transcoder(spec: SaeSpec, d_out: int) -> SaeSpec:
    return replace(
        spec,
        d_out=None if d_out == spec.d_in else d_out,
        reconstructs=OUTPUT,
        hook_name_out=text(spec.metadata.get("hook_name_out")),
    )


def _batch_topk(spec: SaeSpec, headers: Mapping[str, TensorHeader]) -> SaeSpec:
    """Return the jumprelu SAE that a batchtopk training checkpoint encodes as."""
    header = headers.get(_TOPK_THRESHOLD)
    if header is None or header.shape != ():
        raise BadSae(
            f"{spec.file} has no tensor {_TOPK_THRESHOLD} with one number, the threshold of a "
            f"batchtopk SAE: {_ADVICE}"
        )
    threshold = read_number(spec.file, _TOPK_THRESHOLD)
    if not threshold > 0:
        raise BadSae(
            f"{spec.file} has {_TOPK_THRESHOLD}={threshold:g}: it was never estimated in "
            "training, so that every positive pre-activation would count. Train it further"
        )
    return replace(spec, tensors={"threshold": _TOPK_THRESHOLD})


def _refuse_training_threshold(spec: SaeSpec, headers: Mapping[str, TensorHeader]) -> None:
    if "log_threshold" in headers:
        raise BadSae(
            f"{spec.file} holds log_threshold: it is a training checkpoint; "
            "sae.save_inference_model(folder) of SAELens saves its threshold"
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


def _check_heads(
    config: Mapping[str, Any], metadata: Mapping[str, Any], where: str
) -> None:
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
        "hook_name_out",
    )  # fmt: skip
    return {renamed.get(name, name): config[name] for name in names if name in config}
