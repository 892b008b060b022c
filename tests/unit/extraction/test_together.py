"""Several SAEs in one pass: each gets what it gets alone, and the model runs once."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.errors import BadModel, BadSae, CheckpointUnusable
from extraction_kit.extraction import StopAfterCheckpoint, extract, extract_together
from extraction_kit.extraction.given import Given
from extraction_kit.extraction.rig import Rig
from extraction_kit.paths import Paths
from extraction_kit.results import result_digest
from extraction_kit.sources.models import HookedModel
from extraction_kit.testing import random_sae_weights, save_sparsify, tiny_training
from extraction_kit.trainings import describe_training
from tests.devices import DEVICE

# SAEs of random weights explain nothing: the preflight would refuse them, rightly.
SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=36, preflight="report")
PACKED = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
CONFIGS = {"packed": PACKED, "documents": PACKED.replace(packing="document")}
TOGETHER = {
    "two at one hook": ("topk", "jumprelu"),
    "two at different hooks": ("standard", "early"),
    "a transcoder beside an SAE": ("transcoder", "topk"),
    "above and below": ("late", "transcoder", "early", "jumprelu"),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_training(tmp_path_factory.mktemp("tiny"), n_documents=8, n_layers=4)


@pytest.fixture(scope="module")
def trainings(tiny, tmp_path_factory):
    """Return trainings by id."""
    place = tmp_path_factory.mktemp("run") / "layers.1.mlp"
    weights = random_sae_weights({"architecture": "topk", "d_in": 16, "d_sae": 40}, seed=8)
    save_sparsify(place, weights, k=5, transcode=True)
    parts = {
        **{name: (folder, None) for name, folder in tiny.saes.items()},
        "early": (tiny.saes["topk"], "blocks.0.hook_resid_pre"),
        "late": (tiny.saes["jumprelu"], "blocks.2.hook_mlp_out"),
        "transcoder": (place, None),
    }
    return {
        name: describe_training(name, sae=sae, model=tiny.model, hook_name=hook_name)
        for name, (sae, hook_name) in parts.items()
    }


@pytest.fixture(scope="module")
def corpus(tiny, trainings, tmp_path_factory):
    """Return a function from a config to the corpus."""
    home = tmp_path_factory.mktemp("workspace")

    def prepared(config=PACKED):
        tokenizer = trainings["topk"].tokenizer
        paths = Paths(home=home, shared=home)
        return prepare(tiny.corpus, tokenizer=tokenizer, config=config, paths=paths)

    return prepared


@pytest.fixture(scope="module")
def alone(trainings, corpus):
    """Return a function that extracts one of them by itself, once per config."""
    known = {}

    def run(name, config=PACKED):
        key = name, config.packing, config.n_ce_contexts
        if key not in known:
            known[key] = extract(
                trainings[name], corpus(config), config=config, settings=SETTINGS
            )
        return known[key]

    return run


@pytest.fixture
def together(trainings, corpus):
    """Return a function that extracts some of them in one pass."""

    def run(*names, config=PACKED, settings=SETTINGS, **options):
        chosen = [trainings[name] for name in names]
        return extract_together(
            chosen, corpus(config), config=config, settings=settings, **options
        )

    return run


# --- the numbers ------------------------------------------------------------------------


def _cases():
    for packing in CONFIGS:
        for how, names in TOGETHER.items():
            usual = packing == "packed" or how == "above and below"
            marks = () if usual else pytest.mark.slow
            yield pytest.param(names, packing, id=f"{how}-{packing}", marks=marks)


@pytest.mark.parametrize(("names", "packing"), list(_cases()))
def test_each_gets_the_digest_that_it_gets_alone(together, alone, names, packing):
    config = CONFIGS[packing]
    for name, found in zip(names, together(*names, config=config), strict=True):
        expected = alone(name, config)
        assert result_digest(found) == result_digest(expected)
        assert found.features["n_active"].sum() > 50
        for column in ("sum_act", "sum_sq_act"):
            np.testing.assert_array_equal(found.features[column], expected.features[column])
        for figure in ("l0", "fvu", "mse", "n_dead", "n_tokens", "d_sae"):
            assert found.summary[figure] == expected.summary[figure]
        for told in ("hookpoint", "preflight", "reconstruction", "fingerprint"):
            assert found.provenance[told] == expected.provenance[told]
        assert set(found.provenance["together_with"]) == set(names) - {name}


def test_the_ce_loss_of_each_is_that_alone_and_the_whole_model_is_loaded_once(
    together, alone, monkeypatch
):
    config = PACKED.replace(n_ce_contexts=5)
    expected = {name: alone(name, config) for name in ("transcoder", "early")}
    loaded, load = [], Rig._load_model

    def counted(rig, *, whole=False):
        loaded.append(whole)
        return load(rig, whole=whole)

    monkeypatch.setattr(Rig, "_load_model", counted)
    found = together(*expected, config=config)
    diagnoses = 2  # of the preflight, whose FVUs are doubtful
    assert loaded == [False] + [True] * (diagnoses + 1)
    for name, each in zip(expected, found, strict=True):
        for figure in ("ce_loss", "ce_loss_sae", "ce_loss_zero", "n_ce_tokens"):
            assert each.summary[figure] == expected[name].summary[figure] is not None


# --- one pass ---------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("topk",), *TOGETHER.values()], ids=len)
def test_the_model_runs_once_per_tile(together, monkeypatch, names):
    phase, n_runs, n_tiles = [""], 0, 0
    run = HookedModel._run

    def counted(*args, **options):
        nonlocal n_runs
        n_runs += phase[0] == "extracting"
        return run(*args, **options)

    def on_progress(progress):
        nonlocal n_tiles
        n_tiles += progress.phase == "extracting" and progress.n_contexts_done > 0
        phase[0] = progress.phase

    monkeypatch.setattr(HookedModel, "_run", counted)
    together(*names, on_progress=on_progress)
    assert n_runs == n_tiles > 4


@pytest.fixture
def rig(trainings, corpus):
    """Return a function that sets some of them up."""

    def make(*names):
        with torch.inference_mode():
            return Rig(
                [trainings[name] for name in names],
                corpus(),
                config=PACKED,
                settings=SETTINGS,
                threads=1,
                tell=lambda _: None,
                given=Given(),
            )

    return make


def test_layers_above_the_last_hookpoint_are_not_loaded(rig):
    assert rig("early", "topk").model.model.config.num_hidden_layers == 2
    assert rig("late", "early").model.model.config.num_hidden_layers == 3


def test_the_memory_for_blocks_of_one_sae_serves_all(rig):
    one, other = (station.sae for station in rig("topk", "late").stations)
    assert one._blocks is other._blocks


# --- interruption -----------------------------------------------------------------------


class Killed(BaseException):
    """Stands for what ends a process without a word."""


def stopper(after, error):
    """Return an ``on_progress`` that raises `error` after so many tiles."""
    seen = []

    def on_progress(progress):
        if progress.phase == "extracting" and progress.n_contexts_done:
            seen.append(progress)
            if len(seen) == after:
                raise error

    return on_progress


KEYS = {"topk": "one", "late": "two"}


def test_killed_and_resumed_gives_each_the_same_digest(together, alone, tmp_path):
    often = replace(SETTINGS, checkpoint_every_s=1e-9)
    stops = [stopper(4, Killed), stopper(3, StopAfterCheckpoint)]
    for attempt, stop in enumerate(stops, 1):
        with pytest.raises((Killed, StopAfterCheckpoint)):
            together(
                "topk", "late", content_keys=KEYS, settings=often, on_progress=stop,
                checkpoints=tmp_path / f"a{attempt}", resume_from=tmp_path,
            )  # fmt: skip
    found = together("topk", "late", content_keys=KEYS, resume_from=tmp_path)
    assert [each.provenance["content_key"] for each in found] == ["one", "two"]
    for name, each in zip(("topk", "late"), found, strict=True):
        assert each.provenance["resumed_from_tokens"] > 0
        assert result_digest(each) == result_digest(alone(name))


def test_a_checkpoint_continues_with_the_same_saes_only(together, tmp_path):
    with pytest.raises(StopAfterCheckpoint):
        together(
            "topk", "late", content_keys=KEYS, checkpoints=tmp_path / "a1",
            on_progress=stopper(2, StopAfterCheckpoint),
        )  # fmt: skip
    said = r"content_key: 'one\+two' then, 'two\+one' now"
    with pytest.raises(CheckpointUnusable, match=said):
        together("late", "topk", content_keys=KEYS, resume_from=tmp_path)
    with pytest.raises(CheckpointUnusable, match=r"'one\+two' then, 'one' now"):
        together("topk", content_keys=KEYS, resume_from=tmp_path)


def test_a_checkpoint_of_one_has_the_keys_it_always_had(together, tmp_path):
    for names in (("topk",), ("topk", "late")):
        together(*names, checkpoints=tmp_path / f"a{len(names)}")
    alone, both = (
        load_file(next((tmp_path / each).glob("*/*.safetensors"))) for each in ("a1", "a2")
    )
    assert "moments.n_active" in alone
    assert both.keys() == {f"{number}/{key}" for number in (0, 1) for key in alone}


# --- what is refused --------------------------------------------------------------------


def test_a_refusal_of_the_preflight_names_the_sae(together):
    refuse = replace(SETTINGS, preflight="refuse")
    together("topk", "standard", settings=refuse)
    with pytest.raises(BadSae, match=r"^transcoder: preflight of \d+ tokens: FVU"):
        together("topk", "transcoder", settings=refuse)
    with pytest.raises(BadSae, match=r"^preflight of"):
        together("transcoder", settings=refuse)


def test_parts_that_do_not_fit_name_the_sae(together, trainings, monkeypatch):
    wide = replace(trainings["late"].sae, d_in=8)
    monkeypatch.setitem(
        trainings, "wide", replace(trainings["late"], training_id="wide", sae=wide)
    )
    with pytest.raises(BadModel, match=r"^wide: .* is 16 wide, the SAE has d_in=8"):
        together("topk", "wide")


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_saes_of_two_models_or_tokenizers_are_refused(
    together, trainings, monkeypatch, what
):
    part = replace(getattr(trainings["late"], what), digest="other")
    other = replace(trainings["late"], **{what: part})
    monkeypatch.setitem(trainings, "late", other)
    with pytest.raises(BadModel, match=f"^late: its {what} .* is not the one of topk"):
        together("topk", "late")


def test_no_sae_and_one_name_twice_are_refused(together):
    with pytest.raises(BadSae, match="no SAE"):
        together()
    with pytest.raises(BadSae, match="'topk' is there twice"):
        together("topk", "late", "topk")


def test_a_model_that_overwrites_what_was_read_is_refused(rig, monkeypatch):
    listen = HookedModel._listen

    def overwritten(model, place, keep):
        def kept(activations):
            keep(activations)  # ends the pass at the last place
            activations.zero_()

        return listen(model, place, kept)

    monkeypatch.setattr(HookedModel, "_listen", overwritten)
    said = "^topk: what is at 'blocks.1.hook_resid_post' is changed in place"
    with pytest.raises(BadModel, match=said):
        rig("topk", "late")
