"""SAEs of every library go through the whole extraction; transcoders are compared rightly."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import BadSae
from extraction_kit.extraction import extract
from extraction_kit.results import result_digest
from extraction_kit.testing import (
    random_sae_weights,
    save_dictionary,
    save_gemma_scope,
    save_llama_scope,
    save_sae,
    save_sparsify,
)
from extraction_kit.trainings import describe_training
from tests.devices import DEVICE

# Transcoders of random weights predict nothing: the preflight would refuse them, rightly.
SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=48, preflight="report")
CONFIG = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
D_IN, D_SAE, K = 16, 48, 6
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def extracted(tiny, corpus_of):
    """Return a function from the place of an SAE to (training, corpus, result)."""

    def run(sae, *, hook_name=HOOK, **options):
        training = describe_training("t", sae=sae, model=tiny.model, hook_name=hook_name)
        corpus = corpus_of(training, CONFIG)
        found = extract(training, corpus, config=CONFIG, settings=SETTINGS, **options)
        return training, corpus, found

    return run


def linear(weights):
    """Return weights by the names of `torch.nn.Linear`, and its shapes."""
    return {
        "encoder.weight": weights["W_enc"].T,
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T,
        "b_dec": weights["b_dec"],
    }


def test_one_topk_sae_in_the_files_of_three_libraries_gives_one_result(folder, extracted):
    config = {"architecture": "topk", "d_in": D_IN, "d_sae": D_SAE, "k": K}
    weights = random_sae_weights(config, seed=5)
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": D_IN, "dict_size": D_SAE}
    saes = [
        save_sae(folder / "saelens-topk", config, weights),
        save_sparsify(folder / "sparsify-topk", weights, k=K),
        save_dictionary(folder / "dl-topk", linear(weights), k=K, **trainer),
    ]
    found = [extracted(sae)[2] for sae in saes]
    assert found[0].features["n_active"].sum() > 100
    assert len({result_digest(each) for each in found}) == 1
    assert len({each.summary["fvu"] for each in found}) == 1


def test_one_jumprelu_sae_in_the_files_of_four_formats_gives_one_result(folder, extracted):
    config = {"architecture": "jumprelu", "d_in": D_IN, "d_sae": D_SAE}
    config["apply_b_dec_to_input"] = False
    weights = random_sae_weights(config, seed=5)
    weights["threshold"][:] = 5.5
    trainer = {"activation_dim": D_IN, "dict_size": D_SAE}
    place = folder / "gemma-scope-2b-pt-res" / "layer_1" / "width_16k"
    saes = [
        save_sae(folder / "saelens-jumprelu", config, weights),
        save_gemma_scope(place, weights),
        save_dictionary(
            folder / "dl-jumprelu", weights, dict_class="JumpReluAutoEncoder", **trainer
        ),
        save_llama_scope(
            folder / "llama",
            weights,
            jump_relu_threshold=5.5,
            dataset_average_activation_norm={"in": D_IN**0.5},  # no scale
            hook_point_in=HOOK,
        ),
    ]
    found = [extracted(sae)[2] for sae in saes]
    assert found[0].features["n_active"].sum() > 100
    assert len({result_digest(each) for each in found}) == 1


# --- transcoders ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcoder(folder):
    """Write a transcoder of the MLP in layer 1, as sparsify does."""
    config = {"architecture": "topk", "d_in": D_IN, "d_sae": D_SAE}
    weights = random_sae_weights(config, seed=8)
    chance = torch.Generator().manual_seed(9)
    weights["W_skip"] = 0.3 * torch.randn(D_IN, D_IN, generator=chance)
    place = folder / "run" / "layers.1.mlp"
    options = {"transcode": True, "skip_connection": True}
    return save_sparsify(place, weights, k=K, **options), weights


def naive(tiny, corpus, weights):
    """Return activations and FVU of the MLP's output, from the whole model's own pass."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model).eval()
    seen = {}
    model.model.layers[1].mlp.register_forward_hook(
        lambda _, args, out: seen.update(x=args[0][0], y=out[0])
    )
    w = {name: tensor.double() for name, tensor in weights.items()}
    batch = corpus.read(0, corpus.n_contexts)
    all_acts, targets, errors = [], [], 0.0
    for tokens, present, valid in zip(
        batch.tokens, batch.present, batch.valid, strict=True
    ):
        with torch.no_grad():
            model(torch.from_numpy(tokens[present]).long()[None])
        counted = torch.from_numpy(valid[: present.sum()])
        x, y = seen["x"].double()[counted], seen["y"].double()[counted]
        h = x @ w["W_enc"] + w["b_enc"]
        best = h.topk(K, dim=1)
        acts = torch.zeros_like(h).scatter_(1, best.indices, best.values.relu())
        y_hat = acts @ w["W_dec"] + w["b_dec"] + x @ w["W_skip"].T
        all_acts.append(acts)
        targets.append(y)
        errors += float((y - y_hat).square().sum())
    target = torch.cat(targets)
    return torch.cat(all_acts), errors / float((target - target.mean(0)).square().sum())


def test_a_transcoder_is_compared_with_what_it_should_write(tiny, extracted, transcoder):
    sae, weights = transcoder
    training, corpus, found = extracted(sae, hook_name=None)
    assert training.hookpoint.module_path == "model.layers.1.mlp"
    assert training.hookpoint.side == "input"
    acts, fvu = naive(tiny, corpus, weights)
    assert found.features["n_active"].tolist() == (acts > 0).sum(0).tolist()
    np.testing.assert_allclose(found.features["sum_act"], acts.sum(0), rtol=1e-4)
    assert found.summary["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert found.provenance["reconstruction"] == {
        "compared_with": "layers.1.mlp",
        "not_compared_because": None,
    }


def test_a_transcoder_whose_output_is_not_known_has_no_fvu_and_says_why(
    extracted, transcoder, folder
):
    elsewhere = folder / "moved"  # the folder's name says nothing any more
    save_sparsify(elsewhere, transcoder[1], k=K, transcode=True, skip_connection=True)
    told = []
    *_, found = extracted(
        elsewhere, hook_name="layers.1.mlp.input", on_progress=told.append
    )
    *_, known = extracted(transcoder[0], hook_name=None)
    assert found.summary["fvu"] is None
    assert found.summary["l0"] == known.summary["l0"]
    measured = [replace(each, tables={}) for each in (found, known)]
    assert result_digest(measured[0]) == result_digest(measured[1])
    assert {progress.fvu for progress in told} == {None}
    said = found.provenance["reconstruction"]
    assert said["compared_with"] is None
    assert "do not say where it writes" in said["not_compared_because"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reconstructs": "unknown"}, "do not say whether it is a transcoder"),
        ({"hook_name_out": "blocks.1.ln2.hook_normalized"}, "where .* writes is not known"),
    ],
)
def test_what_cannot_be_compared_is_never_compared(extracted, transcoder, changes, said):
    training, corpus, _ = extracted(transcoder[0], hook_name=None)
    training = replace(training, sae=replace(training.sae, **changes))
    found = extract(training, corpus, config=CONFIG, settings=SETTINGS)
    assert found.summary["fvu"] is None
    assert found.provenance["reconstruction"]["compared_with"] is None
    assert re.search(said, found.provenance["reconstruction"]["not_compared_because"])


def test_a_transcoder_of_another_width_than_the_model_is_refused(tiny, tmp_path):
    config = {"architecture": "transcoder", "d_in": D_IN, "d_sae": D_SAE, "d_out": 5}
    config["apply_b_dec_to_input"] = False
    config["metadata"] = {
        "hook_name": "blocks.1.hook_mlp_in",
        "hook_name_out": "blocks.1.hook_mlp_out",
    }
    weights = random_sae_weights(config, seed=1)
    weights["W_dec"], weights["b_dec"] = weights["W_dec"][:, :5], weights["b_dec"][:5]
    save_sae(tmp_path, config, weights)
    with pytest.raises(BadSae, match=r"writes d_out=5 numbers.*is 16 wide"):
        describe_training("t", sae=tmp_path, model=tiny.model)


def test_an_autoencoder_is_compared_with_what_it_reads(tiny, extracted):
    *_, found = extracted(tiny.sae)
    assert found.provenance["reconstruction"]["compared_with"] == HOOK
    assert found.summary["fvu"] > 0
