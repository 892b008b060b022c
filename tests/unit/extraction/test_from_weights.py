"""Logits and neighbours of a whole extraction: right, absent with a reason, and repeatable."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.extraction import extract, from_weights
from extraction_kit.results import TABLE_KEYS, result_digest
from extraction_kit.sources.products import Products
from extraction_kit.testing import (
    ARCHITECTURES,
    random_sae_weights,
    save_sparsify,
)
from extraction_kit.trainings import describe_training
from tests.devices import DEVICE

SETTINGS = Settings(threads=1, device=DEVICE, tile_tokens=96, preflight="report")
CONFIG = ExtractionConfig(context_size=12, top_k=4, window=(3, 2), n_tokens=200)
SMALL = 20 * 48  # blocks of a few features, in a matrix of 48 or 64 others


@pytest.fixture(scope="module")
def extracted(tiny, corpus_of):
    def run(sae="topk", *, hook_name=None, config=CONFIG, **options):
        place = tiny.saes.get(sae, sae)
        training = describe_training("t", sae=place, model=tiny.model, hook_name=hook_name)
        corpus = corpus_of(training, config)
        return extract(training, corpus, config=config, settings=SETTINGS, **options)

    return run


def naive_logits(tiny, decoder, n):
    """Return tokens and logits from the whole model's own norm and head, in float64."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model).double().eval()
    with torch.no_grad():
        alone = model.lm_head(model.model.norm(decoder * 1e4))
    logits = (alone * decoder.square().mean(1).sqrt()[:, None]).numpy()
    top = np.argsort(-logits, axis=1, kind="stable")[:, :n]
    bottom = np.argsort(logits, axis=1, kind="stable")[:, :n]
    token = np.stack([top, bottom], axis=1)
    return token, np.take_along_axis(logits[:, None], token, axis=2)


def naive_neighbours(decoder, n):
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T).fill_diagonal_(-2).numpy()
    other = np.argsort(-cosine, axis=1, kind="stable")[:, :n]
    return other, np.take_along_axis(cosine, other, axis=1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_number_equals_a_naive_one(tiny, extracted, architecture):
    config = CONFIG.replace(n_logits=7, n_neighbours=5)
    found = extracted(architecture, config=config)
    weights = load_file(tiny.saes[architecture] / "sae_weights.safetensors")
    decoder = weights["W_dec"].double()
    token, logits = naive_logits(tiny, decoder, 7)
    rows = found.tables["logits"]
    assert rows["token"].reshape(48, 2, 7).tolist() == token.tolist()
    np.testing.assert_allclose(rows["value"].reshape(48, 2, 7), logits, rtol=1e-5)
    assert rows["feature"].tolist() == np.repeat(np.arange(48), 14).tolist()
    assert rows["sign"].tolist() == ([0] * 7 + [1] * 7) * 48
    assert rows["rank"].tolist() == list(range(7)) * 96
    other, cosine = naive_neighbours(decoder, 5)
    rows = found.tables["neighbours"]
    assert rows["other"].reshape(48, 5).tolist() == other.tolist()
    np.testing.assert_allclose(rows["value"].reshape(48, 5), cosine, rtol=1e-6)
    assert set(rows["n_both"]) == {-1}
    said = json.loads(json.dumps(found.provenance))
    assert said["logits"] == {
        "absent_because": None,
        "final_norm": "model.norm",
        "folded": ["weight of the final norm"],
        "left_out": ["scale of the final norm", "biases"],
        "n_tokens_ranked": 64,
    }
    assert said["neighbours"]["decoder"] == {"absent_because": None}
    asked = "launch with ExtractionConfig"
    assert asked in said["neighbours"]["coactivation"]["absent_because"]
    assert asked in said["tokens"]["absent_because"]


def test_rows_are_sorted_by_their_keys(extracted):
    found = extracted()
    for name, columns in found.tables.items():
        keys = np.stack([columns[key] for key in TABLE_KEYS[name]], axis=1).tolist()
        assert keys == sorted(keys)


def test_there_are_no_more_than_there_are(extracted):
    found = extracted(config=CONFIG.replace(n_logits=100, n_neighbours=100))
    assert len(found.tables["logits"]["token"]) == 48 * 2 * 64
    assert len(found.tables["neighbours"]["other"]) == 48 * 47


def test_no_feature_is_its_own_neighbour_also_among_equal_and_empty_ones():
    decoder = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    decoder[10:30] = decoder[3] * torch.arange(1, 21)[:, None]
    decoder[35] = 0
    nowhere = {"device": torch.device(DEVICE), "tell": lambda: None}
    rows = from_weights.neighbours(decoder, 4, **nowhere)
    other, value = rows["other"].reshape(40, 4), rows["value"].reshape(40, 4)
    assert other[3].tolist() == [10, 11, 12, 13]
    assert other[11].tolist() == [3, 10, 12, 13]
    assert other[29].tolist() == [3, 10, 11, 12]
    assert other[35].tolist() == [0, 1, 2, 3]
    assert value[35].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("option", "table"), [("n_logits", "logits"), ("n_neighbours", "neighbours")]
)
def test_zero_leaves_a_table_out_and_says_so(extracted, option, table):
    found, full = extracted(config=CONFIG.replace(**{option: 0})), extracted()
    assert full.tables.keys() - found.tables.keys() == {table}
    said = found.provenance[table]
    reason = (said if table == "logits" else said["decoder"])["absent_because"]
    assert reason.startswith(f"{option}=0, launch with ExtractionConfig({option}=10)")
    assert result_digest(found) != result_digest(full)


def test_of_what_goes_elsewhere_there_are_neighbours_and_no_logits(folder, extracted):
    config = {"architecture": "topk", "d_in": 2 * 16, "d_sae": 48}
    sae = save_sparsify(folder / "mlp", random_sae_weights(config, seed=3), k=6)
    found = extracted(sae, hook_name="blocks.1.mlp.hook_post")
    assert found.tables.keys() == {"neighbours"}
    assert "does not go into the residual" in found.provenance["logits"]["absent_because"]


def test_a_transcoder_is_read_where_it_writes(tiny, folder, extracted):
    weights = random_sae_weights({"architecture": "topk", "d_in": 16, "d_sae": 48}, seed=8)
    known = save_sparsify(folder / "a" / "layers.1.mlp", weights, k=6, transcode=True)
    rows = extracted(known).tables["logits"]
    token, _ = naive_logits(tiny, weights["W_dec"].double(), 10)
    assert rows["token"].reshape(48, 2, 10).tolist() == token.tolist()
    moved = save_sparsify(folder / "moved", weights, k=6, transcode=True)
    found = extracted(moved, hook_name="layers.1.mlp.input")
    assert found.tables.keys() == {"neighbours"}
    assert "where it writes" in found.provenance["logits"]["absent_because"]


def small_blocks(monkeypatch):
    for name in ("logits", "neighbours"):
        whole = getattr(from_weights, name)

        def some(*args, whole=whole, **options):
            return whole(*args, block_elements=SMALL, **options)

        monkeypatch.setattr(from_weights, name, some)


def test_blocks_of_another_size_give_the_same_rows(extracted, monkeypatch):
    whole = extracted()
    small_blocks(monkeypatch)
    assert Products(torch.ones(48, 16), k=10, device=torch.device(DEVICE),
                    block_elements=SMALL).n_rows < 24  # fmt: skip
    found = extracted()
    for name, columns in whole.tables.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(found.tables[name][column], values)
    assert result_digest(found) == result_digest(whole)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("nth", [1, 2, 4, 6])
def test_killed_between_two_blocks_it_resumes_to_the_same_digest(
    extracted, monkeypatch, tmp_path, nth
):
    whole = extracted()
    small_blocks(monkeypatch)
    told = []

    def stop(progress):
        told.append(progress.phase)
        if told.count("finishing") > nth:
            raise Killed

    places = {"checkpoints": tmp_path / "a1", "resume_from": tmp_path}
    with pytest.raises(Killed):
        extracted(on_progress=stop, content_key="k", **places)
    phases = []
    found = extracted(
        on_progress=lambda progress: phases.append(progress.phase),
        content_key="k",
        checkpoints=tmp_path / "a2",
        resume_from=tmp_path,
    )
    assert phases.count("extracting") == 1, "nothing was computed twice"
    assert found.provenance["resumed_from_tokens"] == whole.summary["n_tokens"]
    assert result_digest(found) == result_digest(whole)
