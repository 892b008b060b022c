"""Extractions at the edges: dead and dense SAEs, very long and very many contexts, masks."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from extraction_kit.errors import BadModel, BadSae
from extraction_kit.extraction import extract
from extraction_kit.extraction.given import Given
from extraction_kit.results import DENSE, GROUPS, result_digest
from extraction_kit.testing import save_sae, save_sparsify, tiny_training
from extraction_kit.trainings import describe_training
from tests.unit.extraction.oracle import (
    CONFIG,
    SETTINGS,
    assert_examples,
    naive_activations,
    naive_result,
)

D_IN, D_SAE, K = 16, 48, 6
REPORT = replace(SETTINGS, preflight="report")  # for SAEs that explain nothing
EMBEDDING = "blocks.0.hook_resid_pre"
PEAK = 50  # a token that occurs once in what is very long
N_SPECIAL = 4
DOCUMENTS = CONFIG.replace(packing="document")


@pytest.fixture
def training_with(tiny, tmp_path):
    """Return a function that gives a training whose SAE has changed weights."""

    def make(architecture, *, k=None, **changed):
        config = json.loads((tiny.saes[architecture] / "cfg.json").read_text())
        weights = load_file(tiny.saes[architecture] / "sae_weights.safetensors")
        if k is not None:
            config["k"] = k
        sae = save_sae(tmp_path / "sae", config, weights | changed)
        return describe_training("changed", sae=sae, model=tiny.model)

    return make


def assert_naive(found, training, corpus, config):
    """Compare a result with the oracle."""
    columns, histogram, peaks, quality = naive_result(training, corpus, config)
    for name in ("n_active", "n_contexts"):
        assert found.features[name].tolist() == columns[name]
    for name in ("sum_act", "sum_sq_act"):
        np.testing.assert_allclose(found.features[name], columns[name], rtol=1e-4)
    np.testing.assert_array_equal(found.histograms, histogram)
    assert_examples(found, peaks, config.top_k)
    assert found.summary["l0"] == pytest.approx(quality["l0"], rel=1e-12)
    assert found.summary["fvu"] == pytest.approx(quality["fvu"], rel=1e-5)


# --- dead and dense -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_an_sae_of_which_nothing_ever_fires(training_with, corpus_of, architecture):
    training = training_with(architecture, b_enc=torch.full((D_SAE,), -1e4))
    corpus = corpus_of(training, DOCUMENTS)
    with pytest.raises(BadSae):
        extract(training, corpus, config=DOCUMENTS, settings=SETTINGS)
    found = extract(training, corpus, config=DOCUMENTS, settings=REPORT)
    assert_naive(found, training, corpus, DOCUMENTS)
    assert found.summary["l0"] == 0
    assert found.summary["n_dead"] == D_SAE
    assert found.summary["n_dense"] == 0
    assert set(found.examples.group.tolist()) == {GROUPS.index("silent")}
    assert not found.features["max_act"].any()
    for name in ("max_context", "max_pos", "last_context"):
        assert set(found.features[name].tolist()) == {-1}


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu"])
def test_an_sae_of_which_everything_always_fires(training_with, corpus_of, architecture):
    k = D_SAE if architecture == "topk" else None
    training = training_with(architecture, k=k, b_enc=torch.full((D_SAE,), 200.0))
    corpus = corpus_of(training, DOCUMENTS)
    found = extract(training, corpus, config=DOCUMENTS, settings=REPORT)
    assert_naive(found, training, corpus, DOCUMENTS)
    assert set(found.features["n_active"].tolist()) == {corpus.n_tokens}
    assert found.summary["l0"] == D_SAE == found.summary["n_dense"]
    assert found.summary["n_dead"] == 0
    assert GROUPS.index("silent") not in found.examples.group


@pytest.mark.parametrize("compared", [True, False])
def test_activations_of_features_that_overflow_are_refused_with_their_place(
    tiny, corpus_of, tmp_path, compared
):
    weights = load_file(tiny.sae / "sae_weights.safetensors")
    weights["W_enc"] *= 3e37
    sae = save_sparsify(tmp_path / "sae", weights, k=K, transcode=not compared)
    training = describe_training(
        "huge", sae=sae, model=tiny.model, hook_name=tiny.hook_name
    )
    corpus = corpus_of(training, CONFIG)
    with pytest.raises(BadModel, match=r"reconstruction at .* not finite at context 0"):
        extract(training, corpus, config=CONFIG, settings=REPORT)


def test_figures_of_the_run_equal_a_naive_loop(tiny, corpus_of):
    training = describe_training("tiny", sae=tiny.saes["standard"], model=tiny.model)
    corpus = corpus_of(training, DOCUMENTS)
    found = extract(training, corpus, config=DOCUMENTS, settings=SETTINGS).summary
    rows = [
        (acts[valid[: len(x)]], x[valid[: len(x)]], x_hat[valid[: len(x)]])
        for _, valid, acts, x, x_hat in naive_activations(training, corpus)
    ]
    acts, x, x_hat = (np.concatenate(column) for column in zip(*rows, strict=True))
    error = ((x - x_hat) ** 2).sum()
    density = (acts > 0).mean(axis=0)
    assert 0 < (density > DENSE).sum() < D_SAE
    assert found["n_dense"] == (density > DENSE).sum()
    assert found["n_dead"] == (density == 0).sum()
    assert found["n_tokens"] == len(x)
    assert found["l0"] == pytest.approx((acts > 0).sum() / len(x), rel=1e-12)
    assert found["mse"] == pytest.approx(error / len(x), rel=1e-5)
    unexplained = error / ((x - x.mean(axis=0)) ** 2).sum()
    assert found["fvu"] == pytest.approx(unexplained, rel=1e-5)
    assert found["explained_variance"] == 1 - found["fvu"]


@pytest.mark.parametrize("k", [1, K, 22])
def test_l0_of_topk_is_k_or_as_many_as_are_positive(training_with, corpus_of, k):
    b_enc = torch.full((D_SAE,), -1.0)
    training = training_with("topk", k=k, b_enc=b_enc)
    corpus = corpus_of(training, DOCUMENTS)
    found = extract(training, corpus, config=DOCUMENTS, settings=REPORT)
    sae = load_file(training.sae.path + "/sae_weights.safetensors")
    n_positive = []
    for _, valid, _, x, _ in naive_activations(training, corpus):
        centred = x[valid[: len(x)]] - sae["b_dec"].double().numpy()
        pre = centred @ sae["W_enc"].double().numpy() + b_enc.double().numpy()
        n_positive.extend((pre > 0).sum(axis=1))
    # no token can have more than min(k, positive): so an equal sum means that each has it
    wanted = np.minimum(n_positive, k)
    assert found.features["n_active"].sum() == wanted.sum()
    assert found.summary["l0"] == wanted.sum() / len(wanted)
    assert min(n_positive) < 22 < max(n_positive)


# --- places and masks -----------------------------------------------------------------


def test_the_last_layer_is_measured_before_the_final_norm(tiny, corpus_of):
    last = "blocks.2.hook_resid_post"
    training = describe_training(
        "last", sae=tiny.saes["jumprelu"], model=tiny.model, hook_name=last
    )
    corpus = corpus_of(training, DOCUMENTS)
    found = extract(training, corpus, config=DOCUMENTS, settings=REPORT)
    assert found.provenance["hookpoint"]["equals_hidden_state"] is True
    assert_naive(found, training, corpus, DOCUMENTS)


def test_layers_that_return_tuples_and_tensors_give_the_same_digest(tiny, corpus_of):
    training = describe_training("tiny", sae=tiny.sae, model=tiny.model)
    corpus = corpus_of(training, CONFIG)
    plain = extract(training, corpus, config=CONFIG, settings=SETTINGS)
    model = AutoModelForCausalLM.from_pretrained(tiny.model).eval()
    layers, seen = model.model.layers, []

    def as_tuple(*args):
        seen.append(args[-1])
        return args[-1], "cache"

    layers[1].register_forward_hook(as_tuple)
    layers[2].register_forward_pre_hook(lambda _, args: (args[0][0], *args[1:]))
    found = extract(
        training, corpus, config=CONFIG, settings=SETTINGS, given=Given(model=model)
    )
    assert isinstance(seen[0], torch.Tensor)
    assert result_digest(found) == result_digest(plain)


def test_special_tokens_and_padding_are_in_no_numerator_and_no_denominator(tiny, corpus_of):
    training = describe_training("tiny", sae=tiny.sae, model=tiny.model)
    corpus = corpus_of(training, DOCUMENTS)
    found = extract(training, corpus, config=DOCUMENTS, settings=SETTINGS)
    n_words = sum(len(text.split()) for text in tiny.texts)  # a token each
    batch = corpus.read(0, corpus.n_contexts)
    assert batch.tokens.size > corpus.n_tokens_total > n_words  # pads, BOS
    assert found.summary["n_tokens"] == n_words
    assert found.features["n_active"].sum() == K * n_words
    assert found.histograms.sum() == K * n_words
    assert found.summary["l0"] == K
    assert found.examples.peak_token.min() >= N_SPECIAL
    # all features on: each token is counted by each feature, and no other is
    assert batch.valid.sum() == n_words
    assert not batch.valid[batch.tokens < N_SPECIAL].any()


def test_padding_on_any_side_gives_the_same_numbers(tiny, corpus_of, folder):
    training = describe_training("tiny", sae=tiny.sae, model=tiny.model)
    chance = np.random.default_rng(0)
    rows = [chance.integers(4, 64, n).tolist() for n in (3, 9, 11, 1, 7, 11, 5) * 3]
    pad = [[0] * (11 - len(row)) for row in rows]
    sources = {
        "none": rows,
        "left": np.array([no + row for no, row in zip(pad, rows, strict=True)]),
        "right": np.array([row + no for no, row in zip(pad, rows, strict=True)]),
    }
    digests = set()
    for source in sources.values():
        shutil.rmtree(folder / "workspace", ignore_errors=True)  # each prepared anew
        corpus = corpus_of(training, DOCUMENTS, source)
        found = extract(training, corpus, config=DOCUMENTS, settings=SETTINGS)
        assert_naive(found, training, corpus, DOCUMENTS)  # each context alone, unpadded
        digests.add(result_digest(found))
    assert len(digests) == 1


# --- very long, very many -------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path):
    """A training that reads the embeddings: what it finds depends on the token alone."""
    tiny = tiny_training(tmp_path)
    config = tiny.model / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"max_position_embeddings": 65_536}))
    # the K largest coordinates: explains enough for the preflight to try nothing else
    eye = torch.eye(D_IN)
    weights = {
        "W_enc": torch.cat([eye, -eye, 0 * eye], dim=1),
        "W_dec": torch.cat([eye, -eye, 0 * eye]),
        "b_enc": torch.zeros(D_SAE),
        "b_dec": torch.zeros(D_IN),
    }
    sae = save_sae(
        tmp_path / "sae", json.loads((tiny.sae / "cfg.json").read_text()), weights
    )
    return describe_training("embedded", sae=sae, model=tiny.model, hook_name=EMBEDDING)


def acts_by_token(training):
    """Return activations in float64, [token id, feature]."""
    weights = load_file(training.model.path + "/model.safetensors")
    sae = load_file(training.sae.path + "/sae_weights.safetensors")
    x = weights["model.embed_tokens.weight"].double().numpy()
    sae = {name: tensor.double().numpy() for name, tensor in sae.items()}
    h = (x - sae["b_dec"]) @ sae["W_enc"] + sae["b_enc"]
    out = np.argsort(-h, axis=1)[:, K:]
    np.put_along_axis(h, out, 0, axis=1)
    return np.maximum(h, 0)


def assert_by_token(found, training, corpus):
    """Compare counts and places with those of each token; return whose peak is `PEAK`."""
    acts, batch = acts_by_token(training), corpus.read(0, corpus.n_contexts)
    counted = np.bincount(batch.tokens[batch.valid], minlength=len(acts))
    np.testing.assert_array_equal(found.features["n_active"], counted @ (acts > 0))
    np.testing.assert_allclose(found.features["sum_act"], counted @ acts, rtol=1e-5)
    occurring = np.where(counted[:, None] > 0, acts, 0)
    for feature in np.flatnonzero(found.features["n_active"]):
        active = (acts[:, feature] > 0)[batch.tokens] & batch.valid
        contexts = np.flatnonzero(active.any(axis=1))
        assert found.features["n_contexts"][feature] == len(contexts)
        assert found.features["last_context"][feature] == contexts[-1]
        best = batch.valid & (batch.tokens == occurring[:, feature].argmax())
        place = [found.features[name][feature] for name in ("max_context", "max_pos")]
        assert place == np.argwhere(best)[0].tolist()
    return set(np.flatnonzero(occurring.argmax(axis=0) == PEAK).tolist())


def test_a_context_of_40_000_tokens(embedded, corpus_of):
    size, place = 40_000, 39_990
    config = CONFIG.replace(
        context_size=size, packing="document", prepend_bos=False,
        ignore_positions=(33_000, 39_991),
    )  # fmt: skip
    tokens = 4 + np.arange(size) % 40
    tokens[place] = PEAK
    corpus = corpus_of(embedded, config, [tokens.tolist(), tokens[:9].tolist()])
    found = extract(embedded, corpus, config=config, settings=SETTINGS)
    assert found.summary["n_tokens"] == size + 9 - 2
    peaked = assert_by_token(found, embedded, corpus)
    assert peaked
    rows = found.examples
    top = (rows.group == 0) & (rows.rank == 0) & np.isin(rows.feature, list(peaked))
    assert set(rows.pos[top].tolist()) == {place}
    assert set(rows.start[top].tolist()) == {place - config.window[0]}
    assert set(rows.peak_token[top].tolist()) == {PEAK}


def test_70_000_contexts(embedded, corpus_of):
    n = 70_000
    config = CONFIG.replace(context_size=3, packing="document", prepend_bos=False)
    chance = np.random.default_rng(0)
    tokens = chance.integers(4, 44, (n, 3))
    tokens[-2, 1] = PEAK
    corpus = corpus_of(embedded, config, tokens)
    settings = replace(SETTINGS, tile_tokens=3 * 2**13)
    found = extract(embedded, corpus, config=config, settings=settings)
    assert found.summary["n_contexts"] == n
    peaked = assert_by_token(found, embedded, corpus)
    assert {int(found.features["max_context"][each]) for each in peaked} == {n - 2}
    assert found.features["last_context"].max() == n - 1
    drawn = found.examples.context[found.examples.group == GROUPS.index("random")]
    assert (drawn > 2**16).any()
