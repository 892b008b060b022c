"""Folders as SAELens and transformers write them, made with the real libraries."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "vocab_size": 6,
    "transformers_version": "5.0.0",
}
V6 = {
    "architecture": "topk",
    "d_in": 8,
    "d_sae": 16,
    "k": 4,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "rescale_acts_by_decoder_norm": True,
    "reshape_activations": "none",
    "metadata": {"model_name": "tiny", "hook_name": "blocks.1.hook_resid_post"},
}


@pytest.fixture
def write_sae(tmp_path):
    """Write an SAE folder: config changes (None removes a key), further tensors."""

    def write(name="sae", *, tensors=None, **changes):
        folder = tmp_path / name
        folder.mkdir()
        config = {k: v for k, v in (V6 | changes).items() if v is not None}
        (folder / "cfg.json").write_text(json.dumps(config))
        d_in, d_sae = 8, 16
        weights = {
            "W_enc": np.ones((d_in, d_sae), np.float32),
            "W_dec": np.ones((d_sae, d_in), np.float32),
            "b_enc": np.zeros(d_sae, np.float32),
            "b_dec": np.zeros(d_in, np.float32),
        }
        weights |= tensors or {}
        save_file({k: v for k, v in weights.items() if v is not None},
                  folder / "sae_weights.safetensors")  # fmt: skip
        return folder

    return write


@pytest.fixture
def write_tokenizer():
    """Write a word-level tokenizer into a folder."""

    def write(folder, *, words=("the", "cat", "sat"), config=None):
        folder.mkdir(exist_ok=True)
        names = ["<unk>", "<s>", "</s>", *words]
        tokenizer = Tokenizer(
            models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
        tokenizer.save(str(folder / "tokenizer.json"))
        if config is None:
            config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return write


@pytest.fixture
def write_model(tmp_path, write_tokenizer):
    """Write a model folder with a tokenizer: config changes (None removes a key)."""

    def write(name="model", **changes):
        folder = write_tokenizer(tmp_path / name)
        config = {k: v for k, v in (LLAMA | changes).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({"embed": np.ones((6, 8), np.float32)}, folder / "model.safetensors")
        return folder

    return write
