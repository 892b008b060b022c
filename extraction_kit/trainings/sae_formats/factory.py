"""An SAE of the user's own code: ``sae_spec.json`` names a function, and its weights.

::

    {"factory": "my_package.saes:make", "weights": "sae.safetensors", "d_in": 512,
     "d_sae": 8192, "hook_name": "model.layers.5"}

``make(weights)`` is called in the worker, with the tensors of the file by name, and returns
an object with ``encode(x)`` [row, d_in] -> [row, d_sae], never negative, and ``decode(f)``
[row, d_sae] -> [row, d_in], biases included. The bytes of the module's source are part of the
digest; what it imports is not.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadSae
from extraction_kit.trainings.sae_formats.checks import size, text
from extraction_kit.trainings.sae_formats.spec import SaeSpec
from extraction_kit.trainings.sae_formats.weight_files import read_headers

_FIELDS = ("factory", "weights", "d_in", "d_sae", "hook_name", "metadata")


def describe(folder: Path, config: Mapping[str, Any], where: str) -> SaeSpec:
    """Describe an SAE made by a function; nothing is imported."""
    unknown = sorted(set(config) - set(_FIELDS))
    if unknown:
        raise BadSae(
            f"{where} has {', '.join(unknown)} beside factory: {', '.join(_FIELDS)} are "
            "known, all else is up to the function"
        )
    weights = text(config.get("weights"))
    if (
        weights is None
        or Path(weights).name != weights
        or Path(weights).suffix != ".safetensors"
    ):
        raise BadSae(
            f"{where} has weights={config.get('weights')!r}: a .safetensors file in the same "
            "folder is needed"
        )
    factory = config["factory"]
    metadata = config.get("metadata")
    spec = SaeSpec(
        path=str(folder),
        format="explicit",
        architecture="custom",
        d_in=size(config, "d_in", where),
        d_sae=size(config, "d_sae", where),
        k=None,
        apply_b_dec_to_input=False,
        normalize_activations="none",
        rescale_acts_by_decoder_norm=False,
        hook_name=text(config.get("hook_name")),
        metadata=dict(metadata) if isinstance(metadata, Mapping) else {},
        digest="",
        weights=weights,
    )
    read_headers(spec.file, f"correct {where}, or the file")
    return replace(
        spec, factory=factory, factory_digest=file_digest(_source(factory, where))
    )


def _source(factory: object, where: str) -> Path:
    """Return the file of the function's module, found as an import would find it."""
    module, colon, name = factory.partition(":") if isinstance(factory, str) else ("",) * 3
    parts = module.split(".")
    if not colon or not name.isidentifier() or not all(map(str.isidentifier, parts)):
        raise BadSae(f"{where} has factory={factory!r}: 'module:function' is needed")
    places, found = None, None
    for end in range(1, len(parts) + 1):
        found = PathFinder.find_spec(".".join(parts[:end]), places)
        if found is None:
            break
        places = list(found.submodule_search_locations or ())
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise BadSae(
            f"{where} has factory={factory!r}: there is no Python module {module!r} on the "
            "path. Install its package, so that workers can import it too"
        )
    return Path(found.origin)
