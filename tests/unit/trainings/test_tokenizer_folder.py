"""A tokenizer folder is described as transformers would use it."""

import json

import pytest
from tokenizers import Tokenizer, models

from extraction_kit.errors import BadModel
from extraction_kit.trainings import describe_tokenizer
from extraction_kit.trainings.tokenizer_folder import load_tokenizer


def test_roles_come_from_the_tokenizer_config(write_tokenizer, tmp_path):
    spec = describe_tokenizer(write_tokenizer(tmp_path / "t"))
    assert (spec.bos_id, spec.eos_id, spec.pad_id) == (1, 2, None)
    assert spec.special_ids == (0, 1, 2)
    assert spec.vocab_size == 6
    assert describe_tokenizer(tmp_path / "t" / "tokenizer.json") == spec


def test_a_tokenizer_config_that_names_no_bos_means_that_there_is_none(
    write_tokenizer, tmp_path
):
    """Qwen's model config has a bos_token_id that its tokenizer does not use."""
    folder = write_tokenizer(tmp_path / "t", config={"eos_token": "</s>"})
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 1}))
    assert describe_tokenizer(folder).bos_id is None


def test_a_tokenizer_config_without_any_role_falls_back_to_the_model_config(
    write_tokenizer, tmp_path
):
    """The folder of GPT-2 on the Hub is like that."""
    folder = write_tokenizer(tmp_path / "t", config={"model_max_length": 1024})
    (folder / "config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 4})
    )
    spec = describe_tokenizer(folder)
    assert (spec.bos_id, spec.eos_id) == (1, 2)
    assert spec.pad_id is None, "an ordinary word is no padding"


def test_a_role_outside_the_vocabulary_is_refused(write_tokenizer, tmp_path):
    folder = write_tokenizer(tmp_path / "t", config={"bos_token": "<|begin|>"})
    with pytest.raises(BadModel, match=r"bos_token.*<\|begin\|>"):
        describe_tokenizer(folder)


def test_a_folder_without_a_fast_tokenizer_says_how_to_save_one(tmp_path):
    with pytest.raises(BadModel, match="save_pretrained"):
        describe_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ['{"version": ', "{}", '{"model": 3}'])
def test_a_torn_tokenizer_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadModel, match=r"tokenizer\.json"):
        describe_tokenizer(tmp_path)


def test_truncation_and_padding_in_the_file_are_switched_off(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.truncation is None
    assert loaded.padding is None


def test_a_tokenizer_that_is_not_deterministic_is_refused(tmp_path):
    Tokenizer(models.BPE({"a": 0}, [], dropout=0.1)).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BadModel, match="dropout"):
        describe_tokenizer(tmp_path)


def test_the_digest_covers_the_file_and_the_roles(write_tokenizer, tmp_path):
    first = describe_tokenizer(write_tokenizer(tmp_path / "a")).digest
    same = describe_tokenizer(write_tokenizer(tmp_path / "b")).digest
    roles = describe_tokenizer(
        write_tokenizer(tmp_path / "c", config={"eos_token": "</s>"})
    ).digest
    words = describe_tokenizer(write_tokenizer(tmp_path / "d", words=("a", "b"))).digest
    assert first == same
    assert len({first, roles, words}) == 3


def test_cls_and_sep_of_an_encoder_stand_in_for_bos_and_eos(tmp_path):
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}
    Tokenizer(models.WordLevel(words, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
    spec = describe_tokenizer(tmp_path)
    assert (spec.bos_id, spec.eos_id, spec.pad_id) == (1, 2, 0)
