"""Each usual mistake, made for real with a trained SAE, is refused by its name."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.demo.sae_training import (
    Recipe,
    collect_activations,
    load_hooked,
    save_sae,
    train_topk_sae,
)
from extraction_kit.errors import BadCorpus, BadSae
from extraction_kit.extraction import extract
from extraction_kit.paths import Paths
from extraction_kit.sources import preflight
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_model, describe_tokenizer, describe_training
from tests.devices import DEVICE

CONFIG = ExtractionConfig(context_size=16, top_k=4, window=(3, 2), n_tokens=2000)
SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=512)
HOOK = "blocks.1.hook_resid_post"
NORM_OF_BOS = 400.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(scope="module")
def tiny(folder):
    """A model as large ones are: BOS has an enormous norm, the stream a mean."""
    made = tiny_training(folder / "tiny", n_documents=400, n_layers=4)
    path = made.model / "model.safetensors"
    weights = load_file(path)
    embedding = weights["model.embed_tokens.weight"]
    embedding += 2 * torch.randn(16, generator=torch.Generator().manual_seed(0))
    embedding[1] *= NORM_OF_BOS / embedding[1].norm()
    save_file(weights, path, metadata={"format": "pt"})
    return made


@pytest.fixture(scope="module")
def corpus_of(folder, tiny):
    def make(config=CONFIG):
        return prepare(
            tiny.corpus,
            tokenizer=describe_tokenizer(tiny.model),
            config=config,
            paths=Paths.of(folder / "workspace", SETTINGS),
        )

    return make


@pytest.fixture(scope="module")
def train(folder, tiny, corpus_of):
    """Train an SAE on activations as `change` leaves them; save and return its folder."""

    def make(name, *, hook_name=HOOK, config=CONFIG, change=lambda x: x):
        path = folder / name
        if not path.exists():
            model = load_hooked(describe_model(tiny.model), hook_name)
            x = change(collect_activations(model, corpus_of(config), lambda _: None))
            recipe = Recipe(d_sae=96, k=8, n_steps=150, n_rows=256, lr=4e-3)
            save_sae(path, train_topk_sae(x, recipe), metadata={"hook_name": HOOK})
        return path

    return make


@pytest.fixture
def run(tiny, corpus_of, tmp_path):
    """Extract; `cfg` changes what the SAE's files say, `weights` what they hold."""

    def extracted(
        sae, *, cfg=None, weights=None, config=CONFIG, settings=SETTINGS, **options
    ):
        copy = tmp_path / "sae"
        copy.mkdir()
        raw = json.loads((sae / "cfg.json").read_text()) | (cfg or {})
        (copy / "cfg.json").write_text(json.dumps(raw))
        tensors = load_file(sae / "sae_weights.safetensors")
        save_file((weights or dict)(tensors), copy / "sae_weights.safetensors")
        training = describe_training("t", sae=copy, model=tiny.model, **options)
        return extract(training, corpus_of(config), config=config, settings=settings)

    return extracted


def test_a_trained_sae_at_its_place_passes_and_its_figures_are_kept(run, train):
    found = run(train("right")).provenance["preflight"]
    assert found["fvu"] < 0.3
    assert found["l0"] == pytest.approx(8, abs=0.5)
    assert found["likely_cause"] is None
    assert min(found["tried"].values()) > 0.7 * found["fvu"]
    assert found["n_tokens"] == pytest.approx(512, abs=64)


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_a_wrong_layer_is_named_with_the_right_one(run, train, layer):
    hook_name = f"blocks.{layer}.hook_resid_post"
    with pytest.raises(BadSae) as refusal:
        run(train("right"), hook_name=hook_name)
    said = str(refusal.value)
    right = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_pre")  # the same tensor
    assert "Likely cause: wrong layer" in said
    assert any(f"Register it with hook_name={name!r}" in said for name in right)
    assert f"reads at {hook_name!r}" in said


def test_a_layer_that_contradicts_the_files_is_compared_with_theirs_whatever_the_fvu(
    run, train, monkeypatch
):
    monkeypatch.setattr(
        preflight, "DOUBTFUL_FVU", 10.0
    )  # as where a neighbour explains much
    with pytest.raises(BadSae, match="Likely cause: wrong layer"):
        run(train("right"), hook_name="blocks.0.hook_resid_post")


def test_a_norms_output_instead_of_the_residual_stream_is_a_wrong_place(run, train):
    with pytest.raises(BadSae, match=r"Likely cause: wrong (place|layer)"):
        run(train("right"), hook_name="model.layers.1.post_attention_layernorm")


def rescaled(x):
    return x * (x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True))


def layer_normed(x):
    x = x - x.mean(dim=1, keepdim=True)
    return x / (x.std(dim=1, keepdim=True) + 1e-5)


@pytest.mark.parametrize(
    ("way", "change"),
    [("constant_norm_rescale", rescaled), ("layer_norm", layer_normed)],
)
def test_a_missing_normalisation_is_named(run, train, way, change):
    sae = train(way, change=change)
    with pytest.raises(
        BadSae, match=f"missing normalisation.*normalize_activations='{way}'"
    ):
        run(sae)


@pytest.mark.parametrize(
    ("way", "change"),
    [("constant_norm_rescale", rescaled), ("layer_norm", layer_normed)],
)
def test_the_right_normalisation_passes(run, train, way, change):
    sae = train(way, change=change)
    found = run(sae, cfg={"normalize_activations": way}).provenance["preflight"]
    assert found["fvu"] < 0.5


def test_a_scale_that_was_not_folded_is_named_with_its_value(run, train):
    def scaled(x):
        return x * (x.shape[1] ** 0.5 / x.norm(dim=1).mean())

    with pytest.raises(BadSae, match=r"missing normalisation.*here by \d\.\d+"):
        run(train("scaled", change=scaled))


def test_decoder_norms_folded_into_one_side_only_are_named(run, train):
    def folded(weights):
        norm = torch.linspace(2, 6, len(weights["W_dec"]))
        return weights | {"W_dec": (weights["W_dec"] * norm[:, None]).contiguous()}

    with pytest.raises(BadSae, match="folded weights, the decoder's norms"):
        run(train("right"), weights=folded)


def test_a_wrong_bias_is_named(run, train):
    def without_pre_bias(weights):
        """Move the bias that is taken from the input into the encoder: equal activations."""
        folded = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        return weights | {"b_enc": folded}

    with pytest.raises(BadSae, match=r"wrong bias.*apply_b_dec_to_input=False"):
        run(train("right"), weights=without_pre_bias)


def test_the_right_bias_passes(run, train):
    def without_pre_bias(weights):
        folded = weights["b_enc"] - weights["b_dec"] @ weights["W_enc"]
        return weights | {"b_enc": folded}

    found = run(
        train("right"), weights=without_pre_bias, cfg={"apply_b_dec_to_input": False}
    )
    assert found.provenance["preflight"]["fvu"] < 0.3


def test_a_bos_that_is_counted_is_named(run, train):
    config = CONFIG.replace(exclude_special_tokens=False)
    with pytest.raises(BadSae, match=r"Likely cause: BOS, BOS is counted.*exclude_special"):
        run(train("right"), config=config)


def test_a_wrong_layer_is_named_also_where_a_bos_is_counted(run, train):
    config = CONFIG.replace(exclude_special_tokens=False)
    with pytest.raises(BadSae, match=r"Likely cause: wrong layer.*on the same contexts"):
        run(train("right"), config=config, hook_name="blocks.3.hook_resid_post")


def test_a_missing_bos_is_tried(run, train):
    """How much it matters is the model's matter: here only its figure is looked at."""
    config = CONFIG.replace(prepend_bos=False)
    settings = replace(SETTINGS, preflight="report")
    tried = run(train("right"), config=config, settings=settings).provenance["preflight"]
    assert any(
        "BOS, the SAE was trained on contexts that" in name for name in tried["tried"]
    )


def test_another_models_sae_is_refused_without_a_wrong_guess(run, tiny):
    with pytest.raises(BadSae) as refusal:
        run(tiny.saes["jumprelu"], weights=lambda w: w | {"W_dec": -w["W_dec"]})
    assert "Is this the model that the SAE was trained on?" in str(refusal.value)
    assert "FVU" in str(refusal.value)


def test_an_sae_of_which_nothing_fires_is_refused(run, train):
    def silent(weights):
        return weights | {"b_enc": weights["b_enc"] - 1e6}

    with pytest.raises(BadSae, match="L0 0"):
        run(train("right"), weights=silent)


def test_reporting_goes_on_and_keeps_what_was_found(run, train):
    settings = replace(SETTINGS, preflight="report")
    found = run(
        train("right"), hook_name="blocks.3.hook_resid_post", settings=settings
    ).provenance["preflight"]
    assert "wrong layer" in found["likely_cause"]
    assert min(found["tried"].values()) < 0.7 * found["fvu"]


def test_a_corpus_of_another_tokenizer_is_refused(train, tiny, corpus_of):
    training = describe_training("t", sae=train("right"), model=tiny.model)
    corpus = replace(corpus_of(), tokenizer_digest="0" * 64)
    with pytest.raises(BadCorpus, match="another tokenizer"):
        extract(training, corpus, config=CONFIG, settings=SETTINGS)


def test_the_preflight_does_not_change_the_numbers(run, train):
    """The whole pass over the corpus, as the model itself and the SAE's formula give it."""
    result = run(train("right"))
    assert result.summary["n_tokens"] == CONFIG.n_tokens
    assert int(result.features["n_active"].sum()) == pytest.approx(
        result.summary["l0"] * CONFIG.n_tokens
    )


def test_of_a_very_large_sae_few_tokens_are_tried_and_the_cause_is_named(
    run, train, monkeypatch
):
    monkeypatch.setattr(preflight, "_WORK", 1)  # as if each token took a second
    measured, rows = preflight._measure, []
    monkeypatch.setattr(
        preflight,
        "_measure",
        lambda sae, x, *rest, **named: (
            rows.append(len(x)) or measured(sae, x, *rest, **named)
        ),
    )
    with pytest.raises(BadSae, match="Likely cause: wrong layer"):
        run(train("right"), hook_name="blocks.3.hook_resid_post")
    whole, *tried = rows
    assert whole == 512
    assert max(tried) == 64


def test_the_larger_the_sae_the_fewer_tokens_are_tried(train, tiny):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    small = describe_training("t", sae=train("right"), model=tiny.model).sae

    def n_tried(d_sae, device):
        return preflight._n_tried(replace(small, d_in=512, d_sae=d_sae), device)

    assert [n_tried(d_sae, cpu) for d_sae in (8192, 2**18, 2**20, 2**22)] == [
        512,
        256,
        64,
        64,
    ]
    assert n_tried(2**20, gpu) == 512
