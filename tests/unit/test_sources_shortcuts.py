"""Shortcuts through a model: the same numbers, and nothing of them stays in the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel
from transformers.activations import ACT2FN

from extraction_kit.errors import BadModel
from extraction_kit.sources import HookedModel, onednn
from extraction_kit.sources.shortcuts import Shortcuts
from extraction_kit.trainings import Hookpoint
from tests.devices import needs_onednn

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
    assert reader.shortcuts["gelu"] == "one step"
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
    with Shortcuts(module).taken():
        assert error() < spelled / 1.4
    assert error() == spelled


def test_other_activations_are_left_alone():
    kinds = ["gelu", "gelu_pytorch_tanh", "silu", "relu", "quick_gelu"]
    model = nn.ModuleDict({name: ACT2FN[name] for name in kinds})
    assert Shortcuts(model).described == {}
    assert "gelu" not in HookedModel(gpt2("relu"), at("h.1")).shortcuts


# --- linear layers -----------------------------------------------------------------------


@pytest.fixture
def amd(monkeypatch):
    """Whatever this processor is: oneDNN is the faster one."""
    monkeypatch.setattr(onednn, "is_faster", lambda _, dtype: dtype is torch.float32)


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaModel(config).eval()


MODELS = {"Conv1D": (lambda: gpt2("relu"), "h.0"), "Linear": (llama, "layers.0")}


@needs_onednn
@pytest.mark.usefixtures("amd")
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_linear_layers_give_what_the_models_own_code_gives(kind, monkeypatch):
    make, place = MODELS[kind]
    model, products = make(), []
    plain = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[1]
    reader = HookedModel(model, at(place))
    assert reader.shortcuts == {"linear": "oneDNN"}
    linear = onednn.linear
    monkeypatch.setattr(onednn, "linear", lambda *a: products.append(a) or linear(*a))
    torch.testing.assert_close(reader(TOKENS), plain.reshape(-1, 32), rtol=0, atol=2e-6)
    assert len(products) == {"Conv1D": 4, "Linear": 7}[kind]  # those of one block
    again = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[1]
    assert torch.equal(again, plain)  # the model itself is as it was
    assert all("forward" not in vars(each) for each in model.modules())


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.usefixtures("amd")
def test_linear_layers_of_other_types_and_in_half_precision_are_left_alone():
    assert Shortcuts(Doubled(4, 4)).described == {}
    assert Shortcuts(nn.Linear(4, 4).to(torch.bfloat16)).described == {}
    assert Shortcuts(nn.Linear(4, 4)).described == {"linear": "oneDNN"}


@needs_onednn
@pytest.mark.usefixtures("amd")
@torch.inference_mode()
def test_a_pass_under_somebodys_autocast_works():
    with torch.autocast("cpu", torch.bfloat16):
        found = HookedModel(llama(), at("layers.0"))(TOKENS)
    plain = HookedModel(llama(), at("layers.0"))(TOKENS)
    assert torch.nn.functional.cosine_similarity(found.float(), plain).min() > 0.999


@needs_onednn
@pytest.mark.usefixtures("amd")
@torch.inference_mode()
def test_a_weight_that_is_computed_from_others_is_taken_as_it_is_then():
    plain = nn.Linear(8, 8)
    pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=4)
    x = torch.ones(3, 8)
    for module in (plain, pruned):
        expected = module(x)
        with Shortcuts(module).taken():
            torch.testing.assert_close(module(x), expected)


# --- what others put there ------------------------------------------------------------------


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
