"""dictionary_learning: ``ae.pt`` + ``config.json``, which names the class.

Formulas as in its ``dictionary.py`` and ``trainers/``. ``AutoEncoder.from_pretrained`` of
that library scales features to decoder rows of norm 1, the other classes do not: neither do
we. Scales of the activations are in the saved biases already (``scale_biases``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import TensorHeader, read_json
from extraction_kit.trainings.sae_formats.checks import (
    check_k,
    check_tensors,
    section,
    size,
)
from extraction_kit.trainings.sae_formats.spec import SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers, read_number

CONFIG = "config.json"
WEIGHTS = "ae.pt"
_ADVICE = "save it again with torch.save(ae.state_dict(), path), or copy the folder again"
_LINEAR = {
    "W_enc": "encoder.weight^T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight^T",
}


@dataclass(frozen=True, kw_only=True)
class _Class:
    """How one of the library's classes encodes, and the names of its tensors."""

    architecture: str
    centred: bool = True
    unit_decoder: bool = False
    tensors: Mapping[str, str]
    buffers: tuple[str, ...] = ()


CLASSES = {
    "AutoEncoder": _Class(
        architecture="standard", unit_decoder=True, tensors=_LINEAR | {"b_dec": "bias"}
    ),
    "AutoEncoderNew": _Class(
        architecture="standard", centred=False, tensors=_LINEAR | {"b_dec": "decoder.bias"}
    ),
    "GatedAutoEncoder": _Class(
        architecture="gated",
        tensors={
            "W_enc": "encoder.weight^T",
            "W_dec": "decoder.weight^T",
            "b_dec": "decoder_bias",
            "b_gate": "gate_bias",
            "b_mag": "mag_bias",
        },
    ),
    "AutoEncoderTopK": _Class(
        # Its threshold is a by-product: encode() takes the k largest unless told otherwise.
        architecture="topk",
        tensors=_LINEAR,
        buffers=("k", "threshold"),
    ),
    "BatchTopKSAE": _Class(architecture="jumprelu", tensors=_LINEAR, buffers=("k",)),
    "MatryoshkaBatchTopKSAE": _Class(
        architecture="jumprelu", tensors={}, buffers=("k", "group_sizes")
    ),
    "JumpReluAutoEncoder": _Class(architecture="jumprelu", centred=False, tensors={}),
}


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe a dictionary of dictionary_learning."""
    place = _config_folder(folder)
    where = str(place / CONFIG)
    config = read_json(place / CONFIG, BadSae, "its class and sizes stand there")
    trainer = section(config, "trainer", where)
    kind = _class(trainer, where)
    k = size(trainer, "k", where) if "k" in kind.buffers else None
    spec = SaeSpec(
        path=str(folder),
        format="dictionary_learning",
        architecture=kind.architecture,
        d_in=size(trainer, "activation_dim", where),
        d_sae=size(trainer, "dict_size", where),
        k=k if kind.architecture == "topk" else None,
        apply_b_dec_to_input=kind.centred,
        normalize_activations="none",
        rescale_acts_by_decoder_norm=kind.unit_decoder,
        hook_name=_hook_name(trainer, config),
        metadata=_metadata(trainer, config),
        digest="",
        weights=file.name,
        tensors=dict(kind.tensors),
    )
    headers = read_headers(file, _ADVICE)
    check_k(spec, where)
    check_tensors(spec, headers, also=kind.buffers, advice=_ADVICE)
    if k is not None:
        _check_buffers(spec, headers, k=k, where=where)
    return spec


def _config_folder(folder: Path) -> Path:
    """Return where the config is: checkpoints of a training lie one folder deeper."""
    if folder.name == "checkpoints" and not (folder / CONFIG).exists():
        return folder.parent
    return folder


def _class(trainer: Mapping[str, Any], where: str) -> _Class:
    name = trainer.get("dict_class")
    if name in CLASSES:
        return CLASSES[str(name)]
    reason = {
        "IdentityDict": "; it has no features of its own",
        "CrossCoder": "; it reads several models or layers at once",
        "BatchTopKCrossCoder": "; it reads several models or layers at once",
    }.get(str(name), "")
    raise BadSae(
        f"{where} has dict_class={name!r}: {', '.join(CLASSES)} are supported{reason}"
    )


def _check_buffers(
    spec: SaeSpec, headers: Mapping[str, TensorHeader], *, k: int, where: str
) -> None:
    if "k" in headers:
        saved = read_number(spec.file, "k")
        if saved != k:
            raise BadSae(
                f"{where} has k={k}, but {spec.file} has k={saved:g}: they are not of the same "
                "SAE; copy the folder again"
            )
    if spec.architecture != "jumprelu":
        return
    if headers["threshold"].shape not in {(), (1,)}:
        raise BadSae(
            f"{spec.file} has threshold of shape {list(headers['threshold'].shape)}: this "
            "class has one number"
        )
    threshold = read_number(spec.file, "threshold")
    if not threshold >= 0:
        raise BadSae(
            f"{spec.file} has threshold={threshold:g}: it was never estimated in training "
            "(threshold_start_step was not reached), so that every positive pre-activation "
            "would count. Train it further, or load a later checkpoint"
        )


def _hook_name(trainer: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Return where it reads, if the config says so beyond doubt: a residual stream."""
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    buffer = config.get("buffer")
    side = buffer.get("io", "out") if isinstance(buffer, Mapping) else "out"
    residual = isinstance(module, str) and module.startswith("resid_post")
    if (
        not residual
        or side != "out"
        or isinstance(layer, bool)
        or not isinstance(layer, int)
    ):
        return None
    return f"blocks.{layer}.hook_resid_post"


def _metadata(trainer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    found = {"model_name": trainer.get("lm_name"), "layer": trainer.get("layer")}
    found |= {name: trainer.get(name) for name in ("dict_class", "submodule_name")}
    buffer = config.get("buffer")
    if isinstance(buffer, Mapping):
        found |= {"context_size": buffer.get("ctx_len"), "io": buffer.get("io")}
    return {name: value for name, value in found.items() if value is not None}
