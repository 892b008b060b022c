"""Gemma Scope (``params.npz``) and Gemma Scope 2 (``params.safetensors``).

JumpReLU SAEs and transcoders of Gemma 2 and 3. The first kind has no config: where an SAE
reads stands in the names of the folders that it was published in, such as
``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import TensorHeader, read_json
from extraction_kit.trainings.sae_formats.checks import check_tensors, flag, text
from extraction_kit.trainings.sae_formats.spec import INPUT, OUTPUT, UNKNOWN, SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers

WEIGHTS = "params.npz"
WEIGHTS_2 = "params.safetensors"
CONFIG_2 = "config.json"
_ADVICE = "download the file again"
_TENSORS_2 = {"W_enc": "w_enc", "W_dec": "w_dec"}
_SKIP = "affine_skip_connection"
_KINDS = {  # end of the repository's name -> TransformerLens hook
    "res": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "att": "attn.hook_z",
}
_REPOSITORY = re.compile(r"gemma-scope-\w+-(?:pt|it)-(res|mlp|att|transcoders)\b")


@dataclass(frozen=True)
class _Place:
    """Where an SAE reads and writes."""

    hook_name: str | None
    reconstructs: str
    hook_name_out: str | None = None


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE of Gemma Scope."""
    headers = read_headers(file, _ADVICE)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"} if "w_enc" in headers else {}
    return _described(folder, file, headers, names=names, place=_place(folder))


def describe_2(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE or transcoder of Gemma Scope 2."""
    headers = read_headers(file, _ADVICE)
    where = str(folder / CONFIG_2)
    config = read_json(folder / CONFIG_2, BadSae, "its architecture and hook stand there")
    if config.get("architecture") != "jump_relu":
        raise BadSae(
            f"{where} has architecture={config.get('architecture')!r}: jump_relu is supported"
        )
    hook_name, out = text(config.get("hf_hook_point_in")), config.get("hf_hook_point_out")
    writes = out is not None and out != hook_name
    place = _Place(hook_name, OUTPUT if writes else INPUT, text(out) if writes else None)
    skip = flag(config, "affine_connection", False, where=where)
    names = dict(_TENSORS_2)
    if skip:
        names["W_skip"] = f"{_SKIP}^T"
    return _described(
        folder, file, headers, names=names, place=place, model=config.get("model_name")
    )


def _described(
    folder: Path,
    file: Path,
    headers: Mapping[str, TensorHeader],
    *,
    names: Mapping[str, str],
    place: _Place,
    model: object = None,
) -> SaeSpec:
    d_in, d_sae = _two(file, headers, names.get("W_enc", "W_enc"))
    _, d_out = _two(file, headers, names.get("W_dec", "W_dec"))
    if d_out != d_in and place.reconstructs == INPUT:
        raise BadSae(
            f"{file} reads {d_in} and writes {d_out} numbers, so that it is a transcoder, but "
            "its config or folder says an autoencoder: download the folder again"
        )
    spec = SaeSpec(
        path=str(folder),
        format="gemma_scope" if file.suffix == ".npz" else "gemma_scope_2",
        architecture="jumprelu",
        d_in=d_in,
        d_sae=d_sae,
        k=None,
        apply_b_dec_to_input=False,
        normalize_activations="none",
        rescale_acts_by_decoder_norm=False,
        hook_name=place.hook_name,
        metadata={"prepend_bos": True} | ({"model_name": model} if model else {}),
        digest="",
        d_out=None if d_out == d_in else d_out,
        reconstructs=place.reconstructs,
        hook_name_out=place.hook_name_out,
        skip="W_skip" in names,
        weights=file.name,
        tensors=dict(names),
    )
    check_tensors(spec, headers, advice=_ADVICE)
    return spec


def _two(file: Path, headers: Mapping[str, TensorHeader], name: str) -> tuple[int, int]:
    header = headers.get(name)
    if header is None:
        raise BadSae(f"{file} has no tensor {name}: {_ADVICE}")
    if len(header.shape) != 2:  # noqa: PLR2004 - a matrix
        raise BadSae(
            f"{file} has {name} of shape {list(header.shape)}, not a matrix: a cross-layer "
            "transcoder, which writes to several layers, is not supported"
        )
    return header.shape[0], header.shape[1]


def _place(folder: Path) -> _Place:
    """Return what the folders' names say; a name that says nothing is not guessed at."""
    parts = folder.parts
    if "embedding" in parts:
        raise BadSae(
            f"{folder} is an SAE of token embeddings, trained on another scale than that of "
            "the model's own: it is not supported. SAEs of layers are"
        )
    kinds = [found[1] for part in parts if (found := _REPOSITORY.search(part))]
    layers = [part.removeprefix("layer_") for part in parts if part.startswith("layer_")]
    kind = kinds[-1] if kinds else None
    layer = layers[-1] if layers and layers[-1].isdigit() else None
    if kind is None:
        return _Place(None, UNKNOWN)
    if kind == "transcoders":
        # It reads ln2.hook_normalized, which no module of `transformers` gives.
        return _Place(None, OUTPUT, f"blocks.{layer}.hook_mlp_out" if layer else None)
    return _Place(f"blocks.{layer}.{_KINDS[kind]}" if layer else None, INPUT)
