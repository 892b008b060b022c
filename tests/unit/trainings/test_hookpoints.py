"""Hook names lead to the right module, side and width, or to a list of names that work."""

import pytest

from extraction_kit.errors import BadModel
from extraction_kit.trainings import resolve_hookpoint
from extraction_kit.trainings.hookpoints import hook_suffix, layer_hooks

LLAMA = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 4,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
    "intermediate_size": 20,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 4, "n_head": 2, "n_inner": None}
GEMMA = LLAMA | {"model_type": "gemma2"}
NEOX = LLAMA | {"model_type": "gpt_neox", "head_dim": None, "num_key_value_heads": None}


@pytest.mark.parametrize(
    ("config", "hook_name", "place"),
    [
        (LLAMA, "blocks.3.hook_resid_post", ("model.layers.3", "output", 8)),
        (LLAMA, "blocks.0.hook_resid_pre", ("model.layers.0", "input", 8)),
        (LLAMA, "blocks.1.hook_resid_mid",
         ("model.layers.1.post_attention_layernorm", "input", 8)),
        (LLAMA, "blocks.1.attn.hook_z", ("model.layers.1.self_attn.o_proj", "input", 12)),
        (LLAMA, "blocks.1.mlp.hook_post", ("model.layers.1.mlp.down_proj", "input", 20)),
        (LLAMA, "blocks.1.hook_mlp_out", ("model.layers.1.mlp", "output", 8)),
        (GEMMA, "blocks.1.hook_mlp_out",
         ("model.layers.1.post_feedforward_layernorm", "output", 8)),
        (GEMMA, "blocks.1.hook_attn_out",
         ("model.layers.1.post_attention_layernorm", "output", 8)),
        (GPT2, "blocks.2.hook_resid_post", ("transformer.h.2", "output", 8)),
        (GPT2, "blocks.2.mlp.hook_post", ("transformer.h.2.mlp.c_proj", "input", 32)),
        (NEOX, "blocks.2.attn.hook_z", ("gpt_neox.layers.2.attention.dense", "input", 8)),
        (LLAMA, "model.layers.2", ("model.layers.2", "output", 8)),
        (LLAMA, "layers.2", ("model.layers.2", "output", 8)),
        (LLAMA, "layers.2.mlp", ("model.layers.2.mlp", "output", 8)),
        (LLAMA, "model.layers.2.self_attn.k_proj",
         ("model.layers.2.self_attn.k_proj", "output", 6)),
        (LLAMA, "model.layers.2.self_attn.o_proj.input",
         ("model.layers.2.self_attn.o_proj", "input", 12)),
        (LLAMA, "model.layers.2.output", ("model.layers.2", "output", 8)),
        (GPT2, "h.3.mlp", ("transformer.h.3.mlp", "output", 8)),
    ],
)  # fmt: skip
def test_a_name_leads_to_its_place(config, hook_name, place):
    hookpoint = resolve_hookpoint(hook_name, config)
    assert (hookpoint.module_path, hookpoint.side, hookpoint.width) == place
    assert hookpoint.hook_name == hook_name
    assert f".{hookpoint.layer}" in hookpoint.module_path


def test_modules_beside_the_layers_have_no_layer():
    hookpoint = resolve_hookpoint("model.norm", LLAMA)
    assert (hookpoint.layer, hookpoint.module_path) == (None, "model.norm")


@pytest.mark.parametrize(
    ("config", "hook_name", "said"),
    [
        (LLAMA, "blocks.4.hook_resid_post", "4 layers, 0 to 3"),
        (LLAMA, "model.layers.9", "4 layers, 0 to 3"),
        (LLAMA, "blocks.1.ln2.hook_normalized", "blocks.2.hook_resid_post"),
        (LLAMA, "blocks.x.hook_resid_post", "is not known for llama"),
        (LLAMA, "blocks.1.hook_resid_pst", r"did you mean 'blocks\.1\.hook_resid_post'\?"),
        (LLAMA, "transformer.h.2", r"model\.layers\.2"),
        (LLAMA, "model.layers.2.mlp.expert", "is not known"),
        (LLAMA, "model.layers.-1", "is not known"),
        (LLAMA, "", "is not known"),
        (LLAMA, 5, "hook_name=5"),
        (LLAMA, "model.layers.2.self_attn.input", "not one tensor"),
        (NEOX, "blocks.1.hook_resid_mid", "parallel"),
        ({"model_type": "mamba"}, "blocks.1.hook_resid_post", "gpt2"),
        ({}, "blocks.1.hook_resid_post", "model_type=None"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(config, hook_name, said):
    with pytest.raises(BadModel, match=said):
        resolve_hookpoint(hook_name, config)


def test_the_places_of_a_layer_are_those_that_it_has():
    parallel, sequential = NEOX, NEOX | {"use_parallel_residual": False}
    assert layer_hooks(1, sequential).keys() - layer_hooks(1, parallel).keys() == {
        "hook_resid_mid"
    }
    for name, place in layer_hooks(1, parallel).items():
        assert place == resolve_hookpoint(f"blocks.1.{name}", parallel)
        assert hook_suffix(place, parallel) is not None
    assert hook_suffix(resolve_hookpoint("blocks.1.mlp.hook_post", NEOX), NEOX) == (
        "mlp.hook_post"
    )
    assert layer_hooks(1, {"model_type": "mamba"}) == {}


def test_a_sequential_neox_model_has_a_stream_between_attention_and_mlp():
    config = NEOX | {"use_parallel_residual": False}
    place = resolve_hookpoint("blocks.1.hook_resid_mid", config)
    assert place.module_path == "gpt_neox.layers.1.post_attention_layernorm"
