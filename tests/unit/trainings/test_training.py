"""The parts of a training are checked to belong together."""

import json
import shutil

import pytest

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


def test_an_sae_trained_on_a_processed_model_is_refused(describe):
    metadata = {
        "hook_name": "blocks.1.hook_resid_pre",
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
    }
    with pytest.raises(BadSae, match="center_writing_weights"):
        describe(sae={"metadata": metadata})


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
