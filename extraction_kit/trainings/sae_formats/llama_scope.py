"""Llama Scope: ``hyperparams.json`` + ``checkpoints/final.safetensors``.

JumpReLU with one threshold. The SAE sees its input times s = sqrt(d_model) / (mean norm of
the training activations); s is folded into the weights when they are loaded, and into the
threshold, as SAELens does (``llama_scope_sae_huggingface_loader``).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import read_json
from extraction_kit.trainings.sae_formats.checks import (
    check_tensors,
    flag,
    positive,
    section,
    size,
    text,
)
from extraction_kit.trainings.sae_formats.spec import SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers

CONFIG = "hyperparams.json"
WEIGHTS = "checkpoints/final.safetensors"
_ADVICE = "download the folder again"
_TENSORS = {
    "W_enc": "encoder.weight^T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight^T",
    "b_dec": "decoder.bias",
}
_OFF = ("use_glu_encoder", "apply_decoder_bias_to_pre_encoder")


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE of Llama Scope."""
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG, BadSae, _ADVICE)
    _refuse_other_kinds(config, where)
    d_in = size(config, "d_model", where)
    norms = section(config, "dataset_average_activation_norm", where)
    scale = d_in**0.5 / positive(norms, "in", f"{where}, dataset_average_activation_norm")
    spec = SaeSpec(
        path=str(folder),
        format="llama_scope",
        architecture="jumprelu",
        d_in=d_in,
        d_sae=size(config, "d_sae", where),
        k=None,
        apply_b_dec_to_input=False,
        normalize_activations="none",
        rescale_acts_by_decoder_norm=False,
        hook_name=text(config.get("hook_point_in")),
        metadata={"prepend_bos": True},
        digest="",
        weights=WEIGHTS,
        tensors=_TENSORS,
        threshold=positive(config, "jump_relu_threshold", where) * scale,
        input_scale=scale,
    )
    check_tensors(spec, read_headers(file, _ADVICE), advice=_ADVICE)
    return spec


def _refuse_other_kinds(config: Mapping[str, Any], where: str) -> None:
    activation = config.get("act_fn", "jumprelu")
    if activation != "jumprelu":
        raise BadSae(f"{where} has act_fn={activation!r}: jumprelu is supported")
    normal = config.get("norm_activation", "dataset-wise")
    if normal != "dataset-wise":
        raise BadSae(f"{where} has norm_activation={normal!r}: dataset-wise is supported")
    for name in _OFF:
        if flag(config, name, False, where=where):
            raise BadSae(f"{where} has {name}=True: only false is supported")
    reads, writes = config.get("hook_point_in"), config.get("hook_point_out")
    if writes is not None and writes != reads:
        raise BadSae(
            f"{where} reads {reads!r} and writes {writes!r}: transcoders of Llama Scope are "
            "not supported, its SAEs are"
        )
