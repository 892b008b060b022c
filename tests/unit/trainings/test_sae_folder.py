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
        ({"architecture": "abstopk"}, "abstopk.*standard, topk.*can be negative"),
        ({"architecture": "temporal"}, "temporal.*looking at others"),
        ({"architecture": "mlp"}, "architecture='mlp'.*choose an SAE"),
        ({"architecture": "gated"}, "no tensor b_gate"),
        ({"architecture": "batchtopk"}, "no tensor topk_threshold.*save_inference_model"),
        (
            {"architecture": "batchtopk", "tensors": {"topk_threshold": np.array(0.0)}},
            "topk_threshold=0: it was never estimated",
        ),
        ({"architecture": "transcoder", "d_out": 8}, "apply_b_dec_to_input=True"),
        ({"architecture": "transcoder", "apply_b_dec_to_input": False}, "d_out=None"),
        (
            {"architecture": "skip_transcoder", "d_out": 8, "apply_b_dec_to_input": False},
            "no tensor W_skip",
        ),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "tanh-relu"),
        ({"normalize_activations": "expected_average_only_in"}, "must be folded"),
        ({"normalize_activations": True}, "must be folded"),
        ({"normalize_activations": "softmax"}, "softmax.*layer_norm"),
        ({"k": None}, "k=None"),
        ({"k": 17}, "k=17, more than d_sae=16"),
        ({"d_in": "8"}, "d_in='8'"),
        ({"d_sae": 32}, r"W_enc of shape \[8, 16\].*need \[8, 32\]"),
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
    said = r"there is no .*sae_weights\.safetensors \(SAELens\) or sae\.safetensors"
    with pytest.raises(BadSae, match=said):
        describe_sae(folder)
    (folder / "cfg.json").unlink()
    with pytest.raises(BadSae, match=r"no SAE of a known format.*ae\.pt"):
        describe_sae(folder)


def test_an_object_in_memory_is_refused_with_what_to_type():
    with pytest.raises(BadSae, match="save_inference_model"):
        describe_sae(object())


def test_a_folder_of_several_saes_is_refused_with_their_names(write_sae, tmp_path):
    write_sae("run-one")
    with pytest.raises(BadSae, match=r"an SAE deeper inside \(run-one\).*pass one"):
        describe_sae(tmp_path)
    write_sae("two")
    with pytest.raises(BadSae, match=r"several SAEs \(run-one, two\)"):
        describe_sae(tmp_path)


def test_a_folder_in_two_formats_is_refused_until_the_file_is_named(write_sae):
    folder = write_sae()
    alone = describe_sae(folder)
    (folder / "ae.pt").write_bytes(b"")
    with pytest.raises(BadSae, match=r"several formats: type .*for SAELens or .*ae\.pt"):
        describe_sae(folder)
    named = describe_sae(folder / "sae_weights.safetensors")
    assert named.digest == alone.digest
    assert named.file == alone.file == folder / "sae_weights.safetensors"
    assert describe_sae(named.path) == named
    with pytest.raises(BadSae, match="no weight file of a known format"):
        describe_sae(folder / "cfg.json")


def test_the_digest_covers_what_changes_the_activations_and_nothing_else(write_sae):
    digest = describe_sae(write_sae("a")).digest
    moved = describe_sae(write_sae("b", dtype="bfloat16", device="cuda")).digest
    other_k = describe_sae(write_sae("c", k=5)).digest
    bias = {"b_enc": np.ones(16, np.float32)}
    other_weights = describe_sae(write_sae("d", tensors=bias)).digest
    assert moved == digest
    assert len({digest, other_k, other_weights}) == 3


def test_digests_of_registered_trainings_never_change(write_sae):
    found = {
        "topk": write_sae("a"),
        "standard": write_sae("b", architecture=None, k=None),
        "jumprelu": write_sae("c", architecture="jumprelu", tensors=THRESHOLD),
    }
    assert {name: describe_sae(folder).digest[:16] for name, folder in found.items()} == {
        "topk": "c38f714110bc1382",
        "standard": "5b82180f6176a414",
        "jumprelu": "e0e207e7773279f6",
    }


def test_a_transcoder_says_what_it_writes_and_where(write_sae):
    spec = describe_sae(
        write_sae(
            architecture="skip_transcoder",
            apply_b_dec_to_input=False,
            d_out=6,
            metadata={"hook_name": "blocks.1.hook_mlp_in", "hook_name_out": "out"},
            tensors={
                "W_dec": np.ones((16, 6), np.float32),
                "b_dec": np.ones(6, np.float32),
                "W_skip": np.ones((6, 8), np.float32),
            },
        )
    )
    assert (spec.architecture, spec.skip, spec.d_in, spec.d_out) == ("standard", True, 8, 6)
    assert (spec.reconstructs, spec.hook_name_out) == ("output", "out")
    assert not spec.apply_b_dec_to_input
    assert not spec.rescale_acts_by_decoder_norm


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_a_batchtopk_training_checkpoint_is_a_jumprelu_sae(write_sae, architecture):
    tensors = {"topk_threshold": np.array(1.5)}
    spec = describe_sae(write_sae(architecture=architecture, tensors=tensors))
    assert (spec.architecture, spec.k) == ("jumprelu", None)
    assert spec.named("threshold") == ("topk_threshold", False)


def test_the_spec_is_plain_json_apart_from_its_class(write_sae):
    metadata = describe_sae(write_sae()).metadata
    assert json.loads(json.dumps(dict(metadata))) == metadata
