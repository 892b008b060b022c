"""An SAE of the user's own code runs through the extraction, or is refused with its name."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.errors import BadSae
from extraction_kit.extraction import extract
from extraction_kit.paths import Paths
from extraction_kit.results import result_digest
from extraction_kit.sources import custom_sae, load_sae
from extraction_kit.sources.preflight import DOUBTFUL_FVU
from extraction_kit.testing import random_sae_weights, save_sae, tiny_training
from extraction_kit.trainings import describe_sae, describe_training

D_IN, D_SAE = 16, 48
HOOK = "blocks.1.hook_resid_post"
CODE = """
import torch

class Sae:
    def __init__(self, w):
        self.w = w
    def encode(self, x):
        x -= self.w["b_dec"]  # changes its argument, as careless code does
        return torch.relu(x @ self.w["W_enc"] + self.w["b_enc"]){scale}
    def decode(self, f):
        return f @ self.w["W_dec"] + self.w["b_dec"]

def make(weights):
    return Sae(weights)

def nothing(weights):
    return None

def fail(weights):
    return weights["missing"]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module and a folder that names it; `changes` change ``sae_spec.json``."""
    monkeypatch.syspath_prepend(tmp_path / "code")
    package = tmp_path / "code" / "my_saes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('describing never imports')")
    config = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE}
    weights = random_sae_weights(config, seed=5)

    def make(*, scale="", **changes):
        (package / "relu.py").write_text(CODE.replace("{scale}", scale))
        (tmp_path / "sae").mkdir(exist_ok=True)
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()},
            tmp_path / "sae" / "w.safetensors",
        )
        spec = {"factory": "my_saes.relu:make", "weights": "w.safetensors"}
        spec |= {"d_in": D_IN, "d_sae": D_SAE, "hook_name": HOOK} | changes
        (tmp_path / "sae" / "sae_spec.json").write_text(json.dumps(spec))
        return tmp_path / "sae"

    yield make
    for name in [each for each in sys.modules if each.startswith("my_saes")]:
        del sys.modules[name]


@pytest.fixture
def importable(tmp_path):
    """Let workers import the package, which describing must not do."""

    def allow():
        (tmp_path / "code" / "my_saes" / "__init__.py").write_text("")

    return allow


@pytest.fixture
def extracted(importable, tmp_path):
    """Extract with an SAE on a tiny model."""
    tiny = tiny_training(tmp_path / "tiny", n_documents=10)
    config = ExtractionConfig(context_size=12, top_k=4, window=(3, 2))

    def run(sae, **options):
        settings = Settings(threads=1, device="cpu", tile_tokens=48, **options)
        training = describe_training("t", sae=sae, model=tiny.model, hook_name=HOOK)
        importable()
        paths = Paths.of(tmp_path / "workspace", settings)
        corpus = prepare(
            tiny.corpus, tokenizer=training.tokenizer, config=config, paths=paths
        )
        return extract(training, corpus, config=config, settings=settings)

    return run


def test_it_gives_the_result_of_the_same_sae_in_a_known_format(
    write, extracted, tmp_path, monkeypatch
):
    monkeypatch.setattr(custom_sae, "ROWS_AT_ONCE", 7 * D_SAE)
    known = {"architecture": "standard", "d_in": D_IN, "d_sae": D_SAE}
    own = extracted(write())
    same = extracted(save_sae(tmp_path / "known", known, random_sae_weights(known, seed=5)))
    assert own.features["n_active"].sum() > 100
    np.testing.assert_array_equal(own.features["n_active"], same.features["n_active"])
    np.testing.assert_allclose(own.features["max_act"], same.features["max_act"], rtol=1e-5)
    assert own.summary["fvu"] == pytest.approx(same.summary["fvu"], rel=1e-5)
    assert "decoder_norm" not in own.features
    assert own.tables == {}
    assert "no decoder rows" in own.provenance["logits"]["absent_because"]
    assert "no decoder rows" in own.provenance["neighbours"]["decoder"]["absent_because"]
    assert len(result_digest(own)) == 64


def test_a_doubtful_one_is_not_tried_with_other_readings_of_its_weights(write, extracted):
    found = extracted(write(scale=" * 3"), preflight="report").provenance["preflight"]
    assert found["fvu"] > DOUBTFUL_FVU
    assert found["tried"]
    assert not [cause for cause in found["tried"] if "norms" in cause or "bias" in cause]


def test_the_source_of_its_module_is_part_of_the_digest(write):
    first = describe_sae(write())
    assert (first.architecture, first.factory) == ("custom", "my_saes.relu:make")
    assert describe_sae(write()).digest == first.digest
    assert describe_sae(write(scale=" * 2")).digest != first.digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factory": "my_saes.relu"}, "'module:function' is needed"),
        ({"factory": "my_saes.relu:"}, "'module:function' is needed"),
        ({"factory": 3}, "factory=3"),
        ({"factory": "my_saes.none:make"}, r"no Python module 'my_saes\.none'"),
        ({"factory": "nowhere.at.all:make"}, "Install its package"),
        ({"weights": "w.pt"}, r"weights='w\.pt': a \.safetensors file"),
        ({"weights": "../sae/w.safetensors"}, "in the same folder"),
        ({"weights": "other.safetensors"}, r"there is no .*other\.safetensors"),
        ({"k": 5}, "has k beside factory"),
        ({"d_sae": None}, "d_sae=None"),
    ],
)
def test_what_a_worker_could_not_load_is_refused_before(write, changes, said):
    with pytest.raises(BadSae, match=said):
        describe_sae(write(**changes))


def load(folder):
    return load_sae(describe_sae(folder), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"factory": "my_saes.relu:absent"}, "failed with AttributeError"),
        ({"factory": "my_saes.relu:fail"}, "failed with KeyError"),
        ({"factory": "my_saes.relu:nothing"}, "a NoneType without encode and decode"),
    ],
)
def test_a_factory_that_fails_is_named(write, importable, changes, said):
    importable()
    with pytest.raises(BadSae, match=said):
        load(write(**changes))


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (" - 1", "returns -1: activations must not be negative"),
        (" * float('nan')", "returns nan"),
        ("[:, 1:]", r"returns \[3, 47\], a tensor of shape \[3, 48\]"),
        (".tolist()", "returns list"),
    ],
)
def test_what_its_encode_returns_is_checked(write, importable, scale, said):
    importable()
    sae = load(write(scale=scale))
    with pytest.raises(BadSae, match=said):
        sae._encoded(torch.ones(3, D_IN))
