"""No option is ignored: each one changes the identity and the result, or what is done."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import BadSae, BadSettings
from extraction_kit.extraction import extract, rig
from extraction_kit.results import GROUPS, result_digest
from extraction_kit.testing import save_sae
from extraction_kit.trainings import describe_training
from extraction_kit.workbench import Workbench
from tests.devices import DEVICE

CONFIG = ExtractionConfig(
    context_size=12, top_k=4, window=(0, 0), n_logits=2, n_neighbours=2, n_ce_contexts=2
)
SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=24)


def most(result, group):
    """Return the most examples that a feature has of a group."""
    rows = np.array(
        [GROUPS[each].rstrip("_1234") == group for each in result.examples.group]
    )
    return int(np.bincount(result.examples.feature[rows], minlength=1).max())


def drawn(result):
    """Return the contexts of the random examples."""
    rows = result.examples.group == GROUPS.index("random")
    return result.examples.context[rows].tolist()


def best_tokens(result):
    """Return the tokens at the peaks of the top examples."""
    rows = result.examples.group == GROUPS.index("top")
    return result.examples.peak_token[rows].tolist()


def n_rows(table):
    return lambda result: len(result.tables.get(table, {"rank": ()})["rank"])


# option: another value, and what it decides (None where any number may change)
OPTIONS = {
    "n_tokens": (100, lambda result: result.summary["n_tokens"]),
    "context_size": (16, lambda result: result.summary["context_size"]),
    "top_k": (2, lambda result: most(result, "top")),
    "per_band": (1, lambda result: most(result, "band")),
    "n_random": (2, lambda result: most(result, "random")),
    "n_silent": (1, lambda result: most(result, "silent")),
    "n_logits": (3, n_rows("logits")),
    "n_neighbours": (1, n_rows("neighbours")),
    "held_out_share": (0.7, lambda result: result.held_out.mean()),
    "n_ce_contexts": (5, lambda result: result.summary["ce_loss"]),
    "window": ((1, 2), lambda result: (result.examples.pos - result.examples.start).max()),
    "packing": ("document", lambda result: result.summary["n_contexts"]),
    "prepend_bos": (False, lambda result: result.summary["n_tokens_total"]),
    "exclude_special_tokens": (False, lambda result: result.examples.peak_token.min() < 4),
    "ignore_tokens": ((10,), lambda result: 10 in result.examples.peak_token),
    "ignore_positions": ((4,), lambda result: 4 in result.examples.pos),
    "dtype": ("bfloat16", lambda result: result.features["sum_act"].sum()),
    "sae_dtype": ("bfloat16", lambda result: result.features["sum_act"].sum()),
    "seed": (1, drawn),
    "dedupe": (True, best_tokens),
    "n_top_tokens": (2, n_rows("tokens")),
    "n_coactive": (2, n_rows("neighbours")),
}


def test_every_option_of_the_config_is_in_the_table():
    assert set(OPTIONS) == {field.name for field in fields(ExtractionConfig)}


@pytest.fixture(scope="module")
def extracted(parts):
    """Return a function that gives the content key and the result of a config."""
    bench = Workbench.__new__(Workbench)  # a key needs no workspace

    def run(config):
        training, corpus = parts(config=config)
        key = bench.content_key(training, corpus, config)
        return key, extract(training, corpus, config=config, settings=SETTINGS)

    return run


@pytest.fixture(scope="module")
def usual(extracted):
    return extracted(CONFIG)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_the_identity_and_the_result(extracted, usual, option):
    value, decides = OPTIONS[option]
    assert getattr(CONFIG, option) != value
    key, found = extracted(CONFIG.replace(**{option: value}))
    assert key != usual[0]
    assert decides(found) != decides(usual[1])


def test_the_same_config_is_the_same_run(extracted, usual):
    key, found = extracted(ExtractionConfig.from_dict(CONFIG.to_dict()))
    assert key == usual[0]
    assert result_digest(found) == result_digest(usual[1])


# --- settings of the engine -----------------------------------------------------------


@pytest.fixture
def under(parts):
    """Return a function that extracts under other settings."""

    def run(**changes):
        options = {
            name: changes.pop(name)
            for name in ("checkpoints", "on_progress")
            if name in changes
        }
        training, corpus = parts(config=CONFIG)
        settings = replace(SETTINGS, **changes)
        return extract(training, corpus, config=CONFIG, settings=settings, **options)

    return run


def test_tile_tokens_is_the_tile(under):
    tiles = [
        under(tile_tokens=n).provenance["fingerprint"]["tile_contexts"] for n in (12, 48)
    ]
    assert tiles == [1, 4]


def test_threads_are_those_of_torch(under):
    seen = set()
    found = under(threads=2, on_progress=lambda _: seen.add(torch.get_num_threads()))
    assert seen == {2}
    assert found.provenance["fingerprint"]["threads"] == 2


def test_device_is_where_it_runs(under):
    with pytest.raises(BadSettings, match="device='cuda:99' cannot be used"):
        under(device="cuda:99")


@pytest.fixture
def precision():
    """Return torch's function that lowers the precision of products; undone afterwards."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


def test_products_in_less_than_float32_are_told(under, precision):
    assert "float32_products" not in under().provenance["fingerprint"]
    precision("medium")
    told = under().provenance["fingerprint"]["float32_products"]
    assert told == ("tf32" if DEVICE == "cuda" else "bf16")


def test_device_map_reaches_the_model(under, monkeypatch):
    asked, load = [], rig.load_model

    def load_model(*args, device_map, **options):
        asked.append(device_map)
        return load(*args, **options)

    monkeypatch.setattr(rig, "load_model", load_model)
    found = under(device_map="balanced")
    assert set(asked) == {"balanced"}
    assert found.provenance["fingerprint"]["device_map"] == "balanced"


def test_checkpoint_every_s_decides_how_often_one_is_written(under, tmp_path):
    def n_written(every_s):
        saved = set()
        under(
            checkpoint_every_s=every_s,
            checkpoints=tmp_path / str(every_s),
            on_progress=lambda progress: saved.add(progress.checkpoint_tokens),
        )
        return len(saved - {None})

    assert n_written(1e-9) > n_written(3600.0)


def test_preflight_decides_what_becomes_of_a_doubtful_sae(tiny, parts, tmp_path):
    _, corpus = parts(config=CONFIG)
    config = {"architecture": "standard", "d_in": 16, "d_sae": 48}
    config |= {"metadata": {"hook_name": tiny.hook_name}}
    weights = {
        "W_enc": torch.ones(16, 48),
        "W_dec": torch.ones(48, 16),
        "b_enc": torch.full((48,), -1e4),
        "b_dec": torch.zeros(16),
    }
    sae = save_sae(tmp_path / "dead", config, weights)
    training = describe_training("dead", sae=sae, model=tiny.model)
    with pytest.raises(BadSae):
        extract(training, corpus, config=CONFIG, settings=SETTINGS)
    report = replace(SETTINGS, preflight="report")
    assert extract(training, corpus, config=CONFIG, settings=report).summary["n_dead"] == 48
