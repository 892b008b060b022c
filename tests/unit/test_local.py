"""In this process: the numbers of a launch, for objects too, which stay as they were."""

import gc
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import extraction_kit as xk
from extraction_kit.catalog.publish import verify
from extraction_kit.corpora import prepare
from extraction_kit.errors import (
    BadConfig,
    BadModel,
    BadSae,
    BadSettings,
    BadTrainingId,
    ResultsDamaged,
)
from extraction_kit.extraction import extract
from extraction_kit.paths import Paths
from extraction_kit.results import result_digest
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_sae, describe_training

SETTINGS = xk.Settings(threads=1, device="cpu", tile_tokens=48)
CONFIG = xk.ExtractionConfig(context_size=12, top_k=4, window=(3, 2))
HOOK = "blocks.1.hook_resid_post"


class Sae(nn.Module):
    """As somebody may write one: counts, drops out, keeps a tensor, changes its argument."""

    def __init__(self, weights):
        super().__init__()
        self.weight = nn.ParameterDict(weights)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.dropout = nn.Dropout(0.5)
        self.kept = None

    def encode(self, x):
        x -= self.weight["b_dec"]
        self.seen += len(x)
        if self.kept is None and len(x) > 1:
            self.kept = torch.ones(16)
        return torch.relu(self.dropout(x @ self.weight["W_enc"] + self.weight["b_enc"]))

    def decode(self, f):
        scale = 1 if self.kept is None else self.kept
        return f @ self.weight["W_dec"] * scale + self.weight["b_dec"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_training(tmp_path_factory.mktemp("tiny"), n_documents=10)


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Temporary folders are made in here, so that what is left can be seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.fixture
def sae(tiny):
    return Sae(load_weights(describe_sae(tiny.saes["standard"])))


@pytest.fixture
def model(tiny):
    return AutoModelForCausalLM.from_pretrained(tiny.model, dtype="float32")


@pytest.fixture
def here(tiny):
    """Return `extract_here` with the usual arguments, which may be replaced."""

    def run(sae, **changes):
        usual = {"model": tiny.model, "corpus": tiny.corpus}
        usual |= {"config": CONFIG, "settings": SETTINGS}
        if not isinstance(sae, (str, Path)):
            usual["hook_name"] = HOOK
        return xk.extract_here(sae, **(usual | changes))

    return run


def launched_result(tiny, architecture, tmp_path):
    """Return what the engine finds when it loads all parts from files, as in a worker."""
    training = describe_training("t", sae=tiny.saes[architecture], model=tiny.model)
    corpus = prepare(
        tiny.corpus,
        tokenizer=training.tokenizer,
        config=CONFIG,
        paths=Paths(tmp_path / "ws", tmp_path / "ws"),
    )
    return extract(training, corpus, config=CONFIG, settings=SETTINGS)


# --- the numbers ----------------------------------------------------------------------


def test_a_folder_gives_the_digest_of_a_launch(here, tiny, tmp_path):
    expected = launched_result(tiny, "topk", tmp_path)
    found = here(tiny.saes["topk"])
    assert found._manifest()["result_digest"] == result_digest(expected)
    assert found.summary["fvu"] == pytest.approx(expected.summary["fvu"])


@pytest.mark.parametrize("loaded", [False, True], ids=["model by path", "model loaded"])
@pytest.mark.parametrize("kind", ["module", "pair of methods", "pair of functions"])
def test_an_object_gives_the_numbers_of_the_same_sae_in_a_folder(
    here, tiny, tmp_path, sae, model, kind, loaded
):
    expected = launched_result(tiny, "standard", tmp_path)
    given = {
        "module": sae,
        "pair of methods": (sae.encode, sae.decode),
        "pair of functions": (lambda x: sae.eval().encode(x), sae.decode),
    }[kind]
    options = {"model": model, "tokenizer": tiny.model} if loaded else {}
    found = here(given, **options)
    columns = found.features().fetchnumpy()
    assert columns["n_active"].sum() > 100
    for name in ("n_active", "n_contexts", "max_context"):
        np.testing.assert_array_equal(columns[name], expected.features[name])
    np.testing.assert_allclose(columns["max_act"], expected.features["max_act"], rtol=1e-5)
    assert found.summary["fvu"] == pytest.approx(expected.summary["fvu"], rel=1e-5)


def test_the_ce_loss_of_objects_is_that_of_files(here, tiny, sae, model):
    config = CONFIG.replace(n_ce_contexts=5)
    expected = here(tiny.saes["standard"], config=config).summary
    before = state_of(model)
    found = here(sae, model=model, tokenizer=tiny.model, config=config).summary
    assert_same_state(before, state_of(model))
    for name in ("ce_loss", "ce_loss_sae", "ce_loss_zero"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_it_reads_like_a_run(here, tiny):
    found = here(tiny.saes["topk"])
    for name in ("features", "examples", "windows", "show_examples", "histogram"):
        assert callable(getattr(xk.Run, name))
    feature = found.features().order("n_active DESC").fetchall()[0][0]
    best = found.examples(feature, k=2).fetchall()
    window = found.windows(feature, k=2)[0]
    assert len(best) == 2
    assert max(window.acts) == pytest.approx(window.act)
    assert len(window.tokens) == len(window.token_ids)
    assert found.windows(feature, group="random")
    n_active = found.features().fetchnumpy()["n_active"]
    assert found.histogram(feature).sum() == n_active[feature]
    assert window.tokens[0] in found.show_examples(feature)._repr_mimebundle_()["text/html"]
    assert found.provenance["hookpoint"]["hook_name"] == HOOK
    assert "48 features" in repr(found)


def test_a_corpus_of_a_workspace_is_taken_as_it_is(here, tiny, tmp_path, temporary):
    ws = xk.Workspace(tmp_path / "ws", settings=SETTINGS)
    ws.register_training("t", sae=tiny.sae, model=tiny.model)
    corpus = ws.corpus(tiny.corpus, training_id="t", config=CONFIG)
    found = here(tiny.sae, corpus=corpus)
    assert found._corpus() == corpus.path
    assert found.windows(0, k=1) is not None
    assert not list(temporary.rglob("contexts.parquet"))


# --- what is left ---------------------------------------------------------------------


def state_of(module):
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [each.training for each in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
        [len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()],
        [parameter.device for parameter in module.parameters()],
    )  # fmt: skip


def assert_same_state(before, after):
    assert before[0].keys() == after[0].keys()
    for name, tensor in before[0].items():
        assert torch.equal(tensor, after[0][name]), name
    assert before[1:] == after[1:]


def test_the_objects_are_left_as_they_were(here, tiny, sae, model):
    sae.train()
    sae.weight.eval()
    model.train()
    model.lm_head.requires_grad_(False)
    own = model.lm_head.register_forward_hook(lambda *_: None)
    before = state_of(sae), state_of(model)
    here(sae, model=model, tokenizer=tiny.model)
    assert_same_state(before[0], state_of(sae))
    assert_same_state(before[1], state_of(model))
    own.remove()
    assert not model.lm_head._forward_hooks
    with torch.no_grad():
        states = model(torch.arange(4, 20)[None], output_hidden_states=True).hidden_states
    assert len(states) == 4


def test_they_can_be_trained_afterwards(here, tiny, sae, model):
    here(sae, model=model, tokenizer=tiny.model)
    ids = torch.arange(4, 20)[None]
    model(ids, labels=ids).loss.backward()
    sae.decode(sae.encode(torch.randn(3, 16))).sum().backward()


def test_they_are_left_as_they_were_after_a_failure_too(here, sae):
    sae.train()
    sae.decode = lambda f: 1 / 0  # noqa: ARG005 - a mistake of the user's
    with pytest.raises(
        BadSae, match=r"decode of Sae object .* fails with ZeroDivisionError"
    ):
        here(sae)
    assert sae.training
    assert sae.dropout.training


def test_the_temporary_folder_goes_with_the_result_but_not_its_relations(
    here, tiny, temporary
):
    found = here(tiny.sae)
    assert len(list(temporary.iterdir())) == 1
    features, examples = found.features(), found.examples()
    expected = features.fetchall()
    del found
    gc.collect()
    assert list(temporary.iterdir()) == []
    assert features.filter("feature < 3").fetchall() == expected[:3]
    assert len(here(tiny.sae).examples().fetchall()) == len(examples.fetchall())


def test_a_folder_keeps_the_result(here, tiny, tmp_path, temporary):
    found = here(tiny.sae, folder=tmp_path / "kept")
    expected = found.features().fetchall(), found.windows(0)
    del found
    (tmp_path / "kept").rename(tmp_path / "moved")
    again = xk.LocalResult(tmp_path / "moved")
    assert (again.features().fetchall(), again.windows(0)) == expected
    assert verify(tmp_path / "moved" / "results") == []
    assert list(temporary.iterdir()) == []
    with pytest.raises(BadSettings, match=r"not empty.*xk\.LocalResult"):
        here(tiny.sae, folder=tmp_path / "moved")
    with pytest.raises(ResultsDamaged):
        xk.LocalResult(tmp_path)


def test_an_interrupt_leaves_nothing_behind(here, tiny, sae, model, temporary):
    sae.train()
    n_rows = []

    def encode(x):
        n_rows.append(len(x))
        if len(n_rows) == 6:
            raise KeyboardInterrupt
        return sae.encode(x)

    with pytest.raises(KeyboardInterrupt):
        here((encode, sae.decode), model=model.train(), tokenizer=tiny.model)
    assert list(temporary.iterdir()) == []
    assert model.training
    assert sae.training
    assert not any(each._forward_hooks for each in model.modules())


def test_only_the_call_imports_torch():
    code = (
        "import sys, extraction_kit as xk; xk.extract_here; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        (
            lambda x: x[:, 0],
            r"shape \[1\] of one of shape \[1, 16\]: \[1, 'd_sae'\] is needed",
        ),
        (lambda x: x.tolist(), "returns a list, a tensor is needed"),
        (
            lambda x: x @ torch.ones(9, 3),
            "fails with RuntimeError.*belong to this hook_name",
        ),
        (
            lambda x: torch.relu(x) - 1,
            "returns -1: activations must not be negative or NaN",
        ),
        (
            lambda x: x * float("nan"),
            "returns nan: activations must not be negative or NaN",
        ),
        (lambda x: torch.relu(x[:1]), r"returns \[1, 16\], a tensor of shape \[48, 16\]"),
    ],
    ids=["one row", "list", "other width", "negative", "NaN", "rows missing"],
)
def test_what_encode_may_not_return_is_refused(here, encode, said, temporary):
    with pytest.raises(BadSae, match=said):
        here((encode, lambda f: f))
    assert list(temporary.iterdir()) == []


def test_what_decode_may_not_return_is_refused(here):
    with pytest.raises(
        BadSae, match=r"shape \[1, 5\].*as wide as the activations at 'blocks"
    ):
        here((torch.relu, lambda f: f[:, :5]))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sae": 3}, BadSae, r"sae=int object: a folder, an object with encode\(x\)"),
        ({"hook_name": None}, BadSae, "does not say where it reads: pass hook_name="),
        ({"d_in": 8}, BadSae, r"d_in=8, .*fails with RuntimeError"),
        ({"d_sae": 47}, BadSae, r"shape \[1, 48\].*\[1, 47\] is needed"),
        ({"model": "loaded"}, BadModel, "does not bring its tokenizer: pass tokenizer="),
        (
            {"model": 3, "tokenizer": "x"},
            BadModel,
            "model=int object: a loaded transformers",
        ),
        ({"settings": xk.Settings(device="meta")}, BadSettings, "never moved"),
    ],
    ids=["no SAE", "no hook", "d_in", "d_sae", "no tokenizer", "no model", "device"],
)
def test_what_does_not_fit_is_refused(here, sae, model, changes, error, said):
    if changes.get("model") == "loaded":
        changes = {"model": model}
    with pytest.raises(error, match=said):
        here(changes.pop("sae", sae), **changes)


def test_sizes_of_a_folder_cannot_be_given(here, tiny):
    with pytest.raises(BadSae, match="d_sae=48: the files say it"):
        here(tiny.sae, d_sae=48)


def test_a_model_in_another_dtype_is_never_converted(here, tiny, sae, model):
    with pytest.raises(BadConfig, match="the model is in bfloat16, the config says"):
        here(sae, model=model.to(torch.bfloat16), tokenizer=tiny.model)


def test_registering_an_object_says_what_to_type_instead(tiny, sae, tmp_path):
    ws = xk.Workspace(tmp_path / "ws", settings=SETTINGS)
    with pytest.raises(
        BadSae, match="a worker cannot load an object of this notebook"
    ) as it:
        ws.register_training("x", sae=sae, model=tiny.model)
    for hint in ("sae=Sae object", "sae_spec.json", "factory=", "xk.extract_here"):
        assert hint in str(it.value)


# --- several at once ------------------------------------------------------------------


def test_objects_and_folders_at_several_hooks_give_what_each_gives_alone(here, tiny, sae):
    report = xk.Settings(threads=1, device="cpu", tile_tokens=48, preflight="report")
    saes = {"own": sae, "pair": (sae.encode, sae.decode), "file": tiny.saes["topk"]}
    hooks = {"own": HOOK, "pair": "blocks.0.hook_resid_post"}
    before = state_of(sae)
    found = here(saes, hook_name=hooks, settings=report)
    after = state_of(sae)
    assert_same_state(before, after)
    assert list(found) == list(saes)
    for name, each in found.items():
        alone = here(saes[name], hook_name=hooks.get(name), settings=report)
        digests = {one._manifest()["result_digest"] for one in (each, alone)}
        assert len(digests) == 1, name
        assert each.summary["fvu"] == alone.summary["fvu"]
        assert each.windows(0)[0].tokens == alone.windows(0)[0].tokens
        assert each._manifest()["training"]["training_id"] == name
    assert len({each._manifest()["result_digest"] for each in found.values()}) == 3


def test_a_folder_keeps_the_results_by_name(here, tiny, tmp_path, temporary):
    found = here(dict(tiny.saes), folder=tmp_path / "kept", hook_name=None)
    expected = found["topk"].windows(0)
    del found
    (tmp_path / "kept").rename(tmp_path / "moved")
    assert {each.name for each in (tmp_path / "moved").iterdir()} == {*tiny.saes, "_shared"}
    assert xk.LocalResult(tmp_path / "moved" / "topk").windows(0) == expected
    assert list(temporary.iterdir()) == []


def test_the_temporary_folder_goes_with_the_last_of_several(here, tiny, temporary):
    found = here(dict(tiny.saes), hook_name=None)
    last = found.pop("topk")
    del found
    gc.collect()
    assert last.windows(0)
    del last
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("saes", "changes", "error", "said"),
    [
        ({}, {}, BadSae, "at least one SAE is needed"),
        ({"a/b": "own"}, {}, BadTrainingId, "'a/b' cannot be used"),
        ({"one": "own", "two": 3}, {}, BadSae, "^two: sae=int object"),
        ({"one": "own", "two": "bad"}, {}, BadSae, r"^two: decode of .* shape \[1, 5\]"),
        ({"one": "file", "two": "own"}, {"hook_name": None}, BadSae, "^two: .*hook_name="),
        ({"one": "own", "two": "file"}, {"d_in": 16}, BadSae, "^two: d_in=16: the files"),
        (
            {"one": "own"},
            {"hook_name": {"tow": HOOK}},
            BadSae,
            "names 'tow', sae= names one",
        ),
    ],
    ids=["none", "name", "no SAE", "decode", "no hook", "d_in", "unknown name"],
)
def test_what_does_not_fit_names_the_sae(here, tiny, sae, saes, changes, error, said):
    known = {"own": sae, "file": tiny.sae, "bad": (torch.relu, lambda f: f[:, :5])}
    with pytest.raises(error, match=said):
        here({name: known.get(each, each) for name, each in saes.items()}, **changes)
