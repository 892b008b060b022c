"""Hookpoints exist, and are as wide as said, in real models of each family."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from extraction_kit.errors import BadModel
from extraction_kit.sources import load_model
from extraction_kit.trainings import describe_model
from extraction_kit.trainings.families import FAMILIES
from extraction_kit.trainings.hookpoints import resolve_hookpoint, with_centred_writing
from extraction_kit.trainings.model_folder import read_model_config

CPU = torch.device("cpu")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "vocab_size": 32, "max_position_embeddings": 16,
}  # fmt: skip
OWN_HEADS = {"num_key_value_heads": 2, "head_dim": 6}
FURTHER = {
    "llama": OWN_HEADS, "mistral": OWN_HEADS, "qwen2": {"num_key_value_heads": 2},
    "qwen3": OWN_HEADS, "gemma2": OWN_HEADS, "gemma3_text": OWN_HEADS, "gpt_neox": {},
    "gemma": OWN_HEADS, "smollm3": {"num_key_value_heads": 2}, "bert": {}, "roberta": {},
}  # fmt: skip


def tiny(model_type):
    if model_type == "gpt2":
        config = AutoConfig.for_model(
            "gpt2", n_embd=16, n_layer=2, n_head=4, vocab_size=32, n_positions=16
        )
    elif model_type == "distilbert":
        config = AutoConfig.for_model(
            "distilbert", dim=16, n_layers=2, n_heads=4, hidden_dim=40, vocab_size=32,
            max_position_embeddings=16,
        )  # fmt: skip
    else:
        sizes = SIZES | FURTHER[model_type]
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(model_type, **sizes, **special)
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if FAMILIES[model_type].encoder is None else AutoModel
    return auto.from_config(config).eval()


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


DECODERS = sorted(name for name in FAMILIES if FAMILIES[name].encoder is None)
ENCODERS = sorted(set(FAMILIES) - set(DECODERS))


@pytest.mark.parametrize("model_type", DECODERS)
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


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoders_residual_stream_is_the_sum_that_its_names_say(model_type):
    model = tiny(model_type)
    config = model.config.to_dict()
    hooks = [name for name in FAMILIES[model_type].hooks if name.startswith("hook_")]
    seen = {}
    for hook in hooks:
        capture(model, resolve_hookpoint(f"blocks.0.{hook}", config), seen)
    capture(model, resolve_hookpoint("blocks.1.hook_resid_pre", config), seen)
    with torch.inference_mode():
        model(torch.arange(8)[None, :])
    at = {hook: seen[f"blocks.0.{hook}"] for hook in hooks}
    torch.testing.assert_close(
        at["hook_resid_pre"] + at["hook_attn_out"], at["hook_resid_mid"]
    )
    torch.testing.assert_close(
        at["hook_mlp_in"] + at["hook_mlp_out"], at["hook_resid_post"]
    )
    after = at["hook_normalized_resid_post"]
    torch.testing.assert_close(after, seen["blocks.1.hook_resid_pre"])
    torch.testing.assert_close(after.mean(-1), torch.zeros(1, 8), atol=1e-5, rtol=0)


def heads_of(z, weight, bias):
    """Return what attention writes, from hook_z; `weight` is [heads x head_dim, hidden]."""
    out = z @ weight
    return out if bias is None else out + bias


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_hook_z_and_mlp_post_are_what_the_last_matrix_of_each_part_reads(model_type):
    model = tiny(model_type)
    config = model.config.to_dict()
    seen, weights = {}, {}
    for hook in ("attn.hook_z", "mlp.hook_post"):
        place = resolve_hookpoint(f"blocks.0.{hook}", config)
        capture(model, place, seen)
        module = model.get_submodule(place.module_path)
        module.register_forward_hook(
            lambda _m, _given, made, hook=hook: seen.update({hook: made})
        )
        weight = module.weight if model_type == "gpt2" else module.weight.T
        weights[hook] = (weight, module.bias)
    with torch.inference_mode():
        model(torch.arange(8)[None, :])
        for hook, (weight, bias) in weights.items():
            written = heads_of(seen[f"blocks.0.{hook}"], weight, bias)
            torch.testing.assert_close(written, seen[hook])


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_a_model_cut_at_its_hookpoint_gives_what_the_whole_one_gives(model_type, tmp_path):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    spec, config = describe_model(tmp_path), read_model_config(tmp_path)
    tokens = torch.arange(3, 13).view(2, 5)
    with torch.inference_mode():
        states = model(tokens, output_hidden_states=True).hidden_states
        for hook, index in (("hook_resid_pre", 0), ("hook_resid_post", 1)):
            if FAMILIES[model_type].encoder and hook == "hook_resid_post":
                hook = "hook_normalized_resid_post"  # noqa: PLW2901 - the stream is normed
            place = resolve_hookpoint(f"blocks.0.{hook}", config)
            found = load_model(spec, place, device=CPU, dtype=torch.float32)
            n_layers = len(found.model.get_submodule(place.module_path.rpartition(".")[0]))
            assert n_layers == 1, "the layer above was loaded"
            expected = states[index].reshape(10, -1)
            torch.testing.assert_close(found(tokens), expected, rtol=1e-4, atol=1e-5)
            assert found.check_hookpoint(tokens[:1]) is True
        last = place.module_path.replace(".0", ".1")
        place = resolve_hookpoint(last, config)
        found = load_model(spec, place, device=CPU, dtype=torch.float32)
        assert found.check_hookpoint(tokens[:1]) is True


def test_names_of_encoders_with_heads_are_understood(tmp_path):
    config = tiny("bert").config
    model = AutoModelForMaskedLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    spec, raw = describe_model(tmp_path), read_model_config(tmp_path)
    place = resolve_hookpoint("bert.encoder.layer.1", raw)
    found = load_model(spec, place, device=CPU, dtype=torch.float32)
    tokens = torch.arange(3, 13).view(2, 5)
    with torch.inference_mode():
        expected = model(tokens, output_hidden_states=True).hidden_states[2]
        torch.testing.assert_close(found(tokens), expected.reshape(10, -1))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_does_not_look_at_padding(model_type, tmp_path):
    tiny(model_type).save_pretrained(tmp_path)
    spec, config = describe_model(tmp_path), read_model_config(tmp_path)
    place = resolve_hookpoint("blocks.1.hook_normalized_resid_post", config)
    model = load_model(spec, place, device=CPU, dtype=torch.float32)
    tokens = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12], [0, 0, 0, 0, 0]])
    present = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5], dtype=torch.bool)
    with torch.inference_mode():
        padded = model(tokens, present).view(3, 5, -1)
        alone = model(tokens[:1, :3])
        unmasked = model(tokens).view(3, 5, -1)
    torch.testing.assert_close(padded[0, :3], alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(unmasked[0, :3], alone, atol=1e-3)
    assert torch.isfinite(padded).all()


@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out",
                                  "hook_attn_out", "mlp.hook_in", "mlp.hook_post"])  # fmt: skip
def test_centred_writing_weights_are_honoured_exactly(model_type, hook, tmp_path):
    """Against the same model with the weights that write to the stream really centred."""
    torch.manual_seed(1)
    model = tiny(model_type)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "bias" in name else 0.3, std=0.5)
    model.save_pretrained(tmp_path / "model")
    spec = describe_model(tmp_path / "model")
    config = read_model_config(tmp_path / "model")
    place = with_centred_writing(resolve_hookpoint(f"blocks.1.{hook}", config), config)
    ours = load_model(spec, place, device=CPU, dtype=torch.float32)
    tokens = torch.arange(3, 13).view(2, 5)
    seen = {}
    capture(model, replace(place, centred=False), seen)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            writes = any(part in name for part in ("wte", "wpe", "embed_in", "c_proj",
                                                   "attention.dense", "4h_to_h"))  # fmt: skip
            if writes:
                across = 0 if name.endswith("weight") and "gpt_neox.layers" in name else -1
                weight.sub_(weight.mean(across, keepdim=True))
        model(tokens)
        expected = seen[place.hook_name].reshape(10, -1)
        torch.testing.assert_close(ours(tokens), expected, rtol=2e-3, atol=2e-3)
        plain = load_model(
            spec, replace(place, centred=False), device=CPU, dtype=torch.float32
        )
        assert place.centred == (not torch.allclose(plain(tokens), expected, atol=0.05))


def test_a_model_without_a_table_is_read_by_module_path(tmp_path):
    config = AutoConfig.for_model(
        "opt", hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40,
        vocab_size=32, max_position_embeddings=16, word_embed_proj_dim=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    spec, raw = describe_model(tmp_path), read_model_config(tmp_path)
    tokens = torch.arange(3, 13).view(2, 5)
    path = "model.decoder.layers.0"
    place = resolve_hookpoint(path, raw, d_in=16)
    assert (place.module_path, place.side) == (path, "output")
    inner = resolve_hookpoint(f"{path}.fc2.input", raw, d_in=40)
    assert (inner.module_path, inner.side) == (f"{path}.fc2", "input")
    found = load_model(spec, place, device=CPU, dtype=torch.float32)
    with torch.inference_mode():
        states = model(tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(found(tokens), states[1].reshape(10, -1))
        assert found.check_hookpoint(tokens[:1]) is True
        wrong = replace(place, width=24)
        with pytest.raises(BadModel, match=r"\[2, 5, 16\], the SAE needs \[2, 5, 24\]"):
            load_model(spec, wrong, device=CPU, dtype=torch.float32)(tokens)
    with pytest.raises(BadModel, match="Pass the path of a module"):
        resolve_hookpoint("blocks.0.hook_resid_post", raw, d_in=16)


@torch.inference_mode()
def test_a_device_map_is_passed_through(tmp_path, monkeypatch):
    tiny("llama").save_pretrained(tmp_path)
    asked = []
    real = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*given, **options):
        asked.append(options.get("device_map"))
        return real(*given, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    spec, config = describe_model(tmp_path), read_model_config(tmp_path)
    place = resolve_hookpoint("blocks.1.hook_resid_post", config)
    options = {"device": CPU, "dtype": torch.float32}
    mapped = load_model(spec, place, device_map="auto", **options)
    assert asked == ["auto"]
    tokens = torch.arange(3, 13).view(2, 5)
    torch.testing.assert_close(mapped(tokens), load_model(spec, place, **options)(tokens))


def test_a_quantised_model_whose_package_is_missing_says_which(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    raw["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    path.write_text(json.dumps(raw))
    spec = describe_model(tmp_path)
    place = resolve_hookpoint("blocks.1.hook_resid_post", raw)
    with pytest.raises(BadModel, match=r"(?i)cannot be loaded.*gptq"):
        load_model(spec, place, device=CPU, dtype=torch.float32)
