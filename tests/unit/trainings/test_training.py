"""The parts of a training are checked to belong together."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from extraction_kit.errors import BadModel, BadSae, BadTrainingId
from extraction_kit.trainings import Training, describe_training


@pytest.fixture
def describe(write_sae, write_model):
    """Describe a training of a tiny SAE and model; `sae` and `model` change their configs."""

    def make(training_id="tiny", *, sae=None, model=None, **options):
        return describe_training(
            training_id,
            sae=write_sae(**sae or {}),
            model=write_model(**model or {}),
            **options,
        )

    return make


def test_a_training_is_described_without_torch(describe):
    training = describe()
    assert training.hookpoint.module_path == "model.layers.1"
    assert training.tokenizer.bos_id == 1


def test_a_training_is_shown_as_what_was_read_off_its_files(describe):
    shown = repr(describe())
    assert len(shown) < 300
    assert "SAE (saelens, k=" in shown
    assert "(the output of model.layers.1, " in shown
    assert "\n" not in shown


def test_a_training_survives_json(describe):
    training = describe()
    text = json.dumps(training.to_dict())
    assert Training.from_dict(json.loads(text)) == training


def test_a_training_registered_before_a_field_existed_is_read(describe):
    training = describe()
    plain = json.loads(json.dumps(training.to_dict()))
    before = {"path", "format", "architecture", "d_in", "d_sae", "k", "digest"}
    before |= {"apply_b_dec_to_input", "normalize_activations", "hook_name", "metadata"}
    before |= {"rescale_acts_by_decoder_norm"}
    plain["sae"] = {name: plain["sae"][name] for name in before}
    assert Training.from_dict(plain) == training


def test_the_digest_does_not_depend_on_where_things_are(describe, tmp_path):
    training = describe()
    for name in ("sae", "model"):
        shutil.copytree(tmp_path / name, tmp_path / "copy" / name)
    copy = describe_training(
        "other", sae=tmp_path / "copy" / "sae", model=tmp_path / "copy" / "model"
    )
    assert copy.digest == training.digest
    moved = describe_training(
        "other", sae=tmp_path / "sae", model=tmp_path / "model",
        hook_name="blocks.2.hook_resid_post",
    )  # fmt: skip
    assert moved.digest != training.digest


def test_two_names_of_the_same_place_are_the_same_training(describe, tmp_path):
    training = describe()
    by_path = describe_training(
        "t", sae=tmp_path / "sae", model=tmp_path / "model", hook_name="layers.1"
    )
    assert by_path.digest == training.digest


def test_an_sae_of_another_width_names_both_numbers_and_the_model(describe):
    with pytest.raises(BadSae, match=r"d_in=8.*12 wide.*'tiny'"):
        describe(model={"hidden_size": 12})


def test_an_sae_without_a_hook_name_needs_one(describe, tmp_path):
    with pytest.raises(BadSae, match="hook_name="):
        describe(sae={"metadata": {}})
    training = describe_training(
        "t", sae=tmp_path / "sae", model=tmp_path / "model", hook_name="model.layers.0"
    )
    assert training.hookpoint.layer == 0


def processed(option, hook_name):
    return {
        "metadata": {
            "hook_name": hook_name,
            "model_from_pretrained_kwargs": {option: True},
        }
    }


@pytest.mark.parametrize(
    ("option", "hook"),
    [
        ("fold_value_biases", "attn.hook_z"),
        ("refactor_factored_attn_matrices", "attn.hook_z"),
        ("fold_ln", "mlp.hook_in"),
    ],
)
def test_processing_that_changes_what_the_sae_read_is_refused(describe, option, hook):
    with pytest.raises(BadSae, match=f"{option}=True.*{hook}"):
        describe(sae=processed(option, f"blocks.1.{hook}"))


@pytest.mark.parametrize(
    "option", ["fold_value_biases", "refactor_factored_attn_matrices", "fold_ln"]
)
def test_processing_that_leaves_the_residual_stream_alone_is_accepted(
    describe, option, tmp_path
):
    plain = describe()
    found = describe_training(
        "t",
        sae=_with_options(tmp_path / "sae", option),
        model=tmp_path / "model",
    )
    assert found.hookpoint == plain.hookpoint


def test_centred_writing_weights_are_another_hookpoint(
    tmp_path, write_sae, write_tokenizer
):
    model = write_tokenizer(tmp_path / "gpt2")
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2,
              "n_positions": 64, "vocab_size": 6}  # fmt: skip
    (model / "config.json").write_text(json.dumps(config))
    save_file({"wte.weight": np.zeros((6, 8), np.float32)}, model / "model.safetensors")
    sae = write_sae()
    plain = describe_training("t", sae=sae, model=model)
    _with_options(sae, "center_writing_weights")
    centred = describe_training("t", sae=sae, model=model)
    assert not plain.hookpoint.centred
    assert centred.hookpoint.centred
    assert centred.digest != plain.digest
    assert str(centred.hookpoint) == (
        "blocks.1.hook_resid_post = output of transformer.h.1, its mean taken away, 8 wide"
    )
    assert Training.from_dict(centred.to_dict()) == centred


def test_centring_changes_nothing_in_a_model_with_rmsnorm(describe, tmp_path):
    describe()
    found = describe_training(
        "t",
        sae=_with_options(tmp_path / "sae", "center_writing_weights"),
        model=tmp_path / "model",
    )
    assert not found.hookpoint.centred


def _with_options(folder, option):
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    config["metadata"]["model_from_pretrained_kwargs"] = {option: True}
    path.write_text(json.dumps(config))
    return folder


def test_a_tokenizer_of_another_model_is_refused(describe, write_tokenizer, tmp_path):
    words = tuple(f"word{i}" for i in range(9))
    other = write_tokenizer(tmp_path / "other", words=words)
    with pytest.raises(BadModel, match=r"ids up to 11.*vocab_size=6"):
        describe(tokenizer=other)


def test_special_tokens_beyond_the_model_are_left_out(describe, write_tokenizer, tmp_path):
    """Gemma 3 ships a tokenizer with one special token more than its embedding has."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - used here only

    folder = write_tokenizer(tmp_path / "extra")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    training = describe(tokenizer=folder)
    assert training.tokenizer.vocab_size == 6
    assert training.tokenizer.special_ids == (0, 1, 2)


def test_a_bad_training_id_is_refused_first(tmp_path):
    with pytest.raises(BadTrainingId):
        describe_training("a/b", sae=tmp_path, model=tmp_path)
