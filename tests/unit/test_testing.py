"""The tiny training: made from its seed and nothing else."""

import torch

from extraction_kit.digests import file_digest
from extraction_kit.testing import tiny_training
from extraction_kit.trainings import describe_training


def digests(folder):
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path):
    random_state = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tiny_training(tmp_path / name, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model/model.safetensors"] != c["model/model.safetensors"]
    assert a["corpus.jsonl"] != c["corpus.jsonl"]
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_all_three_kinds_can_be_registered(tmp_path):
    tiny = tiny_training(tmp_path)
    for architecture, folder in tiny.saes.items():
        training = describe_training("tiny", sae=folder, model=tiny.model)
        assert training.sae.architecture == architecture
        assert training.hookpoint.hook_name == tiny.hook_name
        assert training.tokenizer.bos_id == 1
