"""The logit lens is what the model's own final norm and head do, family by family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from extraction_kit.sources import load_model
from extraction_kit.sources.lens import logit_lens
from extraction_kit.trainings import describe_model
from extraction_kit.trainings.families import FAMILIES
from extraction_kit.trainings.hookpoints import is_residual_stream, resolve_hookpoint
from extraction_kit.trainings.model_folder import read_model_config
from tests.integration.test_hookpoints_in_models import DECODERS, ENCODERS, tiny

CPU = torch.device("cpu")


def saved(model_type, folder, *, tied=None):
    model = tiny(model_type)
    if tied is not None:
        model.config.tie_word_embeddings = tied
        model = AutoModelForCausalLM.from_config(model.config).eval()
    torch.manual_seed(3)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=0.2, std=0.5)
    model.save_pretrained(folder)
    return model


def loaded(folder, hook="blocks.1.hook_resid_post"):
    spec = describe_model(folder)
    place = resolve_hookpoint(hook, read_model_config(folder))
    return load_model(spec, place, device=CPU, dtype=torch.float32), spec, place


def lens_at(folder, hook):
    return logit_lens(*loaded(folder, hook), n_tokens=32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DECODERS)
def test_it_is_what_the_final_norm_and_the_head_make_of_a_row(model_type, tied, tmp_path):
    model = saved(model_type, tmp_path, tied=tied).double()
    family = FAMILIES[model_type]
    lens, reason = lens_at(tmp_path, "blocks.0.hook_resid_post")
    assert reason is None
    embedding = model.get_input_embeddings().weight
    assert tied == torch.equal(embedding.float(), lens.unembedding)
    rows = torch.randn(7, 16, dtype=torch.float64)
    norm = model.get_submodule(f"{family.base}.{family.norm}")
    with torch.no_grad():
        # Of a row alone, the norm's scale is known: its standard deviation or mean square.
        spread = (
            rows.std(1, correction=0) if family.centred else rows.square().mean(1).sqrt()
        )
        head = model.get_output_embeddings()
        alone = head(norm(rows * 1e4)) - head(norm(torch.zeros_like(rows)))
    expected = alone * spread[:, None]
    found = lens.read(rows) @ lens.unembedding.double().T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    uncentred = rows * lens.gain @ lens.unembedding.double().T
    assert family.centred == (not np.allclose(uncentred, expected, atol=1e-2))


def test_a_soft_cap_is_said_and_keeps_the_order(tmp_path):
    model = saved("gemma2", tmp_path)
    lens, _ = lens_at(tmp_path, "blocks.0.hook_resid_post")
    cap = model.config.final_logit_softcapping
    assert lens.soft_cap == cap == 30
    assert "soft cap 30" in lens.to_dict()["left_out"]
    row = torch.randn(1, 16, dtype=torch.float64)
    logits = (lens.read(row) @ lens.unembedding.double().T)[0]
    capped = cap * torch.tanh(logits / cap)
    assert logits.argsort().tolist() == capped.argsort().tolist()


def test_tokens_that_the_tokenizer_does_not_have_are_not_ranked(tmp_path):
    saved("llama", tmp_path)
    lens, _ = logit_lens(*loaded(tmp_path), n_tokens=29)
    assert lens.unembedding.shape == (29, 16)
    assert lens.to_dict()["n_tokens_ranked"] == 29


WRITTEN = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in",
           "hook_attn_out", "hook_mlp_out")  # fmt: skip
ELSEWHERE = ("attn.hook_z", "mlp.hook_in", "mlp.hook_post")


@pytest.mark.parametrize("model_type", DECODERS)
def test_only_what_is_in_the_residual_stream_as_it_is_has_a_lens(model_type, tmp_path):
    saved(model_type, tmp_path)
    config = read_model_config(tmp_path)
    for hook in (*WRITTEN, *ELSEWHERE):
        if model_type == "gpt_neox" and hook == "hook_resid_mid":
            continue  # it has none
        place = resolve_hookpoint(f"blocks.1.{hook}", config)
        assert is_residual_stream(place, config) == (hook in WRITTEN)
    lens, reason = lens_at(tmp_path, "blocks.1.mlp.hook_post")
    assert lens is None
    assert "'blocks.1.mlp.hook_post' does not go into the residual stream" in reason
    if model_type.startswith("gemma"):
        before = lens_at(tmp_path, "model.layers.1.mlp")[0]
        after = lens_at(tmp_path, "blocks.1.hook_mlp_out")[0]
        assert (before is None) == (model_type != "gemma")  # a further norm follows
        assert after is not None


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_has_none(model_type, tmp_path):
    saved(model_type, tmp_path)
    lens, reason = lens_at(tmp_path, "blocks.1.hook_resid_post")
    assert lens is None
    assert reason == f"{model_type} is an encoder: no head of it predicts the next token"


def test_a_model_whose_final_norm_is_not_known_has_none(tmp_path):
    saved("llama", tmp_path)
    model, spec, place = loaded(tmp_path)
    spec = replace(spec, model_type="llama7")
    assert logit_lens(model, spec, place, n_tokens=32) == (
        None,
        "which norm precedes the head of llama7 is not known",
    )


def test_a_head_that_is_no_plain_matrix_has_none(tmp_path):
    saved("llama", tmp_path)
    model, spec, place = loaded(tmp_path)
    weights = {
        "quantised": torch.zeros(32, 16, dtype=torch.int8),
        "quantised ": torch.zeros(32, 16).to(torch.float8_e4m3fn),
        "not in memory": torch.zeros(32, 16, device="meta"),
    }
    for said, weight in weights.items():
        head = torch.nn.Module()
        head.register_buffer("weight", weight)
        model.model.lm_head = head
        lens, reason = logit_lens(model, spec, place, n_tokens=32)
        assert lens is None
        assert said.strip() in reason
    model.model.lm_head = torch.nn.Identity()  # packed weights have other names
    assert "without an unembedding matrix" in logit_lens(model, spec, place, n_tokens=32)[1]
