"""SAEs: sparse encoding equals the dense formula, for each kind and option."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from extraction_kit.digests import file_digest
from extraction_kit.errors import BadSae
from extraction_kit.sources import saes, selection
from extraction_kit.stats import Contexts
from extraction_kit.testing import (
    random_sae_weights,
    save_dictionary,
    save_gemma_scope,
    save_llama_scope,
    save_sae,
    save_sparsify,
)
from extraction_kit.trainings import describe_sae

D_IN, D_SAE, K = 12, 300, 5
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "groupmax")
CPU = torch.device("cpu")


def config_of(architecture, **options):
    config = {
        "architecture": architecture,
        "d_in": D_IN,
        "d_sae": D_SAE,
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    if architecture == "topk":
        config["k"] = K
    return config | options


def weights_of(config):
    weights = random_sae_weights(config, seed=3)
    if config["architecture"] in {"standard", "jumprelu", "gated"}:
        weights["b_enc"][:-1] += 3
    if config["architecture"] == "gated":
        chance = torch.Generator().manual_seed(7)
        weights["b_gate"] = weights.pop("b_enc")
        weights["b_mag"] = weights["b_gate"] + torch.randn(D_SAE, generator=chance)
        weights["r_mag"] = 0.5 * torch.randn(D_SAE, generator=chance)
    return weights


def selected(architecture, h, w):
    """Return the pre-activations, 0 where another one or a threshold keeps one out."""
    kept = np.ones_like(h, dtype=bool)
    if architecture == "topk":
        kept[:] = False
        np.put_along_axis(kept, np.argsort(-h, axis=1, kind="stable")[:, :K], True, axis=1)
    if architecture == "groupmax":
        groups = h.reshape(len(h), K, D_SAE // K)
        kept = (groups == groups.max(2, keepdims=True)).reshape(h.shape)
    if architecture == "jumprelu":
        kept = h > w["threshold"]
    return np.where(kept, h, 0)


def dense(config, weights, x):
    """Return feature activations and reconstruction by the formulas, in float64."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    x = x.double().numpy()
    shift, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if config["normalize_activations"] == "layer_norm":
        shift = x.mean(1, keepdims=True)
        scale = x.std(1, keepdims=True, ddof=1) + 1e-5
    if config["normalize_activations"] == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / D_IN**0.5
    inside = (x - shift) / scale
    centred = inside - w["b_dec"] * config["apply_b_dec_to_input"]
    if config["architecture"] == "gated":
        open_gate = centred @ w["W_enc"] + w["b_gate"] > 0
        h = open_gate * (centred @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"])
    else:
        h = centred @ w["W_enc"] + w["b_enc"]
    norm = np.linalg.norm(w["W_dec"], axis=1)
    rescale = config.get("rescale_acts_by_decoder_norm", False)
    if rescale:
        h *= norm
    acts = np.maximum(selected(config["architecture"], h, w), 0)
    decoded = (acts / norm if rescale else acts) @ w["W_dec"] + w["b_dec"]
    return acts, decoded * scale + shift


def loaded(folder, config, weights, *, dtype=torch.float32):
    if config["architecture"] == "groupmax":
        save_sparsify(folder, weights, k=K, activation="groupmax")
    else:
        save_sae(folder, config, weights)
    return saes.load_sae(describe_sae(folder), device=CPU, dtype=dtype)


def encoded(sae, x, valid=None):
    """Return dense activations and reconstruction of `x`, put together from tiles."""
    n = x.shape[0]
    valid = torch.ones((n, 1), dtype=torch.bool) if valid is None else valid
    contexts = Contexts.consecutive(0, torch.zeros((n, 1), dtype=torch.int64), valid)
    normal = sae.normalize(x)
    acts, x_hat = np.zeros((n, D_SAE)), sae.baseline(x)
    for batch in sae.encode(normal.x, contexts):
        assert torch.all(batch.row[1:] >= batch.row[:-1])
        assert torch.all(batch.value > 0)
        acts[batch.row, batch.feature] = batch.value
        x_hat = x_hat + sae.decode(batch, n_rows=n)
    return acts, normal.undo(x_hat).float().numpy()


CASES = [
    (architecture, {"apply_b_dec_to_input": centre, "normalize_activations": normal})
    for architecture in ARCHITECTURES[:-1]
    for centre in (True, False)
    for normal in ("none", "layer_norm", "constant_norm_rescale")
] + [("topk", {"rescale_acts_by_decoder_norm": True}), ("groupmax", {})]


@pytest.mark.parametrize(("architecture", "options"), CASES)
def test_sparse_encoding_equals_the_dense_formula(tmp_path, architecture, options):
    config = config_of(architecture, **options)
    weights = weights_of(config)
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1)) + 1
    acts, x_hat = encoded(loaded(tmp_path, config, weights), x)
    expected, expected_hat = dense(config, weights, x)
    assert (expected > 0).sum() > 100
    np.testing.assert_array_equal(acts > 0, expected > 0)
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x_hat, expected_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tiles_of_rows_and_features_change_nothing(tmp_path, architecture, monkeypatch):
    config = config_of(architecture)
    weights = weights_of(config)
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    acts, _ = encoded(loaded(tmp_path / "whole", config, weights), x)
    monkeypatch.setattr(saes, "FEATURE_TILE", 128)  # 300 features: two whole, one not
    monkeypatch.setattr(saes, "TILE_ELEMENTS", {"cpu": 7 * 128})
    monkeypatch.setattr(saes, "CELLS", 40 * 128)  # the statistics get one tile at a time
    tiled, _ = encoded(loaded(tmp_path / "tiled", config, weights), x)
    np.testing.assert_array_equal(acts > 0, tiled > 0)
    # Another width of a product can be summed in another order, by what the processor has:
    # the error is one of the terms, which are about 1, however small their sum.
    np.testing.assert_allclose(acts, tiled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_do_not_count_are_never_active(tmp_path, architecture):
    config = config_of(architecture)
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(40)[:, None] % 3 > 0
    sae = loaded(tmp_path, config, weights_of(config))
    every, some = encoded(sae, x)[0], encoded(sae, x, valid)[0]
    np.testing.assert_array_equal(some, np.where(valid.numpy(), every, 0))


def test_a_gated_feature_needs_an_open_gate_and_a_positive_magnitude(tmp_path):
    config = config_of("gated", apply_b_dec_to_input=False)
    weights = weights_of(config)
    weights["W_enc"][:] = 0
    gate, magnitude = weights["b_gate"], weights["b_mag"]
    gate[:], magnitude[:] = -1, 1
    gate[3], magnitude[4], gate[4] = 1, -1, 1
    acts, _ = encoded(loaded(tmp_path, config, weights), torch.ones(2, D_IN))
    assert [np.flatnonzero(row).tolist() for row in acts] == [[3], [3]]
    assert acts[0, 3] == 1


def test_a_group_without_a_positive_pre_activation_is_silent(tmp_path):
    config = config_of("groupmax")
    weights = weights_of(config)
    weights["W_enc"][:] = 0
    weights["b_enc"][:] = -1
    weights["b_enc"][[70, 71, 299]] = torch.tensor([2.0, 3.0, 4.0])
    acts, _ = encoded(loaded(tmp_path, config, weights), torch.ones(2, D_IN))
    assert np.flatnonzero(acts[0]).tolist() == [71, 299]


def test_what_a_skip_connection_adds_is_of_the_input_as_captured(tmp_path):
    config = config_of(
        "skip_transcoder",
        apply_b_dec_to_input=False,
        d_out=5,
        normalize_activations="layer_norm",
    )
    weights = weights_of(config)
    chance = torch.Generator().manual_seed(2)
    weights["W_dec"] = weights["W_dec"][:, :5]
    weights["b_dec"] = weights["b_dec"][:5]
    weights["W_skip"] = torch.randn(5, D_IN, generator=chance)
    x = 3 * torch.randn(20, D_IN, generator=chance) + 1
    acts, x_hat = encoded(loaded(tmp_path, config, weights), x)
    normal = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
    expected = torch.relu(normal @ weights["W_enc"] + weights["b_enc"])
    written = expected @ weights["W_dec"] + weights["b_dec"] + x @ weights["W_skip"].T
    assert (expected > 0).sum() > 100
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x_hat, written, rtol=1e-4, atol=1e-4)


def test_there_is_no_cosine_between_spaces_of_different_width(tmp_path):
    config = config_of("transcoder", apply_b_dec_to_input=False, d_out=5)
    weights = weights_of(config)
    weights["W_dec"], weights["b_dec"] = weights["W_dec"][:, :5], weights["b_dec"][:5]
    columns = loaded(tmp_path, config, weights).weight_columns
    assert set(columns) == {"decoder_norm", "encoder_norm"}
    norms = np.linalg.norm(weights["W_dec"].numpy(), axis=1)
    np.testing.assert_allclose(columns["decoder_norm"], norms, rtol=1e-6)


def test_nothing_active_is_encoded_and_decoded_too(tmp_path):
    config = config_of("standard")
    weights = weights_of(config)
    weights["b_enc"][:] = -1e4
    acts, x_hat = encoded(loaded(tmp_path, config, weights), torch.ones(3, D_IN))
    assert not acts.any()
    np.testing.assert_allclose(x_hat, weights["b_dec"].expand(3, -1), rtol=1e-6)


def test_negative_pre_activations_are_dropped_from_the_k_largest(tmp_path):
    config = config_of("topk")
    weights = weights_of(config)
    weights["b_enc"][:] = -1e4
    weights["b_enc"][[7, 200]] = 1e4
    acts, _ = encoded(loaded(tmp_path, config, weights), torch.ones(3, D_IN))
    assert [np.flatnonzero(row).tolist() for row in acts] == [[7, 200]] * 3


def test_of_equal_pre_activations_the_lower_features_are_kept(tmp_path):
    config = config_of("topk", apply_b_dec_to_input=False)
    weights = weights_of(config)
    weights["W_enc"][:] = 0
    weights["b_enc"][:] = torch.arange(D_SAE) % 10
    acts, _ = encoded(loaded(tmp_path, config, weights), torch.ones(2, D_IN))
    assert np.flatnonzero(acts[0]).tolist() == [9, 19, 29, 39, 49]


@pytest.mark.parametrize("n", [5, 19, 20, 40, 41, 300])
@pytest.mark.parametrize("k", [1, 4, 5])
def test_the_floor_is_never_above_the_kth_largest(n, k):
    pre = torch.randn(50, n, generator=torch.Generator().manual_seed(n))
    floor = selection.floor_of_largest(pre, k)
    assert torch.all(floor <= pre.topk(k, dim=1).values[:, -1])


def test_bfloat16_gives_float32_activations_near_those_of_float32(tmp_path):
    config = config_of("topk")
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    weights = weights_of(config)
    exact, _ = encoded(loaded(tmp_path, config, weights), x)
    near, _ = encoded(loaded(tmp_path, config, weights, dtype=torch.bfloat16), x)
    assert ((exact > 0) == (near > 0)).mean() > 0.99
    both = (exact > 0) & (near > 0)
    np.testing.assert_allclose(near[both], exact[both], rtol=0.05)


def test_columns_from_the_weights_are_of_the_saved_weights(tmp_path):
    config = config_of("topk", rescale_acts_by_decoder_norm=True)
    weights = weights_of(config)
    columns = loaded(tmp_path, config, weights).weight_columns
    enc, dec = weights["W_enc"].T.double().numpy(), weights["W_dec"].double().numpy()
    norms = np.linalg.norm(enc, axis=1), np.linalg.norm(dec, axis=1)
    np.testing.assert_allclose(columns["encoder_norm"], norms[0], rtol=1e-6)
    np.testing.assert_allclose(columns["decoder_norm"], norms[1], rtol=1e-6)
    cosine = (enc * dec).sum(1) / norms[0] / norms[1]
    np.testing.assert_allclose(columns["enc_dec_cos"], cosine, rtol=1e-5)
    assert all(column.dtype == np.float32 for column in columns.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_are_never_changed(tmp_path, architecture):
    config = config_of(architecture)
    sae = loaded(tmp_path, config, weights_of(config))
    before = file_digest(sae.spec.file)
    encoded(sae, torch.ones(3, D_IN))
    assert file_digest(sae.spec.file) == before


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_place(tmp_path, name, number):
    config = config_of("jumprelu")
    weights = weights_of(config)
    weights[name][(0,) * (weights[name].ndim - 1) + (3,)] = number
    with pytest.raises(BadSae, match=rf"{name}\[(0, )?3\] is (nan|inf)"):
        loaded(tmp_path, config, weights)


def test_a_file_that_changed_after_registration_is_refused(tmp_path):
    config = config_of("topk")
    save_sae(tmp_path, config, weights_of(config))
    spec = describe_sae(tmp_path)
    other = config | {"d_sae": D_SAE + 1}
    save_sae(tmp_path, other, weights_of(other))
    with pytest.raises(BadSae, match="has changed since it was registered"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)
    weights = Path(spec.path) / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(BadSae, match="copy the SAE's folder again"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)


def linear(weights):
    """Return the state dict of a BatchTopKSAE of dictionary_learning."""
    return {
        "encoder.weight": weights["W_enc"].T.clone(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.clone(),
        "b_dec": weights["b_dec"],
        "threshold": torch.tensor(0.5),
        "k": torch.tensor(K),
    }


def dictionary(folder, state):
    trainer = {"dict_class": "BatchTopKSAE", "activation_dim": D_IN, "dict_size": D_SAE}
    return save_dictionary(folder, state, k=K, **trainer)


def load(folder):
    return saes.load_sae(describe_sae(folder), device=CPU, dtype=torch.float32)


def test_a_number_that_is_not_finite_is_found_in_every_kind_of_file(tmp_path):
    weights = weights_of(config_of("jumprelu"))
    state = linear(weights)
    state["encoder.weight"][7, 2] = float("nan")
    with pytest.raises(BadSae, match=r"ae\.pt: encoder\.weight\[7, 2\] is nan"):
        load(dictionary(tmp_path / "pt", state))
    weights["threshold"][5] = float("inf")
    with pytest.raises(BadSae, match=r"params\.npz: threshold\[5\] is inf"):
        load(save_gemma_scope(tmp_path / "npz", weights))
    weights = weights_of(config_of("topk"))
    weights["b_enc"][-1] = -np.inf
    with pytest.raises(BadSae, match=r"encoder\.bias\[299\] is -inf"):
        load(save_sparsify(tmp_path / "st", weights, k=K))


def test_a_pickle_put_in_place_of_weights_after_registration_is_refused(tmp_path):
    folder = dictionary(tmp_path, linear(weights_of(config_of("jumprelu"))))
    spec = describe_sae(folder)
    torch.save(torch.nn.Linear(2, 2), folder / "ae.pt")
    with pytest.raises(BadSae, match="its pickle holds more than tensors"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)
    torch.save([torch.ones(2)], folder / "ae.pt")
    with pytest.raises(BadSae, match="holds a list"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)
    torch.save({"encoder.weight": torch.ones(D_IN, D_SAE)}, folder / "ae.pt")
    with pytest.raises(BadSae, match=r"encoder.weight has shape \[12, 300\]"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)
    (folder / "ae.pt").unlink()
    with pytest.raises(BadSae, match="cannot be read"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)


def test_a_torn_npz_file_is_refused_when_it_is_loaded(tmp_path):
    folder = save_gemma_scope(tmp_path, weights_of(config_of("jumprelu")))
    spec = describe_sae(folder)
    (folder / "params.npz").write_bytes((folder / "params.npz").read_bytes()[:500])
    with pytest.raises(BadSae, match=r"params\.npz cannot be read.*copy the SAE"):
        saes.load_sae(spec, device=CPU, dtype=torch.float32)


def test_one_threshold_holds_for_every_feature(tmp_path):
    weights = weights_of(config_of("jumprelu"))
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    one, _ = encoded(load(dictionary(tmp_path / "one", linear(weights))), x)
    weights["threshold"][:] = 0.5
    each, _ = encoded(loaded(tmp_path / "each", config_of("jumprelu"), weights), x)
    assert (one > 0).sum() > 100
    np.testing.assert_array_equal(one, each)


def test_a_scale_of_the_input_is_folded_into_the_weights(tmp_path):
    config = config_of("jumprelu", apply_b_dec_to_input=False)
    weights = weights_of(config)
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    folder = save_llama_scope(
        tmp_path,
        weights,
        jump_relu_threshold=2.0,
        dataset_average_activation_norm={"in": 3 * D_IN**0.5},
        hook_point_in="blocks.0.hook_resid_post",
    )
    acts, x_hat = encoded(load(folder), x)
    weights["threshold"][:] = 2 / 3
    expected, expected_hat = dense(config, weights, x / 3)
    np.testing.assert_array_equal(acts > 0, expected > 0)
    np.testing.assert_allclose(acts, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x_hat, expected_hat * 3, rtol=1e-4, atol=1e-4)


def test_a_state_dict_described_by_its_owner_encodes_as_described(tmp_path):
    config = config_of("topk", normalize_activations="layer_norm")
    weights = weights_of(config)
    x = 3 * torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))
    torch.save({"enc": weights["W_enc"].T} | weights, tmp_path / "layer0.sae.pt")
    described = config | {"weights": "layer0.sae.pt", "tensors": {"W_enc": "enc^T"}}
    (tmp_path / "sae_spec.json").write_text(json.dumps(described | {"ignored": ["W_enc"]}))
    acts, x_hat = encoded(load(tmp_path), x)
    expected, expected_hat = dense(config, weights, x)
    np.testing.assert_array_equal(acts > 0, expected > 0)
    np.testing.assert_allclose(x_hat, expected_hat, rtol=1e-4, atol=1e-4)
