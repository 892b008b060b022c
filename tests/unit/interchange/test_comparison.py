"""Two runs side by side: of one SAE, of two, of checkpoints."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import extraction_kit as xk
from extraction_kit.catalog.asking import manifest_of
from extraction_kit.errors import (
    BadQuery,
    BadSae,
    ResultsDamaged,
    UnknownRun,
    UnknownTraining,
)
from extraction_kit.sources.matching import nearest, same

SETTINGS = xk.Settings(threads=1, device="cpu", tile_tokens=64)
COMPARE = (
    "import sys, extraction_kit as xk; a, b, home = sys.argv[1:];"
    "rows = xk.Workspace(home).compare(xk.LocalResult(a), xk.LocalResult(b));"
    "assert len(rows) == 48; assert 'torch' not in sys.modules"
)
CONFIG = xk.ExtractionConfig(context_size=16, n_tokens=1500, top_k=3, n_logits=0)


def extracted(tiny, sae, folder=None, **options):
    return xk.extract_here(
        sae,
        model=tiny.model,
        corpus=tiny.corpus,
        config=CONFIG,
        settings=SETTINGS,
        folder=folder,
        **options,
    )


@pytest.fixture
def ws(tmp_path):
    return xk.Workspace(tmp_path / "home")


@pytest.fixture(scope="module")
def other(tiny):
    """The run of another SAE of the same model."""
    return extracted(tiny, tiny.saes["standard"])


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """The run of a checkpoint of the topk SAE: rows 0 to 9 turned, row 10 gone."""
    folder = tmp_path_factory.mktemp("checkpoint") / "sae"
    shutil.copytree(tiny.saes["topk"], folder)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"][:10] += 0.5 * weights["W_dec"][:10].roll(1, dims=1)
    weights["W_dec"][10] = 0
    save_file(weights, folder / "sae_weights.safetensors")
    return extracted(tiny, folder)


@pytest.fixture(scope="module")
def shorter(tiny):
    """Another run of the SAE, on half of the tokens."""
    return extracted(tiny, tiny.saes["topk"])


def decoder(sae):
    return load_file(sae / "sae_weights.safetensors")["W_dec"].double().numpy()


def cosines(a, b):
    norm_a, norm_b = (np.linalg.norm(each, axis=1) for each in (a, b))
    return (a / np.maximum(norm_a, 1e-30)[:, None]) @ (
        b / np.maximum(norm_b, 1e-30)[:, None]
    ).T


@pytest.mark.parametrize("block_elements", [64, 1000, 2**24])
def test_the_nearest_are_those_of_all_cosines_whatever_the_blocks(block_elements):
    chance = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 12, generator=chance) for n in (77, 130))
    a[5], b[9] = 0, 0
    b[100] = b[20] * 3  # the same direction: the first counts
    whole = cosines(a.double().numpy(), b.double().numpy())
    index, cosine = nearest(a, b, device=torch.device("cpu"), block_elements=block_elements)
    alive = np.arange(77) != 5
    assert index[alive].tolist() == whole.argmax(axis=1)[alive].tolist()
    assert np.allclose(cosine, whole.max(axis=1), atol=1e-6)
    assert cosine[5] == 0
    assert 100 not in index
    assert np.allclose(same(a, b[:77]), np.diag(whole), atol=1e-6)


def test_one_sae_on_two_corpora_is_joined_by_feature(ws, run, shorter):
    both = ws.compare(run, shorter).df()
    assert both.feature.tolist() == list(range(48))
    first, second = (each.features().df() for each in (run, shorter))
    assert both.density_a.tolist() == first.density.tolist()
    assert both.max_act_b.tolist() == second.max_act.tolist()
    alive = ~(first.dead | second.dead)
    ratio = np.log2(second.density / first.density)
    assert np.allclose(both.log2_ratio[alive], ratio[alive])
    assert both.log2_ratio[~alive].isna().all()
    assert not (ws.home / "cache" / "matches").exists()  # no weights were read


def test_two_saes_of_one_model_are_paired_by_decoder_cosine(ws, run, other, tiny):
    both = ws.compare(run, other).df()
    whole = cosines(decoder(tiny.saes["topk"]), decoder(tiny.saes["standard"]))
    assert both.feature_a.tolist() == list(range(48))
    assert both.feature_b.tolist() == whole.argmax(axis=1).tolist()
    assert np.allclose(both.cosine, whole.max(axis=1), atol=1e-6)
    back = whole.argmax(axis=0)
    assert both.mutual.tolist() == (back[both.feature_b] == both.feature_a).tolist()
    assert 0 < both.mutual.sum() < 48
    mine = other.features().df()
    assert both.density_b.tolist() == mine.density[both.feature_b].tolist()


def test_checkpoints_are_joined_by_number_with_how_far_each_turned(ws, run, checkpoint):
    both = ws.compare(run, checkpoint, match="number").df()
    assert both.feature_b.tolist() == both.feature_a.tolist() == list(range(48))
    assert np.allclose(both.cosine[11:], 1, atol=1e-6)
    assert (both.cosine[:10] < 0.95).all()
    assert both.cosine[10] == 0
    assert "mutual" not in both


def test_the_feature_browser_shows_the_same_pairs(ws, run, other, checkpoint):
    def asked(browser, name, **more):
        answer = browser.answer(
            {"kind": "ask", "id": "1", "name": name, "rows": 48, **more}
        )
        assert answer["ok"], answer
        return answer["content"]

    both = ws.compare(run, other).df()
    browser = run.browse(7, compare=other)
    page = asked(browser, "open")["feature"]["other"]
    assert page["feature"] == both.feature_b[7]
    assert page["cosine"] == pytest.approx(both.cosine[7])
    assert page["mutual"] == both.mutual[7]
    listing = {"sort": "cosine", "measure": "cosine", "descending": True}
    rows = asked(browser, "list", listing=listing)["rows"]
    assert rows["feature_b"] == both.feature_b[rows["feature"]].tolist()
    assert rows["measure"] == sorted(rows["measure"], reverse=True)
    assert rows["density_b"] == pytest.approx(
        both.density_b[rows["feature"]].tolist(), rel=1e-4
    )
    facts = browser.facts()["compare"]
    assert (facts["matched"], facts["one_sae"], facts["one_lens"]) == (True, False, False)
    turned = run.browse(7, compare=checkpoint, match="number")
    assert not turned.facts()["compare"]["matched"]
    page = asked(turned, "open")["feature"]["other"]
    assert page["feature"] == 7
    assert 0 < page["cosine"] < 0.95


def test_the_weights_are_read_once_and_never_here(ws, run, other, tiny, tmp_path):
    ws.compare(run, other)
    moved = tiny.saes["standard"].rename(tmp_path / "away")
    try:
        # a process of its own, to see that it imports no torch
        command = [sys.executable, "-c", COMPARE, run.folder, other.folder, ws.home]
        subprocess.run(command, check=True)
        with pytest.raises(BadSae, match="decoders cannot be compared"):
            ws.compare(other, run)  # the other way round was never asked
    finally:
        moved.rename(tiny.saes["standard"])
    assert not list((ws.home / "cache" / "matches").glob(".*"))


def test_damaged_matches_are_found_again(ws, run, other):
    known = ws.compare(run, other).fetchall()
    (path,) = (ws.home / "cache" / "matches").glob(f"{_digest(run)}-{_digest(other)}-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ws.compare(run, other).fetchall() == known
    path.write_bytes(data[:100])
    assert run.browse(compare=other).facts()["compare"]["matched"]


def _digest(result):
    return manifest_of(result.results_folder)["training"]["sae"]["digest"][:24]


def test_what_cannot_be_compared_is_refused_with_the_reason(ws, run, other, tmp_path):
    with pytest.raises(BadQuery, match=r"match='cosine'.*'number'"):
        ws.compare(run, other, match="cosine")
    for name, change, words in (
        ("model", {"model": {"digest": "f" * 64}}, "different models"),
        ("width", {"sae": {"d_in": 17, "digest": "e" * 64}}, "16 and 17 wide"),
        ("size", {"sae": {"d_sae": 49, "digest": "d" * 64}}, "48 and 49 features"),
        ("custom", {"sae": {"architecture": "custom", "digest": "c" * 64}}, "your own"),
    ):
        folder = tmp_path / name
        shutil.copytree(run.folder, folder)
        path = folder / "results" / "manifest.json"
        manifest = json.loads(path.read_text())
        for part, values in change.items():
            manifest["training"][part] |= values
            manifest["training"]["sae"]["digest"] = values["digest"]
        path.write_text(json.dumps(manifest))
        with pytest.raises(BadQuery, match=words):
            ws.compare(run, xk.LocalResult(folder), match="number")


def with_training(run, folder, **changes):
    """Copy a result whose manifest says something else of its training."""
    shutil.copytree(run.folder, folder)
    path = folder / "results" / "manifest.json"
    manifest = json.loads(path.read_text())
    for part, values in changes.items():
        manifest["training"][part] |= values
    path.write_text(json.dumps(manifest))
    return xk.LocalResult(folder)


def test_objects_are_taken_for_one_sae_only_if_a_person_says_so(ws, run, other, tmp_path):
    nameless = {"sae": {"digest": "", "path": "an object"}}
    one = with_training(run, tmp_path / "one", **nameless)
    two = with_training(other, tmp_path / "two", **nameless)
    for match in ("auto", "decoder"):
        with pytest.raises(BadQuery, match=r"no identity.*type match='number'"):
            ws.compare(one, two, match=match)
    assert len(ws.compare(one, two, match="number")) == 48
    wider = with_training(other, tmp_path / "wider", sae=nameless["sae"] | {"d_sae": 49})
    with pytest.raises(BadQuery, match="48 features, an object with 49"):
        ws.compare(one, wider, match="number")


def test_of_two_models_that_were_objects_the_shapes_decide(ws, run, other, tmp_path):
    nameless = with_training(other, tmp_path / "same", model={"digest": ""})
    assert len(ws.compare(run, nameless)) == 48
    deeper = with_training(other, tmp_path / "deeper", model={"digest": "", "n_layers": 99})
    with pytest.raises(BadQuery, match="different models"):
        ws.compare(run, deeper)


def test_no_altered_number_is_compared(ws, run, tmp_path):
    folder = tmp_path / "flipped"
    shutil.copytree(run.folder, folder)
    path = folder / "results" / "features.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    for pair in ((run, xk.LocalResult(folder)), (xk.LocalResult(folder), run)):
        with pytest.raises(
            ResultsDamaged, match=r"flipped/results/features\.parquet has sha"
        ):
            ws.compare(*pair)


def test_unknown_runs_and_damaged_files_are_named(ws, run, tmp_path):
    with pytest.raises(UnknownRun, match="no run 'nope'"):
        ws.compare(run, "nope")
    folder = tmp_path / "torn"
    shutil.copytree(run.folder, folder)
    (folder / "results" / "features.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsDamaged, match=r"torn/results/features\.parquet"):
        ws.compare(run, xk.LocalResult(folder))


def test_a_comparison_outlives_its_runs(ws, run, tmp_path):
    folder = tmp_path / "gone"
    shutil.copytree(run.folder, folder)
    both = ws.compare(run, xk.LocalResult(folder))
    shutil.rmtree(folder)
    rows = both.filter("density_a > 0").aggregate("count(*)").fetchall()
    assert rows == [(47,)]


def test_trainings_are_found_under_their_names(tiny, tmp_path):
    settings = xk.Settings(redis_url="redis://127.0.0.1:1")  # nobody there: requested
    ws = xk.Workspace(tmp_path / "home", settings=settings)
    assert ws._ipython_key_completions_() == []
    ws.register_training("b-topk", sae=tiny.saes["topk"], model=tiny.model)
    ws.register_training("a-std", sae=tiny.saes["standard"], model=tiny.model)
    assert sorted(ws._ipython_key_completions_()) == ["a-std", "b-topk"]
    launched = ws.launch("b-topk", corpus=tiny.corpus, config=CONFIG)
    shelf = ws["b-topk"]
    assert shelf.training.sae.architecture == "topk"
    assert [each.run_id for each in shelf.runs] == [launched.run_id]
    assert "1 runs" in repr(shelf)
    assert repr(launched) in repr(shelf)
    assert ws["a-std"].runs == ()
    with pytest.raises(BadQuery, match="b-topk has no completed run"):
        shelf.latest  # noqa: B018 - asked for
    with pytest.raises(UnknownTraining, match=r"'nope'.*a-std, b-topk"):
        ws["nope"]
