"""An SAE folder is described exactly, or refused by the name of what is wrong."""

import json

import numpy as np
import pytest

from extraction_kit.errors import BadSae
from extraction_kit.trainings import describe_sae

THRESHOLD = {"threshold": np.ones(16, np.float32)}


def test_a_v6_topk_folder_is_described(write_sae):
    folder = write_sae()
    spec = describe_sae(folder)
    assert (spec.architecture, spec.k, spec.d_in, spec.d_sae) == ("topk", 4, 8, 16)
    assert spec.rescale_acts_by_decoder_norm
    assert spec.apply_b_dec_to_input
    assert spec.normalize_activations == "none"
    assert spec.hook_name == "blocks.1.hook_resid_post"
    assert spec.metadata["model_name"] == "tiny"
    assert spec.path == str(folder)


def test_a_topk_sae_saved_as_standard_before_v6_is_a_topk_sae(write_sae):
    folder = write_sae(
        architecture="standard",
        k=None,
        metadata=None,
        rescale_acts_by_decoder_norm=None,
        normalize_activations=False,
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 5},
        hook_point="blocks.2.hook_resid_pre",
        model_name="gpt2",
    )
    spec = describe_sae(str(folder))
    assert (spec.architecture, spec.k) == ("topk", 5)
    assert spec.hook_name == "blocks.2.hook_resid_pre"
    assert spec.metadata["model_name"] == "gpt2"
    assert spec.normalize_activations == "none"
    assert not spec.rescale_acts_by_decoder_norm


def test_standard_and_jumprelu_folders_have_no_k(write_sae):
    standard = describe_sae(write_sae("s", architecture=None, k=None))
    jumprelu = describe_sae(write_sae("j", architecture="jumprelu", tensors=THRESHOLD))
    assert (standard.architecture, standard.k) == ("standard", None)
    assert (jumprelu.architecture, jumprelu.k) == ("jumprelu", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "gated"}, "gated.*standard, topk, jumprelu are supported"),
        ({"architecture": "batchtopk"}, "batchtopk.*save_inference_model"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"normalize_activations": "expected_average_only_in"}, "must be folded"),
        ({"normalize_activations": True}, "must be folded"),
        ({"normalize_activations": "softmax"}, "softmax.*layer_norm"),
        ({"k": None}, "k=None"),
        ({"k": 17}, "k=17, more than d_sae=16"),
        ({"d_in": "8"}, "d_in='8'"),
        ({"d_sae": 32}, r"W_enc of shape \[8, 16\].*\[8, 32\]"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input='yes'"),
        ({"reshape_activations": "flatten"}, "flatten"),
        ({"metadata": {"hook_head_index": 3}}, "hook_head_index=3"),
        ({"tensors": {"b_enc": None}}, "no tensor b_enc"),
        ({"tensors": {"r_mag": np.ones(16, np.float32)}}, "r_mag"),
        ({"tensors": {"b_enc": np.ones(16, np.int32)}}, "I32"),
        ({"tensors": {"scaling_factor": np.full(16, 2, np.float32)}}, "scaling_factor"),
        ({"architecture": "jumprelu"}, "no tensor threshold"),
        (
            {"architecture": "jumprelu", "tensors": {"log_threshold": np.ones(16, "f4")}},
            "training checkpoint",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value))[:40],
)
def test_what_is_not_understood_is_refused_by_name(write_sae, changes, said):
    folder = write_sae(**changes)
    with pytest.raises(BadSae, match=said):
        describe_sae(folder)


def test_a_scaling_factor_of_ones_changes_nothing_and_is_accepted(write_sae):
    assert describe_sae(write_sae(tensors={"scaling_factor": np.ones(16, np.float32)}))


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_torn_weight_file_is_refused(write_sae, keep):
    folder = write_sae()
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(BadSae, match="torn or not a safetensors file"):
        describe_sae(folder)


def test_missing_and_torn_files_are_named(write_sae, tmp_path):
    with pytest.raises(BadSae, match="is not a folder"):
        describe_sae(tmp_path / "nowhere")
    folder = write_sae()
    (folder / "cfg.json").write_text('{"d_in": 8')
    with pytest.raises(BadSae, match=r"cfg\.json is not valid JSON"):
        describe_sae(folder)
    (folder / "cfg.json").write_text("[1]")
    with pytest.raises(BadSae, match="holds a list"):
        describe_sae(folder)
    (folder / "sae_weights.safetensors").unlink()
    (folder / "cfg.json").write_text("{}")
    with pytest.raises(BadSae, match=r"there is no .*sae_weights\.safetensors"):
        describe_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(BadSae, match=r"there is no .*cfg\.json"):
        describe_sae(folder)


def test_an_object_in_memory_is_refused_with_what_to_type():
    with pytest.raises(BadSae, match="save_inference_model"):
        describe_sae(object())


def test_a_folder_of_another_library_or_of_several_saes_is_recognised(write_sae, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "ae.pt").touch()
    with pytest.raises(BadSae, match="dictionary_learning"):
        describe_sae(foreign)
    write_sae()
    with pytest.raises(BadSae, match=r"several SAEs \(sae\)"):
        describe_sae(tmp_path)


def test_the_digest_covers_what_changes_the_activations_and_nothing_else(write_sae):
    digest = describe_sae(write_sae("a")).digest
    moved = describe_sae(write_sae("b", dtype="bfloat16", device="cuda")).digest
    other_k = describe_sae(write_sae("c", k=5)).digest
    bias = {"b_enc": np.ones(16, np.float32)}
    other_weights = describe_sae(write_sae("d", tensors=bias)).digest
    assert moved == digest
    assert len({digest, other_k, other_weights}) == 3


def test_the_spec_is_plain_json_apart_from_its_class(write_sae):
    metadata = describe_sae(write_sae()).metadata
    assert json.loads(json.dumps(dict(metadata))) == metadata
