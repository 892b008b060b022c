"""GELU in one step: the same function, nearer to it, and nothing of it stays in the model."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.activations import ACT2FN

from extraction_kit.errors import BadModel
from extraction_kit.sources import HookedModel
from extraction_kit.sources.gelu import in_one_step, spelled_out
from extraction_kit.trainings import Hookpoint

TOKENS = torch.arange(4, 36).view(2, 16)


def at(module_path, width=32):
    return Hookpoint(
        hook_name=module_path, module_path=module_path, side="output", layer=0, width=width
    )


def gpt2(activation):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2,
        activation_function=activation,
    )  # fmt: skip
    return GPT2LMHeadModel(config).transformer.eval()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast"])
@torch.inference_mode()
def test_activations_are_those_of_the_models_own_code(activation):
    model = gpt2(activation)
    plain = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[1]
    reader = HookedModel(model, at("h.0"))
    assert reader.has_faster_gelu
    torch.testing.assert_close(reader(TOKENS), plain.reshape(-1, 32), rtol=0, atol=2e-6)
    again = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[1]
    assert torch.equal(again, plain)  # the model itself is as it was


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_in_half_precision_it_is_nearer_to_the_function(name, dtype):
    module, x = ACT2FN[name], torch.linspace(-6, 6, 10_000).to(dtype)
    truth = module(x.double())

    def error():
        return float((module(x).double() - truth).abs().mean())

    spelled = error()
    with in_one_step([module]):
        assert error() < spelled / 1.4
    assert error() == spelled


def test_other_activations_are_left_alone():
    kinds = ["gelu", "gelu_pytorch_tanh", "silu", "relu", "quick_gelu"]
    model = nn.ModuleDict({name: ACT2FN[name] for name in kinds})
    assert spelled_out(model) == []
    assert not HookedModel(gpt2("relu"), at("h.1")).has_faster_gelu


def test_a_forward_that_somebody_put_there_is_used():
    model = gpt2("gelu_new")
    for block in model.h:
        block.mlp.act.forward = torch.zeros_like
    assert not HookedModel(model, at("h.0.mlp.act", 128))(TOKENS).any()
    assert not model.h[0].mlp.act(torch.ones(3)).any()


def test_an_error_in_the_pass_leaves_the_model_as_it_was():
    model = gpt2("gelu_new")
    with pytest.raises(BadModel):
        HookedModel(model, at("h.1.attn", width=7))(TOKENS)
    with pytest.raises(IndexError):
        HookedModel(model, at("h.1"))(TOKENS + 64)
    assert all("forward" not in vars(block.mlp.act) for block in model.h)
