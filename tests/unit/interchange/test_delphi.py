"""Our folder read as Delphi's `LatentDataset` reads it (loader.py and utils.py, 3c2e1393)."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from extraction_kit.corpora import Corpus
from extraction_kit.errors import BadExport

MODULE = "model.layers.1"


class Cache:
    """What a `LatentDataset` holds after it was made: tokens of the first split, all latents."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.edges = sorted(
            tuple(int(each) for each in file.stem.split("_"))
            for file in folder.glob("*.safetensors")
        )
        self.tokens, self.latents, self.types = None, {}, set()
        for start, end in self.edges:
            data = load_file(folder / f"{start}_{end}.safetensors")
            self.types.add(data["locations"].dtype)
            where = data["locations"].astype(np.int64)
            where[:, 2] += start
            if self.tokens is None:
                self.tokens = data["tokens"].astype(np.int64)
            order = np.argsort(where[:, 2], kind="stable")
            where, acts = where[order], data["activations"][order]
            for latent in np.unique(where[:, 2]):
                mine = where[:, 2] == latent
                assert start <= latent <= end
                self.latents[int(latent)] = (where[mine], acts[mine])

    def split_of(self, latent):
        """Return the file of a latent, as `_build_selected` finds it by its boundaries."""
        bounds = [self.edges[0][0], *(end + 1 for _, end in self.edges)]
        bucket = np.digitize(latent, bounds)
        return bounds[bucket - 1], bounds[bucket] - 1

    def pooled(self, latent, width):
        """Return contexts by maximum with tokens and activations, as the constructor pools."""
        where, acts = self.latents[latent]
        flat = where[:, 0] * self.tokens.shape[1] + where[:, 1]
        context, inside = np.divmod(flat, width)
        starts = np.flatnonzero(np.diff(context, prepend=-1))  # `unique_consecutive`
        assert len(starts) == len(np.unique(context)), "places out of order"
        rows = np.zeros((len(starts), width), acts.dtype)
        rows[np.repeat(np.arange(len(starts)), np.diff([*starts, len(flat)])), inside] = (
            acts
        )
        order = np.argsort(-rows.max(1), kind="stable")
        return self.tokens.reshape(-1, width)[context[starts]][order], rows[order]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("delphi") / "latents"
    assert run.export.delphi(path, n_splits=5) == path
    return path


@pytest.fixture(scope="module")
def cache(exported):
    assert [each.name for each in exported.iterdir()] == [MODULE]  # each folder is a module
    return Cache(exported / MODULE)


def test_every_latent_is_found_in_the_split_that_its_number_names(cache):
    assert cache.edges == [(0, 8), (9, 18), (19, 27), (28, 37), (38, 47)]
    for latent in cache.latents:
        assert cache.split_of(latent) in cache.edges
        assert cache.split_of(latent)[0] <= latent <= cache.split_of(latent)[1]
    assert cache.types == {np.dtype(np.uint16)}


def test_the_cache_holds_every_activation_of_the_run(cache, run):
    features = run.features().df()
    assert set(cache.latents) == set(features[~features.dead].feature)
    for latent, (where, acts) in cache.latents.items():
        row = features.loc[latent]
        assert len(acts) == row.n_active
        assert len(np.unique(where[:, 0])) == row.n_contexts
        assert acts.astype(np.float64).sum() == pytest.approx(row.sum_act, rel=1e-12)
        assert acts.dtype == np.float32


def test_pooled_examples_are_the_runs_top_examples(cache, run, folder):
    width = cache.config["cache_ctx_len"]
    tokens, acts = cache.pooled(3, width)
    windows = run.windows(3, k=1000)
    assert [row.max() for row in acts] == [np.float32(each.act) for each in windows]
    corpus = Corpus.load(next((folder / "corpora").iterdir()))
    n_tok = len(windows[0].token_ids)
    assert tokens[0][:n_tok].tolist() == windows[0].token_ids
    assert set(tokens[0][n_tok:].tolist()) <= {corpus.pad_id}


def test_the_config_names_the_tokenizer_to_load(cache, tiny):
    assert cache.config["model_name"] == str(tiny.model)
    assert cache.config["extraction_kit"]["n_incomplete_latents"] == 0


def test_chosen_features_only_and_empty_splits_can_be_read(run, tmp_path):
    path = run.export.delphi(tmp_path / "some", features=[12, 3], n_splits=4)
    assert set(Cache(path / MODULE).latents) == {3, 12}


def test_features_that_are_not_known_completely_are_refused(tiny, tmp_path):
    import extraction_kit as xk  # noqa: PLC0415 - beside its one use

    few = xk.extract_here(
        tiny.saes["topk"],
        model=tiny.model,
        corpus=tiny.corpus,
        config=xk.ExtractionConfig(
            context_size=16, n_tokens=1000, top_k=2, window=(2, 2), n_logits=0
        ),
        settings=xk.Settings(threads=1, device="cpu", tile_tokens=64),
    )
    with pytest.raises(BadExport, match=r"its examples hold .* incomplete=True"):
        few.export.delphi(tmp_path / "few")
    assert list(tmp_path.iterdir()) == []
    path = few.export.delphi(tmp_path / "few", incomplete=True)
    config = json.loads((path / MODULE / "config.json").read_text())
    assert 0 < config["extraction_kit"]["n_incomplete_latents"] <= 47


@pytest.mark.parametrize(
    "options",
    [
        {"n_splits": 0},
        {"n_splits": 49},
        {"n_splits": True},
        {"module": "a/b"},
        {"module": ".."},
    ],
    ids=str,
)
def test_what_makes_no_readable_cache_is_refused(run, tmp_path, options):
    with pytest.raises(BadExport):
        run.export.delphi(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []
