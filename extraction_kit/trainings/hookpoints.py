"""Where in the model an SAE reads: TransformerLens names and module paths, resolved.

One table per family of models says which modules a decoder layer has and how wide their
input and output are, and which of them a TransformerLens hook name means. A hook that has
no module boundary in the `transformers` model (``ln2.hook_normalized``) is not in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from extraction_kit.errors import BadModel


@dataclass(frozen=True, kw_only=True)
class Hookpoint:
    """One place in a loaded causal language model."""

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


@dataclass(frozen=True)
class _Family:
    base: str  # attribute of the causal LM that holds the decoder
    layers: str  # attribute of the decoder that lists its layers
    modules: Mapping[str, tuple[str | None, str | None]]  # -> widths of (input, output)
    outside: Mapping[str, tuple[str | None, str | None]]  # the same, beside the layers
    hooks: Mapping[str, tuple[str, str]]  # TransformerLens suffix -> (module, side)


# Widths are named: "hidden", "mlp" (intermediate), "heads" (heads x head_dim), "kv",
# "qkv" (all three joined). None: that side is not a plain tensor argument.
_RESIDUAL = ("hidden", "hidden")
_LLAMA = _Family(
    base="model",
    layers="layers",
    modules={
        "": _RESIDUAL,
        "input_layernorm": _RESIDUAL,
        "self_attn": (None, "hidden"),
        "self_attn.q_proj": ("hidden", "heads"),
        "self_attn.k_proj": ("hidden", "kv"),
        "self_attn.v_proj": ("hidden", "kv"),
        "self_attn.o_proj": ("heads", "hidden"),
        "post_attention_layernorm": _RESIDUAL,
        "mlp": _RESIDUAL,
        "mlp.gate_proj": ("hidden", "mlp"),
        "mlp.up_proj": ("hidden", "mlp"),
        "mlp.down_proj": ("mlp", "hidden"),
    },
    outside={"embed_tokens": (None, "hidden"), "norm": _RESIDUAL},
    hooks={
        "hook_resid_pre": ("", "input"),
        "hook_resid_mid": ("post_attention_layernorm", "input"),
        "hook_resid_post": ("", "output"),
        "hook_attn_out": ("self_attn", "output"),
        "attn.hook_z": ("self_attn.o_proj", "input"),
        "hook_mlp_in": ("post_attention_layernorm", "input"),
        "mlp.hook_in": ("post_attention_layernorm", "output"),
        "mlp.hook_post": ("mlp.down_proj", "input"),
        "hook_mlp_out": ("mlp", "output"),
    },
)
_GEMMA = _Family(  # a further norm after attention and MLP, before the residual addition
    base="model",
    layers="layers",
    modules={
        **_LLAMA.modules,
        "pre_feedforward_layernorm": _RESIDUAL,
        "post_feedforward_layernorm": _RESIDUAL,
    },
    outside=_LLAMA.outside,
    hooks={
        **_LLAMA.hooks,
        "hook_resid_mid": ("pre_feedforward_layernorm", "input"),
        "hook_attn_out": ("post_attention_layernorm", "output"),
        "hook_mlp_in": ("pre_feedforward_layernorm", "input"),
        "mlp.hook_in": ("pre_feedforward_layernorm", "output"),
        "hook_mlp_out": ("post_feedforward_layernorm", "output"),
    },
)
_GPT2 = _Family(
    base="transformer",
    layers="h",
    modules={
        "": _RESIDUAL,
        "ln_1": _RESIDUAL,
        "attn": (None, "hidden"),
        "attn.c_attn": ("hidden", "qkv"),
        "attn.c_proj": ("heads", "hidden"),
        "ln_2": _RESIDUAL,
        "mlp": _RESIDUAL,
        "mlp.c_fc": ("hidden", "mlp"),
        "mlp.c_proj": ("mlp", "hidden"),
    },
    outside={"wte": (None, "hidden"), "ln_f": _RESIDUAL},
    hooks={
        "hook_resid_pre": ("", "input"),
        "hook_resid_mid": ("ln_2", "input"),
        "hook_resid_post": ("", "output"),
        "hook_attn_out": ("attn", "output"),
        "attn.hook_z": ("attn.c_proj", "input"),
        "hook_mlp_in": ("ln_2", "input"),
        "mlp.hook_in": ("ln_2", "output"),
        "mlp.hook_post": ("mlp.c_proj", "input"),
        "hook_mlp_out": ("mlp", "output"),
    },
)
_NEOX = _Family(
    base="gpt_neox",
    layers="layers",
    modules={
        "": _RESIDUAL,
        "input_layernorm": _RESIDUAL,
        "attention": (None, "hidden"),
        "attention.query_key_value": ("hidden", "qkv"),
        "attention.dense": ("heads", "hidden"),
        "post_attention_layernorm": _RESIDUAL,
        "mlp": _RESIDUAL,
        "mlp.dense_h_to_4h": ("hidden", "mlp"),
        "mlp.dense_4h_to_h": ("mlp", "hidden"),
    },
    outside={"embed_in": (None, "hidden"), "final_layer_norm": _RESIDUAL},
    hooks={
        "hook_resid_pre": ("", "input"),
        "hook_resid_mid": ("post_attention_layernorm", "input"),
        "hook_resid_post": ("", "output"),
        "hook_attn_out": ("attention", "output"),
        "attn.hook_z": ("attention.dense", "input"),
        "hook_mlp_in": ("post_attention_layernorm", "input"),
        "mlp.hook_in": ("post_attention_layernorm", "output"),
        "mlp.hook_post": ("mlp.dense_4h_to_h", "input"),
        "hook_mlp_out": ("mlp", "output"),
    },
)
FAMILIES: Mapping[str, _Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
}
_SIDES = ("input", "output")


def resolve_hookpoint(hook_name: str, config: Mapping[str, Any]) -> Hookpoint:
    """Return the place that a hook name means in a model.

    Parameters
    ----------
    hook_name : str
        A TransformerLens name (``blocks.5.hook_resid_post``), or a module path
        (``model.layers.5``, or ``layers.5`` relative to the decoder), which means its
        output; ``.input`` or ``.output`` may follow.
    config : mapping
        The model's ``config.json``.

    Raises
    ------
    BadModel
        The family of models, the name or the layer is unknown; examples that work are
        listed.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise BadModel(
            f"hookpoints of model_type={model_type!r} are not known: "
            f"{', '.join(sorted(FAMILIES))} are supported"
        )
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


def _transformer_lens(
    hook_name: str, family: _Family, config: Mapping[str, Any]
) -> tuple[str, str, int]:
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
    if match is None or match[2] not in family.hooks:
        raise BadModel(_unknown(hook_name, family, config))
    parallel = config.get("use_parallel_residual", True)
    if family is _NEOX and match[2] == "hook_resid_mid" and parallel:
        raise BadModel(
            f"hook_name={hook_name!r}: attention and MLP of this model run in parallel, so "
            "there is no residual stream between them. Use hook_resid_pre or "
            "hook_resid_post"
        )
    module, side = family.hooks[match[2]]
    return module, side, _layer(int(match[1]), hook_name, config)


def _module_path(
    hook_name: str, family: _Family, config: Mapping[str, Any]
) -> tuple[str, str, int | None]:
    path = hook_name.removeprefix(f"{family.base}.")
    side = "output"
    stem, _, last = path.rpartition(".")
    if last in _SIDES:
        path, side = stem, last
    if path in family.outside:
        return path, side, None
    match = re.fullmatch(rf"{family.layers}\.(\d+)(?:\.(.+))?", path)
    if match is None or (match[2] or "") not in family.modules:
        raise BadModel(_unknown(hook_name, family, config))
    return match[2] or "", side, _layer(int(match[1]), hook_name, config)


def _first(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config.get(name) for name in names)
    return next((int(value) for value in found if value is not None), None)


def _n_layers(config: Mapping[str, Any]) -> int:
    return _first(config, "num_hidden_layers", "n_layer") or 0


def _layer(layer: int, hook_name: str, config: Mapping[str, Any]) -> int:
    n_layers = _n_layers(config)
    if layer >= n_layers:
        raise BadModel(
            f"hook_name={hook_name!r}: this {config['model_type']} model has {n_layers} "
            f"layers, 0 to {n_layers - 1}"
        )
    return layer


def _widths(config: Mapping[str, Any]) -> dict[str, int]:
    hidden = _first(config, "hidden_size", "n_embd") or 0
    heads = _first(config, "num_attention_heads", "n_head") or 1
    kv_heads = _first(config, "num_key_value_heads") or heads
    head_dim = _first(config, "head_dim") or hidden // heads
    return {
        "hidden": hidden,
        "mlp": _first(config, "intermediate_size", "n_inner") or 4 * hidden,
        "heads": heads * head_dim,
        "kv": kv_heads * head_dim,
        "qkv": 3 * hidden,
    }


def _examples(family: _Family, config: Mapping[str, Any]) -> str:
    layer = _n_layers(config) // 2
    hooks = [f"blocks.{layer}.{name}" for name in family.hooks]
    return (
        f"Names that work: {', '.join(hooks)}, or a module path such as "
        f"'{family.base}.{family.layers}.{layer}'"
    )


def _unknown(hook_name: str, family: _Family, config: Mapping[str, Any]) -> str:
    return (
        f"hook_name={hook_name!r} is not known for {config['model_type']} models. "
        f"{_examples(family, config)}"
    )
