"""Models: run up to the hookpoint, captured where the name says, or refused."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from extraction_kit.errors import BadModel, BadSettings
from extraction_kit.sources import HookedModel, load_model, resolve_device
from extraction_kit.sources.devices import cpu_threads
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import Hookpoint, describe_model, resolve_hookpoint
from extraction_kit.trainings.model_folder import read_model_config

CPU = torch.device("cpu")
TOKENS = torch.arange(4, 16).view(2, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_training(tmp_path_factory.mktemp("tiny")).model


@pytest.fixture
def own_folder(tmp_path):
    return tiny_training(tmp_path).model


def hooked(folder, hook_name, **options):
    hookpoint = resolve_hookpoint(hook_name, read_model_config(folder))
    spec = describe_model(folder)
    return load_model(spec, hookpoint, device=CPU, dtype=torch.float32, **options)


def states(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(TOKENS, output_hidden_states=True).hidden_states


@torch.inference_mode()
def test_a_hook_captures_the_hidden_state_that_it_names(folder):
    expected = states(folder)
    for layer in (0, 1):
        after = hooked(folder, f"blocks.{layer}.hook_resid_post")(TOKENS)
        before = hooked(folder, f"blocks.{layer}.hook_resid_pre")(TOKENS)
        torch.testing.assert_close(after, expected[layer + 1].reshape(12, -1))
        torch.testing.assert_close(before, expected[layer].reshape(12, -1))


@torch.inference_mode()
def test_the_last_layer_is_captured_before_the_final_norm(folder):
    model = hooked(folder, "blocks.2.hook_resid_post")
    captured = model(TOKENS)
    normed = model.model.model.norm(captured)
    torch.testing.assert_close(normed, states(folder)[-1].reshape(12, -1))
    assert model.check_hookpoint(TOKENS[:1]) is True


@torch.inference_mode()
def test_nothing_above_the_hookpoint_is_executed(folder):
    model = hooked(folder, "blocks.1.hook_resid_post", whole=True)
    called = []
    for name, module in model.model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    model(TOKENS)
    assert "model.layers.1.mlp.down_proj" in called
    above = ("model.layers.2", "model.norm", "lm_head")
    assert [name for name in called if name.startswith(above)] == []


@torch.inference_mode()
def test_the_hook_is_gone_after_each_call(folder):
    model = hooked(folder, "blocks.1.hook_resid_post")
    model(TOKENS)
    assert model.model(TOKENS).logits.shape == (2, 6, 64)


@torch.inference_mode()
def test_the_captured_tensor_is_checked_against_the_models_own_record(folder):
    model = hooked(folder, "blocks.1.hook_resid_post")
    assert model.check_hookpoint(TOKENS[:1]) is True
    assert hooked(folder, "blocks.1.hook_mlp_out").check_hookpoint(TOKENS[:1]) is None
    wrong = model.model.model.layers[0]  # a hook at another place than it says
    model._module = lambda _: wrong
    with pytest.raises(BadModel, match="differs from hidden state 2"):
        model.check_hookpoint(TOKENS[:1])


class Tuples(nn.Module):
    """A model whose layers return tuples, as older architectures do."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 8)

    def forward(self, input_ids, use_cache):
        del use_cache
        return self.wrap(self.embed(input_ids), "cache")

    def wrap(self, *outputs):
        return outputs


def hookpoint_at(path, width=8, side="output"):
    return Hookpoint(hook_name="hook", module_path=path, side=side, layer=None, width=width)


@pytest.mark.parametrize(
    ("reads", "writes"),
    [
        ("layers.1.mlp.input", "layers.1.mlp"),
        ("layers.1.mlp", "layers.1.mlp.input"),  # the target comes first
        ("layers.1.mlp.input", "layers.1.mlp.input"),
        ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post"),
    ],
)
@torch.inference_mode()
def test_two_places_are_captured_in_one_pass_in_any_order(folder, reads, writes):
    config, spec = read_model_config(folder), describe_model(folder)
    first, second = (resolve_hookpoint(name, config) for name in (reads, writes))
    both = load_model(spec, first, device=CPU, dtype=torch.float32, target=second)
    x, target = both.with_target(TOKENS)
    torch.testing.assert_close(x, hooked(folder, reads)(TOKENS), rtol=0, atol=0)
    torch.testing.assert_close(target, hooked(folder, writes)(TOKENS), rtol=0, atol=0)
    torch.testing.assert_close(both(TOKENS), x, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in both.model.modules())


@torch.inference_mode()
def test_without_a_target_there_is_none(folder):
    model = hooked(folder, "blocks.0.hook_resid_post")
    assert model.with_target(TOKENS)[1] is None


@torch.inference_mode()
def test_activations_are_changed_where_they_are_read_or_behind(folder):
    own = AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits
    reads = resolve_hookpoint("blocks.1.hook_resid_pre", read_model_config(folder))
    writes = resolve_hookpoint("blocks.1.hook_resid_post", read_model_config(folder))
    model = load_model(
        describe_model(folder), reads, device=CPU, dtype=torch.float32, whole=True
    )
    plain = model.logits(TOKENS, write=reads)
    torch.testing.assert_close(plain, own, rtol=0, atol=2e-5)
    for place in (reads, writes):
        same = model.logits(TOKENS, write=place, change=lambda _, there: there)
        torch.testing.assert_close(same, plain, rtol=0, atol=0)
    seen = []
    model.logits(TOKENS, write=writes, change=lambda x, there: (seen.append(x), there)[1])
    torch.testing.assert_close(seen[0], model(TOKENS), rtol=0, atol=0)
    skipped = model.logits(TOKENS, write=writes, change=lambda x, _: x)  # block 1 left out
    assert not torch.allclose(skipped, plain)
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.model.modules()]
    assert not any(hooks)
    before = replace(reads, module_path="model.layers.0")
    with pytest.raises(BadModel, match=r"comes before 'model\.layers\.1'"):
        model.logits(TOKENS, write=before, change=lambda x, _: x)


@torch.inference_mode()
def test_what_is_read_without_its_mean_keeps_its_mean_when_changed():
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    block = resolve_hookpoint("blocks.0.hook_resid_post", config.to_dict())
    centred = HookedModel(model, replace(block, centred=True))
    plain = model(TOKENS).logits
    same = centred.logits(TOKENS, write=centred.hookpoint, change=lambda x, _: x)
    torch.testing.assert_close(same, plain)
    whole = HookedModel(model, block)
    zeros = centred.logits(TOKENS, write=centred.hookpoint, change=lambda x, _: 0 * x)
    mean = whole.logits(
        TOKENS, write=block, change=lambda x, _: x.mean(1, keepdim=True).expand_as(x)
    )
    torch.testing.assert_close(zeros, mean)


def test_an_output_that_is_a_tuple_gives_its_first_tensor():
    model = HookedModel(Tuples(), hookpoint_at(""))
    torch.testing.assert_close(model(TOKENS), model.model.embed(TOKENS).reshape(12, 8))


def test_a_tensor_of_another_width_is_refused_with_both_shapes():
    with pytest.raises(BadModel, match=r"\[2, 6, 8\], the SAE needs \[2, 6, 9\]"):
        HookedModel(Tuples(), hookpoint_at("", width=9))(TOKENS)


def test_a_module_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(BadModel, match=r"'layers\.9'.*outer modules are embed"):
        HookedModel(Tuples(), hookpoint_at("layers.9"))


def test_a_module_that_is_never_reached_is_refused():
    model = Tuples()
    model.unused = nn.Linear(8, 8)
    with pytest.raises(BadModel, match="did not reach 'unused'"):
        HookedModel(model, hookpoint_at("unused"))(TOKENS)


@torch.inference_mode()
def test_a_gpt2_is_read_too(tmp_path):
    config = GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = hooked(tmp_path, "blocks.0.hook_resid_post")
    assert model.check_hookpoint(TOKENS[:1]) is True
    assert model(TOKENS).shape == (12, 16)


def test_a_model_that_lacks_weights_is_refused_instead_of_filled_with_noise(own_folder):
    path = own_folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"lacks 1 weights \(model\.layers\.1\.mlp\.up_proj"):
        hooked(own_folder, "blocks.1.hook_resid_post")


def test_weights_that_are_not_finite_are_refused_by_name(own_folder):
    path = own_folder / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadModel, match=r"not finite in model\.norm\.weight"):
        hooked(own_folder, "blocks.1.hook_resid_post")


def test_a_folder_that_went_away_or_is_torn_is_refused(own_folder, tmp_path):
    spec = describe_model(own_folder)
    hookpoint = resolve_hookpoint("blocks.1.hook_resid_post", read_model_config(own_folder))
    gone = replace(spec, path=str(tmp_path / "gone"))
    with pytest.raises(BadModel, match="was it moved or deleted"):
        load_model(gone, hookpoint, device=CPU, dtype=torch.float32)
    path = own_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(BadModel, match="cannot be loaded by transformers"):
        load_model(spec, hookpoint, device=CPU, dtype=torch.float32)


def test_loading_prints_nothing(folder, capfd, caplog):
    with caplog.at_level(logging.INFO):
        hooked(folder, "blocks.1.hook_resid_post")
    assert capfd.readouterr() == ("", "")


def test_a_device_that_is_not_there_is_refused_with_those_allowed():
    for name in ("cuda:77", "abacus"):
        with pytest.raises(BadSettings, match=rf"device='{name}' cannot be used"):
            resolve_device(name)
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in {"cpu", "cuda", "mps"}


def test_the_number_of_threads_is_put_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1) as threads:
        assert threads == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
