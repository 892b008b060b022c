"""Small real parts for tests: a language model, its tokenizer, three SAEs and a text.

Everything is random but determined by the seed, saved as the real libraries save it, and
made in well under a second, so that a test can run the real path instead of a mock.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

if TYPE_CHECKING:
    import torch

ARCHITECTURES = ("standard", "topk", "jumprelu")
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
HOOK_LAYER = 1
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "ti")


@dataclass(frozen=True, kw_only=True)
class TinyTraining:
    """Where the parts are, and what they were made from."""

    model: Path
    """Folder of a Llama-like model, with its ``tokenizer.json``."""
    saes: Mapping[str, Path]
    """Folders in SAELens format, by architecture."""
    corpus: Path
    """``.jsonl`` file of documents of different lengths."""
    texts: tuple[str, ...]
    """The same documents."""
    hook_name: str
    d_in: int
    d_sae: int

    @property
    def sae(self) -> Path:
        """The topk SAE."""
        return self.saes["topk"]


def tiny_training(  # noqa: PLR0913 - sizes of a fixture, all with defaults
    folder: Path,
    *,
    seed: int = 0,
    d_in: int = 16,
    d_sae: int = 48,
    k: int = 6,
    n_layers: int = 3,
    sae_options: Mapping[str, Any] | None = None,
    n_documents: int = 40,
) -> TinyTraining:
    """Write a model, its tokenizer, three SAEs and a corpus into `folder`.

    Parameters
    ----------
    folder : Path
        Made if need be; gets ``model/``, ``sae-standard/``, ``sae-topk/``,
        ``sae-jumprelu/`` and ``corpus.jsonl``.
    seed : int
        Equal seeds give equal files.
    d_in, d_sae : int
        Width of the residual stream (a multiple of 4) and number of features. The last
        feature of each SAE is dead.
    k : int
        Active features per token of the topk SAE.
    n_layers : int
        Layers of the model; the SAEs read the output of layer 1.
    sae_options : mapping, optional
        Fields of ``cfg.json`` that replace the usual ones, for example
        ``{"normalize_activations": "layer_norm"}``.
    n_documents : int
        Documents of the corpus, 3 to 60 words each.
    """
    folder = Path(folder)
    words = _words(60)
    _save_tokenizer(folder / "model", words)
    _save_model(folder / "model", words, seed=seed, d_in=d_in, n_layers=n_layers)
    hook_name = f"blocks.{HOOK_LAYER}.hook_resid_post"
    saes = {}
    for number, architecture in enumerate(ARCHITECTURES):
        saes[architecture] = folder / f"sae-{architecture}"
        config = saelens_config(
            architecture, d_in=d_in, d_sae=d_sae, k=k, hook_name=hook_name
        )
        save_sae(
            saes[architecture],
            config | dict(sae_options or {}),
            random_sae_weights(config, seed=seed + number),
        )
    texts = _texts(words, n_documents, seed)
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TinyTraining(
        model=folder / "model",
        saes=saes,
        corpus=corpus,
        texts=texts,
        hook_name=hook_name,
        d_in=d_in,
        d_sae=d_sae,
    )


def _words(n: int) -> list[str]:
    pairs = [first + second for first in _SYLLABLES for second in _SYLLABLES]
    return pairs[:n]


def _texts(words: list[str], n: int, seed: int) -> tuple[str, ...]:
    chance = random.Random(seed)  # noqa: S311 - test data, no secret
    return tuple(" ".join(chance.choices(words, k=chance.randint(3, 60))) for _ in range(n))


def _save_tokenizer(folder: Path, words: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(each) for each in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(roles, indent=1))


def _save_model(
    folder: Path, words: list[str], *, seed: int, d_in: int, n_layers: int
) -> None:
    import torch  # noqa: PLC0415 - heavy, and the notebook side never needs it
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - as above

    from extraction_kit.sources.loading import quiet_transformers  # noqa: PLC0415 - torch

    config = LlamaConfig(
        vocab_size=len(SPECIAL_TOKENS) + len(words),
        hidden_size=d_in,
        intermediate_size=2 * d_in,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,  # large, so that context matters in so small a model
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with quiet_transformers():
        model.save_pretrained(folder)


def saelens_config(
    architecture: str, *, d_in: int, d_sae: int, k: int, hook_name: str
) -> dict[str, Any]:
    """Return a ``cfg.json`` as SAELens writes it; `k` is that of a topk SAE."""
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.0.0",
            "sae_lens_training_version": "6.0.0",
            "model_name": "tiny",
            "hook_name": hook_name,
            "hook_head_index": None,
            "prepend_bos": True,
        },
    }
    if architecture == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    return config


def random_sae_weights(
    config: Mapping[str, Any], *, seed: int
) -> "dict[str, torch.Tensor]":
    """Return weights that fit a ``cfg.json``; the last feature never fires.

    About a tenth of the features of a standard or jumprelu SAE fire per token.
    """
    import torch  # noqa: PLC0415 - heavy, and the notebook side never needs it

    chance = torch.Generator().manual_seed(seed)
    d_in, d_sae = config["d_in"], config["d_sae"]
    w_dec = torch.randn(d_sae, d_in, generator=chance)
    w_dec *= (0.5 + torch.rand(d_sae, 1, generator=chance)) / w_dec.norm(
        dim=1, keepdim=True
    )
    weights = {
        "W_dec": w_dec,
        "W_enc": w_dec.T + 0.05 * torch.randn(d_in, d_sae, generator=chance),
        "b_enc": 0.1 * torch.randn(d_sae, generator=chance),
        "b_dec": 0.1 * torch.randn(d_in, generator=chance),
    }
    if config["architecture"] == "standard":
        weights["b_enc"] -= 5.0
    if config["architecture"] == "jumprelu":
        weights["threshold"] = 5.0 + torch.rand(d_sae, generator=chance)
    weights["b_enc"][-1] = -1e4
    weights["W_dec"] *= 0.4  # so that the output is nearer to the input than its mean is
    return weights


def save_sae(
    folder: Path, config: Mapping[str, Any], weights: "Mapping[str, torch.Tensor]"
) -> Path:
    """Write an SAE as SAELens does; returns `folder`."""
    from safetensors.torch import save_file  # noqa: PLC0415 - imports torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(dict(config), indent=1))
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "sae_weights.safetensors")
    return folder


def save_sparsify(
    folder: Path, weights: "Mapping[str, torch.Tensor]", *, k: int, **options: object
) -> Path:
    """Write an SAE, or with ``transcode=True`` a transcoder, as sparsify does.

    `weights` are by the names of SAELens; `options` are fields of ``cfg.json``.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - imports torch

    d_in, d_sae = weights["W_enc"].shape
    config = {"activation": "topk", "num_latents": d_sae, "k": k, "d_in": d_in}
    config |= {"transcode": False, "skip_connection": False, "normalize_decoder": True}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config | options))
    theirs = {"encoder.weight": weights["W_enc"].T, "encoder.bias": weights["b_enc"]}
    theirs |= {n: w for n, w in weights.items() if n not in {"W_enc", "b_enc"}}
    contiguous = {name: tensor.contiguous() for name, tensor in theirs.items()}
    save_file(contiguous, folder / "sae.safetensors")
    return folder


def save_dictionary(
    folder: Path, state: "Mapping[str, torch.Tensor]", **trainer: object
) -> Path:
    """Write a dictionary as dictionary_learning does.

    `state` is its state dict; `trainer` are fields of ``config.json``, which must name
    ``dict_class``, ``activation_dim`` and ``dict_size``.
    """
    import torch  # noqa: PLC0415 - heavy, and the notebook side never needs it

    folder.mkdir(parents=True, exist_ok=True)
    config = {"trainer": trainer, "buffer": {"io": "out", "ctx_len": 128}}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(dict(state), folder / "ae.pt")
    return folder


def save_gemma_scope(folder: Path, weights: "Mapping[str, torch.Tensor]") -> Path:
    """Write a jumprelu SAE as Gemma Scope is published: one npz file, no config."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in weights.items()}
    np.savez(folder / "params.npz", **arrays)
    return folder


def save_llama_scope(
    folder: Path, weights: "Mapping[str, torch.Tensor]", **options: object
) -> Path:
    """Write a jumprelu SAE as Llama Scope is published.

    `options` are fields of ``hyperparams.json``, which must name ``jump_relu_threshold``,
    ``dataset_average_activation_norm`` and ``hook_point_in``.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 - imports torch

    d_in, d_sae = weights["W_enc"].shape
    config = {"d_model": d_in, "d_sae": d_sae, "act_fn": "jumprelu"}
    config |= {"norm_activation": "dataset-wise"} | options
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "hyperparams.json").write_text(json.dumps(config))
    theirs = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder.bias": weights["b_dec"],
    }
    save_file(theirs, folder / "checkpoints" / "final.safetensors")
    return folder
