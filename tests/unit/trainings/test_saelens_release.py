"""Releases of SAELens, with a stand-in for sae-lens that has its interface (6.54.12)."""

import json
import sys

import pytest

from extraction_kit import Workspace
from extraction_kit.errors import BadSae
from extraction_kit.trainings import saelens_release

RELEASE, SAE_ID = "tiny-res", "blocks.1.hook_resid_post"
STAND_IN = """
import shutil, sys
from pathlib import Path

class SAE:
    @classmethod
    def from_pretrained(cls, release, sae_id, device="cpu", dtype="float32",
                        force_download=False, converter=None, fold_W_dec_norm=False):
        Path({calls!r}).open("a").write(f"{{release}} {{sae_id}} {{device}}\\n")
        if release != "tiny-res":
            raise ValueError(f"Release {{release}} not found in pretrained SAEs directory")
        return cls()

    def save_model(self, path):
        shutil.copytree({sae!r}, path)
"""


@pytest.fixture
def calls(tiny, tmp_path, monkeypatch):
    """Install the stand-in; return the file in which it notes its calls."""
    (tmp_path / "site" / "sae_lens").mkdir(parents=True)
    code = STAND_IN.format(calls=str(tmp_path / "calls"), sae=str(tiny.sae))
    (tmp_path / "site" / "sae_lens" / "__init__.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "calls"


@pytest.fixture
def ws(tmp_path):
    return Workspace(tmp_path / "ws")


def test_a_release_is_registered_from_a_folder_that_is_saved_once(ws, tiny, calls):
    first = ws.register_training("x", sae=(RELEASE, SAE_ID), model=tiny.model)
    assert ws.register_training("x", sae=(RELEASE, SAE_ID), model=tiny.model) == first
    assert calls.read_text() == f"{RELEASE} {SAE_ID} cpu\n"
    assert first.sae.file.is_relative_to(ws.home / "trainings")
    assert sorted(path.name for path in first.sae.file.parent.iterdir()) == [
        "cfg.json", "sae_weights.safetensors",
    ]  # fmt: skip
    by_folder = ws.register_training("y", sae=tiny.sae, model=tiny.model)
    assert first.digest == by_folder.digest
    assert "sae_lens" not in sys.modules


def test_the_training_says_which_release_it_was(ws, tiny, calls):
    assert calls is not None
    ws.register_training("x", sae=(RELEASE, SAE_ID), model=tiny.model)
    metadata = ws.training("x").sae.metadata
    assert (metadata["release"], metadata["sae_id"]) == (RELEASE, SAE_ID)
    assert metadata["hook_name"] == SAE_ID


def test_what_sae_lens_refuses_is_told_in_its_own_words_and_leaves_nothing(ws, tiny, calls):
    with pytest.raises(BadSae, match=r"Release other not found.*Check both names"):
        ws.register_training("x", sae=("other", SAE_ID), model=tiny.model)
    assert calls.exists()
    assert list((ws.home / "trainings" / "saelens").iterdir()) == []


def test_without_sae_lens_it_says_what_to_install(ws, tiny, monkeypatch):
    monkeypatch.setattr(saelens_release.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BadSae, match=r"pip install 'extraction_kit\[saelens\]'"):
        ws.register_training("x", sae=(RELEASE, SAE_ID), model=tiny.model)


def test_only_a_pair_of_texts_is_a_release(ws, tiny):
    for other in (("a", "b", "c"), ("a", 1), [RELEASE, SAE_ID]):
        with pytest.raises(BadSae, match="object: a worker cannot load"):
            ws.register_training("x", sae=other, model=tiny.model)


def test_signing_keeps_what_the_config_says(tmp_path):
    (tmp_path / "cfg.json").write_text('{"d_in": 4, "metadata": {"model_name": "m"}}')
    saelens_release._sign(tmp_path / "cfg.json", "r", "s")
    assert json.loads((tmp_path / "cfg.json").read_text()) == {
        "d_in": 4,
        "metadata": {"model_name": "m", "release": "r", "sae_id": "s"},
    }
