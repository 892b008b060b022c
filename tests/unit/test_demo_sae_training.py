"""The SAE of the demo finds directions that are there, and is saved as SAELens does."""

import json

import pytest
import torch

from extraction_kit.demo.sae_training import Recipe, save_sae, train_topk_sae
from extraction_kit.sources.saes import load_sae
from extraction_kit.trainings import describe_sae

N_PLANTED, D_IN, K = 24, 16, 2
RECIPE = Recipe(d_sae=48, k=K, n_steps=300, n_rows=256, lr=5e-3)


@pytest.fixture(scope="module")
def planted():
    """Activations of `K` planted directions each, on a large mean and scale."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(N_PLANTED, D_IN, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    chosen = torch.rand(3000, N_PLANTED, generator=generator).topk(K, dim=1).indices
    sizes = 1 + torch.rand(3000, K, generator=generator)
    codes = torch.zeros(3000, N_PLANTED).scatter_(1, chosen, sizes)
    return directions, codes @ directions * 30 + 100


@pytest.fixture(scope="module")
def trained(planted):
    return train_topk_sae(planted[1], RECIPE)


def test_it_reconstructs_activations_that_it_has_not_seen(trained):
    assert trained.fvu < 0.15
    assert trained.dead_share < 0.25


def test_it_finds_the_planted_directions(planted, trained):
    directions, _ = planted
    cosine = directions @ trained.weights["W_dec"].T
    assert cosine.max(dim=1).values.median() > 0.9


def test_its_weights_are_in_the_units_of_the_activations(planted, trained):
    shuffled = torch.randperm(3000, generator=torch.Generator().manual_seed(RECIPE.seed))
    x = planted[1][shuffled[:300]]  # the tenth that was held out
    w = trained.weights
    pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    value, feature = pre.topk(K, dim=1)
    z = torch.zeros_like(pre).scatter_(1, feature, value.relu())
    x_hat = z @ w["W_dec"] + w["b_dec"]
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert float(fvu) == pytest.approx(trained.fvu, rel=1e-3)
    assert torch.allclose(w["W_dec"].norm(dim=1), torch.ones(RECIPE.d_sae), atol=1e-5)


def test_the_same_seed_gives_the_same_weights(planted):
    recipe = Recipe(d_sae=48, k=K, n_steps=5, n_rows=64)
    first, second = (train_topk_sae(planted[1], recipe).weights for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_is_accepted_as_a_training(tmp_path, trained):
    folder = tmp_path / "sae"
    hook = "blocks.9.hook_resid_post"
    save_sae(folder, trained, metadata={"hook_name": hook})
    spec = describe_sae(folder)
    assert (spec.architecture, spec.k, spec.d_in, spec.d_sae) == ("topk", K, D_IN, 48)
    assert spec.hook_name == hook
    load_sae(spec, device=torch.device("cpu"), dtype=torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae"]


def test_a_save_that_fails_leaves_no_folder(tmp_path, trained):
    with pytest.raises(TypeError):
        save_sae(tmp_path / "sae", trained, metadata={"hook_name": object()})
    assert not list(tmp_path.iterdir())


def test_progress_is_reported_after_each_step(planted):
    seen = []
    recipe = Recipe(d_sae=48, k=K, n_steps=3, n_rows=64)
    train_topk_sae(planted[1], recipe, lambda step, fvu: seen.append((step, fvu)))
    assert [step for step, _ in seen] == [1, 2, 3]
    assert json.dumps(seen)
