"""Every format is recognised by its files; what cannot be read rightly is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extraction_kit.errors import BadSae
from extraction_kit.testing import (
    save_dictionary,
    save_gemma_scope,
    save_llama_scope,
    save_sparsify,
)
from extraction_kit.trainings import describe_sae

D_IN, D_SAE, K = 8, 16, 4
WEIGHTS = {
    "W_enc": torch.ones(D_IN, D_SAE),
    "W_dec": torch.ones(D_SAE, D_IN),
    "b_enc": torch.zeros(D_SAE),
    "b_dec": torch.zeros(D_IN),
}
JUMPRELU = WEIGHTS | {"threshold": torch.ones(D_SAE)}
LINEAR = {
    "encoder.weight": torch.ones(D_SAE, D_IN),
    "encoder.bias": torch.zeros(D_SAE),
    "decoder.weight": torch.ones(D_IN, D_SAE),
    "b_dec": torch.zeros(D_IN),
}
NORMS = {"in": 4.0, "out": 4.0}
HOOK = "blocks.1.hook_resid_post"


def edit(path, **changes):
    """Change fields of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# --- sparsify -------------------------------------------------------------------------


def test_the_folder_of_sparsify_says_which_module_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "tiny", "ctx_len": 64, "lr": null}')
    spec = describe_sae(save_sparsify(tmp_path / "layers.5.mlp", WEIGHTS, k=K))
    assert (spec.format, spec.architecture, spec.k) == ("sparsify", "topk", K)
    assert spec.apply_b_dec_to_input
    assert (spec.hook_name, spec.reconstructs) == ("layers.5.mlp", "input")
    assert spec.metadata == {"model_name": "tiny", "context_size": 64}


@pytest.mark.parametrize(
    ("name", "module"),
    [("h.3", "h.3"), ("embed_tokens", "embed_tokens"), ("my sae", None), ("layers", None)],
)
def test_a_folder_of_sparsify_under_another_name_says_nothing(tmp_path, name, module):
    spec = describe_sae(save_sparsify(tmp_path / name, WEIGHTS, k=K))
    assert spec.hook_name == module


def test_a_transcoder_of_sparsify_reads_the_input_and_writes_the_output(tmp_path):
    weights = WEIGHTS | {"W_skip": torch.ones(D_IN, D_IN)}
    options = {"transcode": True, "skip_connection": True}
    spec = describe_sae(save_sparsify(tmp_path / "layers.5.mlp", weights, k=K, **options))
    assert (spec.hook_name, spec.hook_name_out) == ("layers.5.mlp.input", "layers.5.mlp")
    assert spec.skip
    assert not spec.apply_b_dec_to_input


def test_zero_latents_mean_a_multiple_of_the_input(tmp_path):
    folder = save_sparsify(tmp_path, WEIGHTS, k=K, num_latents=0, expansion_factor=2)
    assert describe_sae(folder).d_sae == D_SAE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"signed": True}, "signed=True.*can be negative"),
        ({"activation": "relu"}, "activation='relu': topk and groupmax"),
        ({"activation": "groupmax", "k": 3}, "k=3 groups, which do not divide d_sae=16"),
        ({"k": 0}, "k=0"),
        ({"k": 17}, "k=17, more than d_sae=16"),
        ({"num_latents": 0}, "expansion_factor=None"),
        ({"num_latents": 17}, r"encoder.weight of shape \[16, 8\].*\[17, 8\]"),
        ({"d_in": None}, "d_in=None"),
        ({"skip_connection": True}, "skip_connection=True and transcode=False"),
        ({"transcode": True, "skip_connection": True}, "no tensor W_skip"),
        ({"transcode": "yes"}, "transcode='yes'"),
        ({"transcode": True, "activation": None}, "until February 2025.*apply_b_dec"),
    ],
)
def test_what_sparsify_asks_for_and_we_cannot_give_is_refused(tmp_path, changes, said):
    edit(save_sparsify(tmp_path, WEIGHTS, k=K) / "cfg.json", **changes)
    with pytest.raises(BadSae, match=said):
        describe_sae(tmp_path)


@pytest.mark.parametrize("centred", [True, False])
def test_an_early_transcoder_is_read_as_its_owner_says(tmp_path, centred):
    folder = save_sparsify(tmp_path, WEIGHTS, k=K, transcode=True)
    edit(folder / "cfg.json", activation=None, apply_b_dec_to_input=centred)
    assert describe_sae(folder).apply_b_dec_to_input is centred


# --- dictionary_learning --------------------------------------------------------------


def dictionary(folder, state=None, **trainer):
    state = LINEAR if state is None else state
    given = {"dict_class": "BatchTopKSAE", "activation_dim": D_IN, "dict_size": D_SAE}
    if given | trainer == given or trainer.get("dict_class") == "BatchTopKSAE":
        state = {
            "k": torch.tensor(K, dtype=torch.int),
            "threshold": torch.tensor(0.5),
        } | state
        given["k"] = K
    return save_dictionary(folder, state, **(given | trainer))


def test_the_residual_stream_is_found_in_the_config_and_nothing_else_is_guessed(tmp_path):
    places = {
        "a": {"layer": 3, "submodule_name": "resid_post_layer_3"},
        "b": {"layer": 3, "submodule_name": "mlp_out_3"},
        "c": {"layer": 3, "submodule_name": None},
        "d": {},
    }
    found = {
        name: describe_sae(dictionary(tmp_path / name, dict_class="BatchTopKSAE", **place))
        for name, place in places.items()
    }
    assert found["a"].hook_name == "blocks.3.hook_resid_post"
    assert [found[name].hook_name for name in "bcd"] == [None] * 3
    assert found["a"].metadata["dict_class"] == "BatchTopKSAE"
    folder = tmp_path / "a"
    edit(folder / "config.json", buffer={"io": "in"})
    assert describe_sae(folder).hook_name is None


@pytest.mark.parametrize("name", ["IdentityDict", "CrossCoder", "MyOwn", None])
def test_an_unknown_class_is_refused_with_those_that_are_known(tmp_path, name):
    dictionary(tmp_path, dict_class=name)
    with pytest.raises(BadSae, match=f"dict_class={name!r}: AutoEncoder, .*BatchTopKSAE"):
        describe_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "trainer", "said"),
    [
        ({"threshold": torch.tensor(-1.0)}, {}, "threshold=-1: it was never estimated"),
        ({"threshold": torch.tensor(torch.nan)}, {}, "threshold=nan"),
        ({"threshold": torch.ones(D_SAE)}, {}, r"threshold of shape \[16\].*one number"),
        ({"threshold": torch.ones(3)}, {}, r"threshold of shape \[3\]"),
        ({"k": torch.tensor(5)}, {}, "k=4, but .* has k=5"),
        ({}, {"k": None}, "k=None"),
        ({}, {"activation_dim": 9}, r"encoder.weight of shape \[16, 8\].*need \[16, 9\]"),
        ({}, {"dict_size": "16"}, "dict_size='16'"),
        ({"decoder.bias": torch.ones(D_IN)}, {}, "decoder.bias, which this kind"),
        ({"b_dec": torch.ones(D_IN, dtype=torch.int32)}, {}, "b_dec of type I32"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(tmp_path, changes, trainer, said):
    dictionary(tmp_path, LINEAR | changes, **({"dict_class": "BatchTopKSAE"} | trainer))
    with pytest.raises(BadSae, match=said):
        describe_sae(tmp_path)


def test_a_class_that_its_tensors_do_not_fit_is_refused(tmp_path):
    dictionary(tmp_path, dict_class="AutoEncoder")
    with pytest.raises(BadSae, match="no tensor bias"):
        describe_sae(tmp_path)


def test_a_dictionary_without_its_config_or_trainer_is_refused(tmp_path):
    folder = dictionary(tmp_path)
    (folder / "config.json").write_text("{}")
    with pytest.raises(BadSae, match="trainer=None: an object is needed"):
        describe_sae(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BadSae, match=r"there is no .*config\.json: its class and sizes"):
        describe_sae(folder)


def test_a_checkpoint_in_the_middle_of_a_training_is_read_by_its_file(tmp_path):
    folder = dictionary(tmp_path / "trainer_0")
    (folder / "checkpoints").mkdir()
    step = folder / "checkpoints" / "ae_1000.pt"
    (folder / "ae.pt").rename(step)
    spec = describe_sae(step)
    assert spec.file == step
    assert describe_sae(spec.path) == spec


def test_a_pickle_in_place_of_weights_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), dictionary(tmp_path) / "ae.pt")
    with pytest.raises(BadSae, match="nothing else is unpickled"):
        describe_sae(tmp_path)


# --- Gemma Scope ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "hook_name", "reconstructs", "out"),
    [
        ("models--google--gemma-scope-2b-pt-res/snapshots/ab12/layer_20/width_16k/average_l0_71",
         "blocks.20.hook_resid_post", "input", None),
        ("gemma-scope-9b-it-mlp/layer_3/x", "blocks.3.hook_mlp_out", "input", None),
        ("gemma-scope-27b-pt-att/layer_0/x", "blocks.0.attn.hook_z", "input", None),
        ("gemma-scope-2b-pt-transcoders/layer_4/x", None, "output", "blocks.4.hook_mlp_out"),
        ("gemma-scope-2b-pt-res/20", None, "input", None),
        ("my-copy/layer_20", None, "unknown", None),
    ],
)  # fmt: skip
def test_the_folders_of_gemma_scope_say_where_it_reads(
    tmp_path, parts, hook_name, reconstructs, out
):
    spec = describe_sae(save_gemma_scope(tmp_path / parts, JUMPRELU))
    assert (spec.format, spec.architecture) == ("gemma_scope", "jumprelu")
    assert (spec.hook_name, spec.reconstructs) == (hook_name, reconstructs)
    assert spec.hook_name_out == out
    assert not spec.apply_b_dec_to_input


def test_names_in_small_letters_are_the_same_tensors(tmp_path):
    weights = {("w" + n[1:] if n[0] == "W" else n): w for n, w in JUMPRELU.items()}
    assert describe_sae(save_gemma_scope(tmp_path, weights)).d_sae == D_SAE


def test_embedding_saes_cross_layer_transcoders_and_odd_widths_are_refused(tmp_path):
    folder = save_gemma_scope(tmp_path / "gemma-scope-2b-pt-res/embedding/x", JUMPRELU)
    with pytest.raises(BadSae, match="token embeddings, trained on another scale"):
        describe_sae(folder)
    many = JUMPRELU | {"W_dec": torch.ones(D_SAE, 3, D_IN)}
    with pytest.raises(BadSae, match="not a matrix: a cross-layer transcoder"):
        describe_sae(save_gemma_scope(tmp_path / "many", many))
    other = JUMPRELU | {"W_dec": torch.ones(D_SAE, 6), "b_dec": torch.ones(6)}
    folder = save_gemma_scope(tmp_path / "gemma-scope-2b-pt-res/layer_1/x", other)
    with pytest.raises(BadSae, match=r"reads 8 and writes 6 numbers.*transcoder"):
        describe_sae(folder)
    with pytest.raises(BadSae, match="no tensor threshold"):
        describe_sae(save_gemma_scope(tmp_path / "bare", WEIGHTS))
    with pytest.raises(BadSae, match="no tensor W_enc"):
        describe_sae(save_gemma_scope(tmp_path / "none", {"x": torch.ones(2)}))


def gemma_scope_2(folder, *, tensors=None, **config):
    folder.mkdir(parents=True)
    given = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.1.output"}
    (folder / "config.json").write_text(json.dumps(given | config))
    weights = {n.lower(): w for n, w in JUMPRELU.items()} | (tensors or {})
    save_file(weights, folder / "params.safetensors")
    return folder


def test_gemma_scope_2_says_all_in_its_config(tmp_path):
    spec = describe_sae(gemma_scope_2(tmp_path / "a"))
    assert (spec.format, spec.hook_name) == ("gemma_scope_2", "model.layers.1.output")
    assert spec.reconstructs == "input"
    out = {"hf_hook_point_out": "model.layers.1.mlp.output", "affine_connection": True}
    skip = {"affine_skip_connection": torch.ones(D_IN, D_IN)}
    spec = describe_sae(gemma_scope_2(tmp_path / "b", tensors=skip, **out))
    assert (spec.reconstructs, spec.skip) == ("output", True)
    assert spec.hook_name_out == "model.layers.1.mlp.output"
    with pytest.raises(BadSae, match="no tensor affine_skip_connection"):
        describe_sae(gemma_scope_2(tmp_path / "c", **out))
    with pytest.raises(BadSae, match="affine_skip_connection, which this kind"):
        describe_sae(gemma_scope_2(tmp_path / "d", tensors=skip))
    with pytest.raises(BadSae, match="architecture='topk': jump_relu"):
        describe_sae(gemma_scope_2(tmp_path / "e", architecture="topk"))


# --- Llama Scope ----------------------------------------------------------------------


def llama_scope(folder, **options):
    given = {"jump_relu_threshold": 0.5, "dataset_average_activation_norm": NORMS}
    return save_llama_scope(folder, WEIGHTS, **(given | {"hook_point_in": HOOK} | options))


def test_the_scale_of_the_input_of_llama_scope_is_kept_for_folding(tmp_path):
    spec = describe_sae(llama_scope(tmp_path))
    assert spec.input_scale == pytest.approx(8**0.5 / 4)
    assert spec.threshold == pytest.approx(0.5 * 8**0.5 / 4)
    assert (spec.hook_name, spec.architecture) == (HOOK, "jumprelu")
    other = llama_scope(tmp_path / "b", dataset_average_activation_norm={"in": 5.0})
    assert describe_sae(other).digest != spec.digest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"act_fn": "topk"}, "act_fn='topk'"),
        ({"norm_activation": "token-wise"}, "norm_activation='token-wise'"),
        ({"use_glu_encoder": True}, "use_glu_encoder=True"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "only false is supported"),
        ({"hook_point_out": "blocks.1.hook_mlp_out"}, "transcoders of Llama Scope"),
        ({"dataset_average_activation_norm": None}, "an object is needed"),
        ({"dataset_average_activation_norm": {"in": 0}}, "in=0: a finite number above 0"),
        ({"jump_relu_threshold": "0.5"}, "jump_relu_threshold='0.5': a number"),
        ({"d_sae": 17}, r"encoder.weight of shape \[16, 8\]"),
    ],
)
def test_other_kinds_of_llama_scope_are_refused(tmp_path, options, said):
    with pytest.raises(BadSae, match=said):
        describe_sae(llama_scope(tmp_path, **options))


# --- any state dict, described by its owner -------------------------------------------

EXPLICIT = {
    "weights": "layer1.pth",
    "architecture": "topk",
    "k": K,
    "d_in": D_IN,
    "d_sae": D_SAE,
    "apply_b_dec_to_input": False,
    "hook_name": "model.layers.1",
    "tensors": {
        "W_enc": "encoder_linear.weight^T",
        "b_enc": "encoder_linear.bias",
        "W_dec": "decoder_linear.weight^T",
        "b_dec": "decoder_linear.bias",
    },
}


def explicit(folder, *, extra=(), **changes):
    """Write a state dict with the names of Goodfire's, and what its owner says of it."""
    folder.mkdir(exist_ok=True)
    state = {
        "encoder_linear.weight": torch.ones(D_SAE, D_IN),
        "encoder_linear.bias": torch.zeros(D_SAE),
        "decoder_linear.weight": torch.ones(D_IN, D_SAE),
        "decoder_linear.bias": torch.zeros(D_IN),
    }
    torch.save(state | {name: torch.ones(2) for name in extra}, folder / "layer1.pth")
    config = {k: v for k, v in (EXPLICIT | changes).items() if v is not None}
    (folder / "sae_spec.json").write_text(json.dumps(config))
    return folder


def test_any_state_dict_is_read_as_its_owner_describes_it(tmp_path):
    spec = describe_sae(explicit(tmp_path))
    assert (spec.format, spec.architecture, spec.k) == ("explicit", "topk", K)
    assert spec.file == tmp_path / "layer1.pth"
    assert spec.named("W_enc") == ("encoder_linear.weight", True)
    assert spec.hook_name == "model.layers.1"


def test_the_owners_word_goes_before_the_names_of_the_files(tmp_path):
    explicit(tmp_path)
    (tmp_path / "ae.pt").touch()
    assert describe_sae(tmp_path).format == "explicit"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"apply_b_dec_to_input": None},
            "lacks apply_b_dec_to_input: these have no default",
        ),
        ({"weights": "../other.pt"}, r"weights='\.\./other\.pt': the name of a file"),
        ({"weights": "none.pt"}, r"there is no .*none\.pt"),
        ({"architecture": "relu"}, "architecture='relu': standard, jumprelu"),
        ({"normalize_activations": "yes"}, "normalize_activations='yes'"),
        ({"activation": "relu"}, "has activation: weights, architecture"),
        ({"k": None}, "k=None"),
        ({"k": 17}, "k=17, more than d_sae"),
        ({"threshold": 0.5}, "threshold, which a topk autoencoder does not have"),
        ({"skip": True}, "skip, which a topk autoencoder"),
        ({"transcoder": True, "apply_b_dec_to_input": True}, "True for a transcoder"),
        ({"tensors": {"W": "w"}}, r"tensors\.W, which a topk autoencoder"),
        ({"tensors": {"W_enc": 3}}, r"tensors\.W_enc=3: a tensor's name"),
        ({"tensors": []}, "an object is needed"),
        ({"architecture": "jumprelu", "k": None}, "no tensor threshold"),
        ({"extra": ("adam",)}, "holds adam, which this kind"),
        ({"ignored": "adam"}, "ignored='adam': a list of names"),
        ({"input_scale": -1}, "input_scale=-1: a finite number"),
    ],
)
def test_a_description_that_leaves_something_open_is_refused(tmp_path, changes, said):
    with pytest.raises(BadSae, match=said):
        describe_sae(explicit(tmp_path, **changes))


def test_what_the_owner_says_changes_the_digest(tmp_path):
    kinds = [
        {},
        {"apply_b_dec_to_input": True},
        {"normalize_activations": "layer_norm"},
        {"rescale_acts_by_decoder_norm": True},
        {"input_scale": 2.0},
        {"architecture": "groupmax"},
        {"architecture": "standard", "k": None},
        {"architecture": "jumprelu", "k": None, "threshold": 0.5},
        {"architecture": "jumprelu", "k": None, "threshold": 0.6},
        {"transcoder": True},
        {"transcoder": True, "hook_name_out": "model.layers.1.mlp"},
    ]
    digests = {describe_sae(explicit(tmp_path, **kind)).digest for kind in kinds}
    assert len(digests) == len(kinds)
    unused = describe_sae(explicit(tmp_path, extra=("adam",), ignored=["adam"]))
    assert unused.d_sae == D_SAE


# --- detection ------------------------------------------------------------------------


def test_saes_deeper_inside_are_named(tmp_path):
    save_sparsify(tmp_path / "run" / "layers.5.mlp", WEIGHTS, k=K)
    llama_scope(tmp_path / "llama")
    with pytest.raises(BadSae, match=r"several SAEs \(llama, run/layers\.5\.mlp\)"):
        describe_sae(tmp_path)


def test_a_config_without_its_weights_is_recognised(tmp_path):
    (tmp_path / "hyperparams.json").write_text("{}")
    with pytest.raises(
        BadSae, match=r"no .*checkpoints/final\.safetensors \(Llama Scope\)"
    ):
        describe_sae(tmp_path)


def test_one_digest_covers_weights_and_what_the_files_say(tmp_path):
    first = describe_sae(save_sparsify(tmp_path / "a", WEIGHTS, k=K))
    same = describe_sae(save_sparsify(tmp_path / "b", WEIGHTS, k=K, multi_topk=True))
    other_k = describe_sae(save_sparsify(tmp_path / "c", WEIGHTS, k=K + 1))
    groups = describe_sae(
        save_sparsify(tmp_path / "d", WEIGHTS, k=K, activation="groupmax")
    )
    writes = describe_sae(
        save_sparsify(tmp_path / "layers.1", WEIGHTS, k=K, transcode=True)
    )
    assert same.digest == first.digest
    assert len({each.digest for each in (first, other_k, groups, writes)}) == 4
    assert np.all([len(each.digest) == 64 for each in (first, writes)])
