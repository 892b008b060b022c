"""The compute tile: found before the first token, kept afterwards, and without effect."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from extraction_kit.config import TILE_TOKENS, TILE_TOKENS_OF_OTHERS
from extraction_kit.errors import BadSettings
from extraction_kit.extraction import extract
from extraction_kit.extraction.feed import Tile
from extraction_kit.extraction.rig import Rig
from extraction_kit.results import result_digest
from extraction_kit.sources.lanes import Lanes
from extraction_kit.sources.saes import SparseAutoencoder
from tests.devices import DEVICE
from tests.unit.extraction.oracle import CONFIG, SETTINGS
from tests.unit.extraction.stops import resumed


def test_other_tiles_give_the_same_counts_on_this_corpus(parts, undisturbed):
    training, corpus = parts()
    other = extract(
        training, corpus, config=CONFIG, settings=replace(SETTINGS, tile_tokens=12 * 17)
    )
    for column in ("n_active", "n_contexts", "max_context", "max_pos"):
        np.testing.assert_array_equal(other.features[column], undisturbed.features[column])
    np.testing.assert_allclose(
        other.features["max_act"], undisturbed.features["max_act"], rtol=1e-5
    )


@pytest.fixture
def small_memory(monkeypatch):
    """Let the SAE have room for so many rows."""
    normalize = SparseAutoencoder.normalize

    def limited(rows):
        def with_so_much(self, x):
            if len(x) > rows:
                raise torch.OutOfMemoryError
            return normalize(self, x)

        monkeypatch.setattr(SparseAutoencoder, "normalize", with_so_much)

    return limited


AUTO = replace(SETTINGS, tile_tokens=None)
USUAL = TILE_TOKENS.get(torch.device(DEVICE).type, TILE_TOKENS_OF_OTHERS)


def test_a_tile_that_nobody_chose_is_halved_until_it_fits(parts, small_memory):
    training, corpus = parts()
    whole = extract(training, corpus, config=CONFIG, settings=AUTO)
    assert whole.provenance["fingerprint"]["tile_contexts"] == USUAL // 12
    small_memory(rows=60)
    halved = extract(training, corpus, config=CONFIG, settings=AUTO)
    assert halved.provenance["fingerprint"]["tile_contexts"] == 5  # 85, 42, 21, 10, 5
    chosen = replace(SETTINGS, tile_tokens=60)
    same = extract(training, corpus, config=CONFIG, settings=chosen)
    assert result_digest(halved) == result_digest(same)


def test_a_tile_is_halved_where_the_one_queued_behind_it_does_not_fit_beside_it(
    parts, monkeypatch
):
    computed, live = Rig._computed, weakref.WeakSet()

    def in_little_memory(rig, fed):
        if live and rig.tile > 5:
            raise torch.OutOfMemoryError
        tile = computed(rig, fed)
        live.add(tile)
        return tile

    monkeypatch.setattr(Tile, "__hash__", object.__hash__)  # its arrays have none
    monkeypatch.setattr(Rig, "_computed", in_little_memory)
    monkeypatch.setattr(Lanes, "ahead", 1)
    training, corpus = parts()
    halved = extract(training, corpus, config=CONFIG, settings=AUTO)
    assert halved.provenance["fingerprint"]["tile_contexts"] == 5


def test_a_resumed_run_keeps_the_tile_of_its_checkpoint(parts, stopped, undisturbed):
    found = resumed(parts, stopped, settings=AUTO)
    assert found.provenance["resumed_from_tokens"] > 0
    assert found.provenance["fingerprint"]["tile_contexts"] == 2
    assert result_digest(found) == result_digest(undisturbed)


def test_the_tile_is_not_changed_once_tokens_are_counted(parts, stopped, small_memory):
    small_memory(rows=12)
    with pytest.raises(BadSettings, match="does not fit into the memory"):
        resumed(parts, stopped, settings=AUTO)


def test_a_float32_encoder_beside_a_bfloat16_model_is_nearer_to_float32(parts):
    training, corpus = parts("jumprelu")
    found = {
        name: extract(training, corpus, config=CONFIG.replace(**dtypes), settings=SETTINGS)
        for name, dtypes in {
            "exact": {},
            "low": {"dtype": "bfloat16"},
            "mixed": {"dtype": "bfloat16", "sae_dtype": "float32"},
        }.items()
    }
    assert found["mixed"].provenance["fingerprint"]["sae_dtype"] == "float32"
    error = {
        name: np.abs(each.features["sum_act"] - found["exact"].features["sum_act"]).sum()
        for name, each in found.items()
    }
    assert 0 < error["mixed"] < error["low"]


def test_too_little_memory_says_which_setting_to_lower(parts, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(
        "extraction_kit.sources.saes.SparseAutoencoder.normalize", no_memory
    )
    training, corpus = parts()
    with pytest.raises(
        BadSettings, match=r"lower it, for example Settings\(tile_tokens=12\)"
    ):
        extract(training, corpus, config=CONFIG, settings=SETTINGS)
