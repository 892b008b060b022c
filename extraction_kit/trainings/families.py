"""The modules of a decoder layer, family by family, and their TransformerLens names.

Modules and widths as the `transformers` model has them; the names as TransformerLens uses
them. A hook that has no module boundary there (``ln2.hook_normalized``) is not in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Family:
    """How the models of some types are built."""

    base: str  # attribute of the loaded model that holds the layers; "" if it does itself
    layers: str  # attribute that lists its layers
    modules: Mapping[str, tuple[str | None, str | None]]  # -> widths of (input, output)
    outside: Mapping[str, tuple[str | None, str | None]]  # the same, beside the layers
    hooks: Mapping[str, tuple[str, str]]  # TransformerLens suffix -> (module, side)
    norm: str = ""  # what the last layer's output goes through before it is recorded
    centred: bool = False  # whether the norms take the mean away (LayerNorm)
    encoder: str | None = None  # the name that heads of such an encoder hold it under


# Widths are named: "hidden", "mlp" (intermediate), "heads" (heads x head_dim), "kv",
# "qkv" (all three joined). None: that side is not a plain tensor argument.
_RESIDUAL = ("hidden", "hidden")
_LLAMA = Family(
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
    norm="norm",
)
_GEMMA = Family(  # a further norm after attention and MLP, before the residual addition
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
    norm="norm",
)
_GPT2 = Family(
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
    norm="ln_f",
    centred=True,
)
_NEOX = Family(
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
    norm="final_layer_norm",
    centred=True,
)
# Encoders whose norms follow the additions: a layer's output is normed, as TransformerLens's
# hook_normalized_resid_post; its hook_resid_post is what comes before that norm.
_BERT = Family(
    base="",
    layers="encoder.layer",
    modules={
        "": _RESIDUAL,
        "attention": (None, "hidden"),
        "attention.output.dense": ("heads", "hidden"),
        "attention.output.LayerNorm": _RESIDUAL,
        "intermediate": ("hidden", "mlp"),
        "output.dense": ("mlp", "hidden"),
        "output.LayerNorm": _RESIDUAL,
    },
    outside={"embeddings": (None, "hidden")},
    hooks={
        "hook_resid_pre": ("", "input"),
        "hook_attn_out": ("attention.output.dense", "output"),
        "attn.hook_z": ("attention.output.dense", "input"),
        "hook_resid_mid": ("attention.output.LayerNorm", "input"),
        "hook_mlp_in": ("intermediate", "input"),
        "mlp.hook_post": ("output.dense", "input"),
        "hook_mlp_out": ("output.dense", "output"),
        "hook_resid_post": ("output.LayerNorm", "input"),
        "hook_normalized_resid_post": ("", "output"),
    },
    encoder="bert",
)
_DISTILBERT = Family(
    base="",
    layers="transformer.layer",
    modules={
        "": _RESIDUAL,
        "attention.out_lin": ("heads", "hidden"),
        "sa_layer_norm": _RESIDUAL,
        "ffn": _RESIDUAL,
        "ffn.lin2": ("mlp", "hidden"),
        "output_layer_norm": _RESIDUAL,
    },
    outside={"embeddings": (None, "hidden")},
    hooks={
        "hook_resid_pre": ("", "input"),
        "hook_attn_out": ("attention.out_lin", "output"),
        "attn.hook_z": ("attention.out_lin", "input"),
        "hook_resid_mid": ("sa_layer_norm", "input"),
        "hook_mlp_in": ("ffn", "input"),
        "mlp.hook_post": ("ffn.lin2", "input"),
        "hook_mlp_out": ("ffn", "output"),
        "hook_resid_post": ("output_layer_norm", "input"),
        "hook_normalized_resid_post": ("", "output"),
    },
    encoder="distilbert",
)
RESIDUAL_HOOKS = (
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_in",
    "hook_mlp_out",
)  # fmt: skip
"""What is read from or added to the residual stream as it is, before any norm."""
FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "distilbert": _DISTILBERT,
    "gemma": _LLAMA,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "roberta": replace(_BERT, encoder="roberta"),
    "smollm3": _LLAMA,
}
