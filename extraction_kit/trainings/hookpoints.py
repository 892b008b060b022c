"""Where in the model an SAE reads: TransformerLens names and module paths, resolved.

One table per family of models (:mod:`extraction_kit.trainings.families`) says which modules a
layer has and how wide their input and output are, and which of them a TransformerLens hook
name means. Of other models, a module path is taken as it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from extraction_kit.errors import BadModel, near
from extraction_kit.trainings.families import FAMILIES, RESIDUAL_HOOKS, Family


@dataclass(frozen=True, kw_only=True)
class Hookpoint:
    """One place in a loaded language model."""

    hook_name: str
    """The name as it was given."""
    module_path: str
    """Path of the module within the model, for example ``model.layers.5``."""
    side: str
    """``input`` or ``output`` of that module."""
    layer: int | None
    """Index of the decoder layer; None outside the layers."""
    width: int
    """Last dimension of the tensor found there."""
    centred: bool = False
    """Whether the mean over the last dimension is taken away: what the SAE of a model with
    centred writing weights was trained on."""

    @property
    def place(self) -> list[str]:
        """What identifies it."""
        return [self.module_path, self.side, *(["centred"] if self.centred else [])]

    def __str__(self) -> str:
        """Return what the name was resolved to."""
        centred = ", its mean taken away" if self.centred else ""
        return (
            f"{self.hook_name} = {self.side} of {self.module_path}{centred}, "
            f"{self.width} wide"
        )


_SIDES = ("input", "output")


def resolve_hookpoint(
    hook_name: str, config: Mapping[str, Any], *, d_in: int | None = None
) -> Hookpoint:
    """Return the place that a hook name means in a model.

    Parameters
    ----------
    hook_name : str
        A TransformerLens name (``blocks.5.hook_resid_post``), or a module path
        (``model.layers.5``, or ``layers.5`` relative to the decoder), which means its
        output; ``.input`` or ``.output`` may follow.
    config : mapping
        The model's ``config.json``.
    d_in : int, optional
        Width that a module of a model without a table is taken to have; the first
        activations are checked against it.

    Raises
    ------
    BadModel
        The family of models, the name or the layer is unknown; examples that work are
        listed.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        return _of_other_model(hook_name, model_type, d_in)
    if not isinstance(hook_name, str):
        raise BadModel(f"hook_name={hook_name!r}: {_examples(family, config)}")
    layer: int | None
    if hook_name.startswith("blocks."):
        module, side, layer = _transformer_lens(hook_name, family, config)
    else:
        module, side, layer = _module_path(hook_name, family, config)
    widths = family.outside[module] if layer is None else family.modules[module]
    width = widths[_SIDES.index(side)]
    if width is None:
        raise BadModel(
            f"hook_name={hook_name!r}: the {side} of {module} is not one tensor of "
            f"activations. {_examples(family, config)}"
        )
    inner = [module] if layer is None else [family.layers, str(layer), module]
    return Hookpoint(
        hook_name=hook_name,
        module_path=".".join(part for part in (family.base, *inner) if part),
        side=side,
        layer=layer,
        width=_widths(config)[width],
    )


def with_centred_writing(hookpoint: Hookpoint, config: Mapping[str, Any]) -> Hookpoint:
    """Return the place as it is in a model with TransformerLens's centred writing weights.

    Everything written to the residual stream then has mean 0, so the stream is what the
    model itself has, less its mean; LayerNorm takes the mean away anyhow, so that nothing
    behind a norm changes. TransformerLens leaves models with RMSNorm as they are.

    Raises
    ------
    BadModel
        The model's family is not known, or is an encoder.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or family.encoder is not None:
        raise BadModel(
            "the SAE was trained with center_writing_weights=True of TransformerLens, "
            f"which for model_type={config.get('model_type')!r} is not known here: choose "
            "an SAE trained on the unprocessed model"
        )
    module = hookpoint.module_path.removeprefix(f"{family.base}.")
    embedding = hookpoint.layer is None and module != family.norm
    written = embedding or is_residual_stream(hookpoint, config)
    return replace(hookpoint, centred=family.centred and written)


def is_residual_stream(hookpoint: Hookpoint, config: Mapping[str, Any]) -> bool:
    """Return whether a place of a decoder is the residual stream, or is added to it as it is.

    Embeddings do not count: some models scale them first.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or family.encoder is not None:
        return False
    module = hookpoint.module_path.removeprefix(f"{family.base}.")
    if hookpoint.layer is None:
        return (module, hookpoint.side) == (family.norm, "input")
    module = module.removeprefix(f"{family.layers}.{hookpoint.layer}").lstrip(".")
    return (module, hookpoint.side) in {family.hooks[name] for name in RESIDUAL_HOOKS}


def layer_hooks(layer: int, config: Mapping[str, Any]) -> dict[str, Hookpoint]:
    """Return the places of a layer that have a TransformerLens name, by that name."""
    family = FAMILIES.get(str(config.get("model_type")))
    return {
        name: resolve_hookpoint(f"blocks.{layer}.{name}", config)
        for name in (() if family is None else family.hooks)
        if not (name == "hook_resid_mid" and _is_parallel(config))
    }


def hook_suffix(hookpoint: Hookpoint, config: Mapping[str, Any]) -> str | None:
    """Return the TransformerLens name of a place within its layer, if it has one."""
    if hookpoint.layer is None:
        return None
    for name, place in layer_hooks(hookpoint.layer, config).items():
        if (place.module_path, place.side) == (hookpoint.module_path, hookpoint.side):
            return name
    return None


def _of_other_model(hook_name: str, model_type: object, d_in: int | None) -> Hookpoint:
    known = f"TransformerLens names are known for {', '.join(sorted(FAMILIES))}"
    if not isinstance(hook_name, str) or hook_name.startswith("blocks.") or d_in is None:
        raise BadModel(
            f"hook_name={hook_name!r}: hookpoints of model_type={model_type!r} are not "
            f"known ({known}). Pass the path of a module, as model.named_modules() lists "
            "it, with .input or .output"
        )
    path, _, last = hook_name.rpartition(".")
    side = last if last in _SIDES else "output"
    module_path = path if last in _SIDES else hook_name
    return Hookpoint(
        hook_name=hook_name, module_path=module_path, side=side, layer=None, width=d_in
    )


def _transformer_lens(
    hook_name: str, family: Family, config: Mapping[str, Any]
) -> tuple[str, str, int]:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if match is None or match[2] not in family.hooks:
        raise BadModel(_unknown(hook_name, family, config))
    if match[2] == "hook_resid_mid" and _is_parallel(config):
        raise BadModel(
            f"hook_name={hook_name!r}: attention and MLP of this model run in parallel, so "
            "there is no residual stream between them. Use hook_resid_pre or "
            "hook_resid_post"
        )
    module, side = family.hooks[match[2]]
    return module, side, _layer(int(match[1]), hook_name, config)


def _is_parallel(config: Mapping[str, Any]) -> bool:
    is_neox = config["model_type"] == "gpt_neox"
    return is_neox and bool(config.get("use_parallel_residual", True))


def _module_path(
    hook_name: str, family: Family, config: Mapping[str, Any]
) -> tuple[str, str, int | None]:
    path = hook_name.removeprefix(f"{family.encoder or family.base}.")
    side = "output"
    stem, _, last = path.rpartition(".")
    if last in _SIDES:
        path, side = stem, last
    if path in family.outside:
        return path, side, None
    match = re.fullmatch(rf"{re.escape(family.layers)}\.(\d+)(?:\.(.+))?", path)
    if match is None or (match[2] or "") not in family.modules:
        raise BadModel(_unknown(hook_name, family, config))
    return match[2] or "", side, _layer(int(match[1]), hook_name, config)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config.get(name) for name in names)
    return next((int(value) for value in found if value is not None), None)


def _n_layers(config: Mapping[str, Any]) -> int:
    return _first(config, "num_hidden_layers", "n_layer", "n_layers") or 0


def _layer(layer: int, hook_name: str, config: Mapping[str, Any]) -> int:
    n_layers = _n_layers(config)
    if layer >= n_layers:
        raise BadModel(
            f"hook_name={hook_name!r}: this {config['model_type']} model has {n_layers} "
            f"layers, 0 to {n_layers - 1}"
        )
    return layer


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    hidden = _first(config, "hidden_size", "n_embd", "dim") or 0
    heads = _first(config, "num_attention_heads", "n_head", "n_heads") or 1
    kv_heads = _first(config, "num_key_value_heads") or heads
    head_dim = _first(config, "head_dim") or hidden // heads
    return {
        "hidden": hidden,
        "mlp": _first(config, "intermediate_size", "n_inner", "hidden_dim") or 4 * hidden,
        "heads": heads * head_dim,
        "kv": kv_heads * head_dim,
        "qkv": 3 * hidden,
    }


def _examples(family: Family, config: Mapping[str, Any]) -> str:
    *hooks, path = _names(family, _n_layers(config) // 2)
    return f"Names that work: {', '.join(hooks)}, or a module path such as {path!r}"


def _names(family: Family, layer: int) -> list[str]:
    """Return the names of the hooks at a layer, and the path of its module."""
    path = ".".join(filter(None, (family.base, family.layers, str(layer))))
    return [*(f"blocks.{layer}.{name}" for name in family.hooks), path]


def _unknown(hook_name: str, family: Family, config: Mapping[str, Any]) -> str:
    layer = next(iter(re.findall(r"\d+", hook_name)), None)
    known = _names(family, _n_layers(config) // 2 if layer is None else int(layer))
    meant = near(hook_name, known, limit=1)
    hint = f" (did you mean {meant[0]!r}?)" if meant else ""
    return (
        f"hook_name={hook_name!r} is not known for {config['model_type']} models{hint}. "
        f"{_examples(family, config)}"
    )
