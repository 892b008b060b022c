"""A model folder or Hub id is described without loading the model."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from extraction_kit.errors import BadModel
from extraction_kit.trainings import describe_model


def test_a_local_folder_is_described(write_model):
    folder = write_model()
    spec = describe_model(folder)
    assert (spec.model_type, spec.hidden_size, spec.n_layers) == ("llama", 8, 3)
    assert (spec.max_context, spec.vocab_size, spec.revision) == (64, 6, None)
    assert spec.source == spec.path == str(folder)


def test_gpt2_names_of_the_sizes_are_known(write_model):
    folder = write_model(
        model_type="gpt2",
        hidden_size=None,
        num_hidden_layers=None,
        max_position_embeddings=None,
        n_embd=8,
        n_layer=2,
        n_positions=32,
    )
    spec = describe_model(folder)
    assert (spec.hidden_size, spec.n_layers, spec.max_context) == (8, 2, 32)


def test_the_digest_covers_config_and_weights_but_not_who_saved_them(write_model):
    first = describe_model(write_model("a")).digest
    saved_again = describe_model(write_model("b", transformers_version="5.23.0")).digest
    other_config = describe_model(write_model("c", rms_norm_eps=1e-4)).digest
    folder = write_model("d")
    save_file({"embed": np.zeros((6, 8), np.float32)}, folder / "model.safetensors")
    other_weights = describe_model(folder).digest
    assert first == saved_again
    assert len({first, other_config, other_weights}) == 3


def test_parts_named_by_an_index_must_all_be_there(write_model):
    folder = write_model()
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"embed": "model-1.safetensors", "head": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadModel, match=r"no .*model-2\.safetensors"):
        describe_model(folder)
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    assert describe_model(folder).digest


def test_torn_weights_are_refused(write_model):
    folder = write_model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BadModel, match="torn"):
        describe_model(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model.safetensors", None, "no weights"),
        ("config.json", None, r"there is no .*config\.json"),
        ("config.json", "{", "not valid JSON"),
        ("config.json", '{"model_type": "llama"}', "hidden_size"),
        ("config.json", "{}", "model_type"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(write_model, name, text, said):
    path = write_model() / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(BadModel, match=said):
        describe_model(path.parent)


def test_gguf_and_objects_are_refused_with_what_to_type(tmp_path):
    (tmp_path / "model.gguf").touch()
    for source in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(BadModel, match=r"save_pretrained\(other_folder\)"):
            describe_model(source)
    with pytest.raises(BadModel, match=r"save_pretrained\(folder\)"):
        describe_model(object())


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _no_network)
    with pytest.raises(BadModel, match="there is no such folder"):
        describe_model(name)


def _no_network(*_, **__):
    pytest.fail("the Hub was asked")


def test_a_model_in_the_hub_cache_needs_no_network(write_model, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    shutil.copytree(write_model(), repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = describe_model("org/tiny")
    assert spec.revision == commit
    assert spec.source == "org/tiny"
    assert spec.path == str(repository / "snapshots" / commit)
    assert describe_model(f"org/tiny@{commit}").digest == spec.digest


def test_a_model_that_cannot_be_downloaded_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadModel, match=r"'org/absent'.*local folder"):
        describe_model("org/absent")


@pytest.mark.parametrize("name", ["models/tiny-ml", "./models/tiny-ml"])
def test_a_mistyped_folder_is_answered_with_the_model_beside_it(
    write_model, tmp_path, monkeypatch, name
):
    (tmp_path / "models" / "tiny-ms").mkdir(parents=True)  # holds no model
    shutil.copytree(write_model(), tmp_path / "models" / "tiny-lm")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadModel, match=r"Did you mean 'models/tiny-lm'\?"):
        describe_model(name)
