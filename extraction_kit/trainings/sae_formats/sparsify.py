"""sparsify (EleutherAI): ``<run>/<module>/cfg.json`` + ``sae.safetensors``.

The folder is named after the module that the SAE was trained on: its output for an
autoencoder, its input (to predict its output) for a transcoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extraction_kit.errors import BadSae
from extraction_kit.trainings.files import read_json
from extraction_kit.trainings.sae_formats.checks import check_k, check_tensors, flag, size
from extraction_kit.trainings.sae_formats.spec import INPUT, OUTPUT, SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
RUN_CONFIG = "config.json"
ACTIVATIONS = ("topk", "groupmax")
_ADVICE = "save the SAE with save_to_disk(folder) of sparsify, or copy it again"
_TENSORS = {"W_enc": "encoder.weight^T", "b_enc": "encoder.bias"}
_MODULE = re.compile(r"(?:layers|h)\.\d+(?:\..+)?|embed_tokens|embed_in|wte")
_SEED = re.compile(r"seed\d+")


def describe(folder: Path, file: Path) -> SaeSpec:
    """Describe an SAE or transcoder of sparsify."""
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG, BadSae, _ADVICE)
    transcode = flag(config, "transcode", False, where=where)
    _refuse_signed(config, where)
    module, metadata = _origin(folder)
    spec = SaeSpec(
        path=str(folder),
        format="sparsify",
        architecture=_activation(config, where),
        d_in=size(config, "d_in", where),
        d_sae=_d_sae(config, where),
        k=size(config, "k", where),
        apply_b_dec_to_input=_centred(config, transcode, where),
        normalize_activations="none",
        rescale_acts_by_decoder_norm=False,
        hook_name=f"{module}.input" if module and transcode else module,
        metadata=metadata,
        digest="",
        reconstructs=OUTPUT if transcode else INPUT,
        hook_name_out=module if transcode else None,
        skip=_skip(config, transcode, where),
        weights=file.name,
        tensors=_TENSORS,
    )
    check_k(spec, where)
    check_tensors(spec, read_headers(file, _ADVICE), advice=_ADVICE)
    return spec


def _activation(config: Mapping[str, Any], where: str) -> str:
    activation = config.get("activation", "topk")  # absent before groupmax existed
    if activation not in ACTIVATIONS:
        raise BadSae(
            f"{where} has activation={activation!r}: {' and '.join(ACTIVATIONS)} are "
            "supported"
        )
    return str(activation)


def _d_sae(config: Mapping[str, Any], where: str) -> int:
    """Return the number of latents; 0 means d_in * expansion_factor."""
    if config.get("num_latents"):
        return size(config, "num_latents", where)
    return size(config, "d_in", where) * size(config, "expansion_factor", where)


def _refuse_signed(config: Mapping[str, Any], where: str) -> None:
    if config.get("signed"):
        raise BadSae(
            f"{where} has signed={config['signed']!r}: its activations can be negative, the "
            "statistics are of positive ones"
        )


def _centred(config: Mapping[str, Any], transcode: bool, where: str) -> bool:
    """Return whether b_dec is subtracted from the input: by autoencoders only.

    Before February 2025 transcoders subtracted it too; configs of that time lack
    ``activation``, and nothing else in the files tells the two apart.
    """
    if not transcode:
        return True
    if "apply_b_dec_to_input" in config:
        return flag(config, "apply_b_dec_to_input", False, where=where)
    if "activation" not in config:
        raise BadSae(
            f"{where} is of a transcoder saved by an early sparsify: until February 2025 it "
            "subtracted b_dec from its input, later not, and the files do not say which. "
            'Add "apply_b_dec_to_input": true (before) or false (after) to a copy of it'
        )
    return False


def _skip(config: Mapping[str, Any], transcode: bool, where: str) -> bool:
    skip = flag(config, "skip_connection", False, where=where)
    if skip and not transcode:
        raise BadSae(
            f"{where} has skip_connection=True and transcode=False: an autoencoder with a "
            "skip connection can copy its input. Only transcoders with one are supported"
        )
    return skip


def _origin(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Return the module that the folders are named after, and what the run says."""
    place = folder.parent if _SEED.fullmatch(folder.name) else folder
    module = place.name if _MODULE.fullmatch(place.name) else None
    run = place.parent / RUN_CONFIG
    if not run.is_file():
        return module, {}
    said = read_json(run, BadSae, _ADVICE)
    renamed = {"model": "model_name", "dataset": "dataset_path", "ctx_len": "context_size"}
    return module, {
        ours: said[theirs] for theirs, ours in renamed.items() if theirs in said
    }
