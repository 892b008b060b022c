"""CE loss recovered equals a naive loop with hooks, for any tile, and can be interrupted."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.extraction import StopAfterCheckpoint, ce_loss, extract
from extraction_kit.extraction.ce_loss import COLUMNS, drawn
from extraction_kit.results import result_digest
from extraction_kit.sources.models import HookedModel
from extraction_kit.testing import (
    random_sae_weights,
    save_sae,
    save_sparsify,
)
from extraction_kit.trainings import describe_training
from extraction_kit.workbench import Workbench
from tests.devices import DEVICE

SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=36, preflight="report")
CONFIG = ExtractionConfig(
    context_size=12, packing="document", ignore_positions=(3,), n_ce_contexts=7
)
HOOK = "blocks.1.hook_resid_post"
LAYER_NORM = {"normalize_activations": "layer_norm"}


@pytest.fixture(scope="module")
def run(tiny, corpus_of):
    """Return a function that extracts, with the training and corpus used."""

    def extracted(sae, *, config=CONFIG, settings=SETTINGS, hook_name=None, **options):
        training = describe_training("t", sae=sae, model=tiny.model, hook_name=hook_name)
        corpus = corpus_of(training, config)
        result = extract(training, corpus, config=config, settings=settings, **options)
        return result, training, corpus

    return extracted


# --- the oracle -------------------------------------------------------------------------


def reconstruction(sae, w, x, *, normalise):
    """Return what the SAE makes of one row, in float64."""
    mean = x.mean() if normalise else 0.0
    std = (x - mean).std() + 1e-5 if normalise else 1.0
    h = ((x - mean) / std - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    kept = h.relu() * (h > w.get("threshold", torch.zeros(())))
    if sae.k:
        kept[h.argsort(descending=True)[sae.k :]] = 0
    return (kept @ w["W_dec"] + w["b_dec"]) * std + mean


def losses_of(model, block, tokens, valid, change):
    """Return the sum of -log p over the valid tokens, with rows of a block's output changed."""

    def replaced(_, __, output):
        x = output[0] if isinstance(output, tuple) else output
        new = x.clone()
        for pos in np.flatnonzero(valid):
            new[0, pos] = change(x[0, pos])
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(replaced)
    with torch.no_grad():
        scores = model(tokens[None]).logits[0].log_softmax(-1)
    handle.remove()
    following = [pos for pos in range(1, len(tokens)) if valid[pos]]
    return -sum(float(scores[pos - 1, tokens[pos]]) for pos in following), len(following)


def naive(training, corpus, n, *, layer=1, normalise=False):
    """Return the three losses and the tokens predicted, context by context, unpadded."""
    model = AutoModelForCausalLM.from_pretrained(training.model.path).double().eval()
    w = {name: t.double() for name, t in load_file(training.sae.file).items()}
    batch = corpus.read(0, corpus.n_contexts)
    ways = (
        lambda x: x,
        lambda x: reconstruction(training.sae, w, x, normalise=normalise),
        torch.zeros_like,
    )
    sums, n_tokens = [0.0, 0.0, 0.0], 0
    for context in drawn(corpus.n_contexts, n=n, seed=0):
        present = batch.present[context]
        tokens = torch.from_numpy(batch.tokens[context][present]).long()
        valid = batch.valid[context][present]
        for way, change in enumerate(ways):
            block = model.model.layers[layer]
            loss, predicted = losses_of(model, block, tokens, valid, change)
            sums[way] += loss
        n_tokens += predicted
    return [each / n_tokens for each in sums], n_tokens


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_it_equals_a_naive_loop_with_hooks(run, tiny, architecture):
    found, training, corpus = run(tiny.saes[architecture])
    assert corpus.n_contexts > 7
    (orig, sae, zero), n_tokens = naive(training, corpus, 7)
    summary = found.summary
    assert summary["n_ce_tokens"] == n_tokens > 20
    assert summary["ce_loss"] == pytest.approx(orig, rel=1e-5)
    assert summary["ce_loss_sae"] == pytest.approx(sae, rel=1e-4)
    assert summary["ce_loss_zero"] == pytest.approx(zero, rel=1e-5)
    assert len({round(each, 3) for each in (orig, sae, zero)}) == 3
    expected = (zero - sae) / (zero - orig)
    assert summary["ce_loss_recovered"] == pytest.approx(expected, rel=1e-3)
    assert found.provenance["ce_loss"]["unit"] == "nats per predicted token"


def test_the_normalisation_of_the_input_is_undone(run, tiny, tmp_path):
    config = json.loads((tiny.saes["standard"] / "cfg.json").read_text()) | LAYER_NORM
    sae = save_sae(tmp_path / "sae", config, random_sae_weights(config, seed=3))
    found, training, corpus = run(sae)
    (_, expected, _), _ = naive(training, corpus, 7, normalise=True)
    assert found.summary["ce_loss_sae"] == pytest.approx(expected, rel=1e-4)


def test_the_last_layer_can_be_replaced_too(run, tiny):
    found, training, corpus = run(tiny.sae, hook_name="blocks.2.hook_resid_post")
    (_, expected, zero), _ = naive(training, corpus, 7, layer=2)
    assert found.summary["ce_loss_sae"] == pytest.approx(expected, rel=1e-4)
    assert found.summary["ce_loss_zero"] == pytest.approx(zero, rel=1e-5)


def test_what_enters_a_layer_is_what_the_one_before_gives(run, tiny):
    out, _, _ = run(tiny.sae)
    into, _, _ = run(tiny.sae, hook_name="blocks.2.hook_resid_pre")
    for name in COLUMNS:
        assert into.summary[name] == pytest.approx(out.summary[name], rel=1e-6)


def test_an_sae_that_changes_nothing_recovers_everything(run, tmp_path):
    eye = torch.eye(16)
    weights = {"W_enc": torch.cat([eye, -eye], 1), "W_dec": torch.cat([eye, -eye], 0)}
    weights |= {"b_enc": torch.zeros(32), "b_dec": torch.zeros(16)}
    config = {"architecture": "standard", "d_in": 16, "d_sae": 32}
    config |= {"normalize_activations": "none", "metadata": {"hook_name": HOOK}}
    found, _, _ = run(save_sae(tmp_path / "sae", config, weights))
    assert found.summary["ce_loss_recovered"] == pytest.approx(1.0, abs=1e-5)


def test_a_transcoder_replaces_what_it_predicts(run, tmp_path):
    """One that writes nothing is the zero ablation of what it predicts."""
    weights = {"W_enc": torch.zeros(16, 48), "b_enc": -torch.ones(48)}
    weights |= {"W_dec": torch.zeros(48, 16), "b_dec": torch.zeros(16)}
    save_sparsify(tmp_path / "layers.1.mlp", weights, k=2, transcode=True)
    found, _, _ = run(tmp_path / "layers.1.mlp")
    assert found.summary["ce_loss_sae"] == found.summary["ce_loss_zero"]
    assert found.summary["ce_loss_sae"] != found.summary["ce_loss"]
    assert found.summary["ce_loss_recovered"] == 0


# --- which contexts ---------------------------------------------------------------------


def test_contexts_are_drawn_uniformly_and_more_of_them_hold_the_fewer():
    counts = np.zeros(50)
    for seed in range(400):
        ten = drawn(50, n=10, seed=seed)
        assert len(set(ten)) == 10
        assert (np.diff(ten) > 0).all()
        assert set(ten) <= set(drawn(50, n=11, seed=seed))
        counts[ten] += 1
    assert 40 < counts.min() <= counts.max() < 125  # 80 expected
    assert drawn(5, n=10, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_tiles_do_not_change_it(run, tiny):
    one, _, _ = run(tiny.sae, settings=replace(SETTINGS, tile_tokens=12))
    all_, _, _ = run(tiny.sae, settings=replace(SETTINGS, tile_tokens=12 * 50))
    for name in COLUMNS:
        assert one.summary[name] == pytest.approx(all_.summary[name], rel=1e-5), name


def test_the_seed_draws_others(run, tiny):
    first, _, _ = run(tiny.sae)
    other, _, _ = run(tiny.sae, config=CONFIG.replace(seed=1))
    assert first.summary["ce_loss"] != other.summary["ce_loss"]


def test_asking_for_it_is_another_run(run, tiny):
    _, training, corpus = run(tiny.sae)
    known = set()
    for n in (0, 7, 8):
        config = CONFIG.replace(n_ce_contexts=n)
        known.add(Workbench.content_key(None, training, corpus, config))
    assert len(known) == 3


# --- interrupted, left out, absent ------------------------------------------------------


def test_it_is_stopped_between_tiles_and_resumed_without_a_second_pass(run, tiny, tmp_path):
    undisturbed, _, _ = run(tiny.sae)
    seen = []

    def stop(progress):
        seen.append(progress.phase)
        if seen.count("finishing") == 3:
            raise StopAfterCheckpoint

    folders = {"content_key": "k", "checkpoints": tmp_path / "a1", "resume_from": tmp_path}
    with pytest.raises(StopAfterCheckpoint):
        run(tiny.sae, on_progress=stop, **folders)
    found, _, corpus = run(tiny.sae, **(folders | {"checkpoints": tmp_path / "a2"}))
    assert found.provenance["resumed_from_tokens"] == corpus.n_tokens
    for name in COLUMNS:
        assert found.summary[name] == undisturbed.summary[name]
    assert result_digest(found) == result_digest(undisturbed)


def test_nothing_is_loaded_for_it_unless_it_is_asked_for(run, tiny, monkeypatch):
    monkeypatch.setattr(HookedModel, "logits", None)
    found, _, _ = run(tiny.sae, config=CONFIG.replace(n_ce_contexts=0))
    assert [found.summary[name] for name in COLUMNS] == [None] * 5
    assert found.provenance["ce_loss"] == {"not_measured_because": "n_ce_contexts=0"}


def test_a_transcoder_without_a_known_target_says_why_it_is_absent(run, tmp_path):
    weights = {"W_enc": torch.randn(16, 48), "b_enc": torch.zeros(48)}
    weights |= {"W_dec": torch.randn(48, 16), "b_dec": torch.zeros(16)}
    save_sparsify(tmp_path / "sae", weights, k=2, transcode=True)
    found, _, _ = run(tmp_path / "sae", hook_name="blocks.1.mlp.hook_in")
    assert found.summary["ce_loss"] is None
    assert "where it writes" in found.provenance["ce_loss"]["not_measured_because"]


def test_the_middle_of_a_layer_is_absent_because_the_stream_passes_by_its_norm(run, tiny):
    found, _, _ = run(tiny.sae, hook_name="blocks.1.hook_resid_mid")
    assert found.summary["ce_loss_recovered"] is None
    assert "hook_resid_mid" in found.provenance["ce_loss"]["not_measured_because"]


def test_a_failure_costs_the_loss_and_not_the_run(run, tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(HookedModel, "logits", full)
    found, _, _ = run(tiny.sae)
    assert found.summary["ce_loss"] is None
    assert found.summary["n_dead"] is not None
    because = found.provenance["ce_loss"]["not_measured_because"]
    assert because.startswith("tile_tokens=36 does not fit into the memory")


def test_the_loss_of_equal_logits_is_that_of_guessing():
    tokens, valid = torch.arange(8).reshape(2, 4), torch.ones(2, 4, dtype=torch.bool)
    valid[0, 2] = False
    total = ce_loss.summed_loss(torch.zeros(2, 4, 64), tokens, valid)
    assert float(total) == pytest.approx(5 * math.log(64))
