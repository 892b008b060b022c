"""Hookpoints exist, and are as wide as said, in real models of each family."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from extraction_kit.trainings.hookpoints import FAMILIES, resolve_hookpoint

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "vocab_size": 32, "max_position_embeddings": 16,
}  # fmt: skip
OWN_HEADS = {"num_key_value_heads": 2, "head_dim": 6}
FURTHER = {
    "llama": OWN_HEADS, "mistral": OWN_HEADS, "qwen2": {"num_key_value_heads": 2},
    "qwen3": OWN_HEADS, "gemma2": OWN_HEADS, "gemma3_text": OWN_HEADS, "gpt_neox": {},
}  # fmt: skip


def tiny(model_type):
    if model_type == "gpt2":
        config = AutoConfig.for_model(
            "gpt2", n_embd=16, n_layer=2, n_head=4, vocab_size=32, n_positions=16
        )
    else:
        sizes = SIZES | FURTHER[model_type]
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(model_type, **sizes, **special)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def first_tensor(value):
    return value if isinstance(value, torch.Tensor) else value[0]


def capture(model, hookpoint, seen):
    """Keep what passes at a hookpoint, under its name."""
    module = model.get_submodule(hookpoint.module_path)
    if hookpoint.side == "output":
        return module.register_forward_hook(
            lambda _module, _given, made: seen.update(
                {hookpoint.hook_name: first_tensor(made)}
            )
        )
    return module.register_forward_pre_hook(
        lambda _module, given: seen.update({hookpoint.hook_name: first_tensor(given)})
    )


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_name_of_a_family_is_there_and_as_wide_as_said(model_type):
    model = tiny(model_type)
    config = model.config.to_dict()
    family = FAMILIES[model_type]
    names = [f"blocks.1.{hook}" for hook in family.hooks]
    if model_type == "gpt_neox":
        names.remove("blocks.1.hook_resid_mid")
    for modules, prefix in ((family.modules, f"{family.layers}.1"), (family.outside, "")):
        for module, widths in modules.items():
            path = ".".join(part for part in (family.base, prefix, module) if part)
            sides = zip(("input", "output"), widths, strict=True)
            names += [f"{path}.{side}" for side, width in sides if width is not None]
    places = {name: resolve_hookpoint(name, config) for name in names}
    seen = {}
    for place in places.values():
        capture(model, place, seen)
    with torch.inference_mode():
        model(torch.arange(8)[None, :])
    assert {name: place.width for name, place in places.items()} == {
        name: seen[name].shape[-1] for name in names
    }


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_the_residual_stream_is_the_sum_that_its_names_say(model_type):
    model = tiny(model_type)
    config = model.config.to_dict()
    hooks = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
    seen = {}
    for hook in hooks:
        capture(model, resolve_hookpoint(f"blocks.0.{hook}", config), seen)
    capture(model, resolve_hookpoint("blocks.1.hook_resid_pre", config), seen)
    with torch.inference_mode():
        model(torch.arange(8)[None, :])
    pre, attention, mlp, post = (seen[f"blocks.0.{hook}"] for hook in hooks)
    torch.testing.assert_close(pre + attention + mlp, post)
    torch.testing.assert_close(seen["blocks.1.hook_resid_pre"], post)
