"""What the engine's benchmarks read: a GPT-2-shaped model, real English, SAEs with real skew.

The model has random weights of GPT-2's shape, since only its arithmetic counts here. The SAEs
have random directions and thresholds that give each feature a density drawn from a log-normal
distribution, so that few features fire often and many rarely, as in a trained SAE.
"""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.corpora import Corpus, prepare
from extraction_kit.demo.texts import write_texts
from extraction_kit.paths import Paths
from extraction_kit.sources.loading import quiet_transformers
from extraction_kit.testing import saelens_config, save_sae
from extraction_kit.trainings import Training, describe_training
from tests.benchmarks.peers.measuring import HOOK_BLOCK, HOOK_NAME

D_IN, N_LAYERS, VOCAB = 512, 6, 16_384
END = "<|endoftext|>"
CONTEXT_SIZE = 128
L0_OF_JUMPRELU, K_OF_TOPK = 50, 32
SKEW = 1.5
"""Standard deviation of the logarithm of a feature's density."""
_SEEN = 4096  # tokens on which thresholds are set
_BLOCK = 8192  # features at once


@dataclass(frozen=True)
class Parts:
    """Model and texts on disk."""

    folder: Path

    @property
    def model(self) -> Path:
        """Folder of the model with its tokenizer."""
        return self.folder / "model"

    @property
    def texts(self) -> Path:
        """``.jsonl`` of the documents."""
        return self.folder / "texts.jsonl"

    def corpus(self, training: Training, config: ExtractionConfig) -> Corpus:
        """Return the texts as contexts of tokens."""
        paths = Paths.of(self.folder / "workspace", Settings())
        return prepare(self.texts, tokenizer=training.tokenizer, config=config, paths=paths)

    def long_corpus(self, training: Training, config: ExtractionConfig) -> Corpus:
        """Return the texts again and again, until there are tokens enough."""
        paths = Paths.of(self.folder / "workspace", Settings())
        again = itertools.chain.from_iterable(itertools.repeat(read_texts(self.texts), 10))
        return prepare(again, tokenizer=training.tokenizer, config=config, paths=paths)

    def training(self, architecture: str, d_sae: int) -> Training:
        """Return an SAE of some size with the model; made on the first call."""
        sae = self.folder / f"{architecture}-{d_sae}"
        if not (sae / "sae_weights.safetensors").exists():
            x = self._activations()
            config, weights = make_sae(architecture, d_sae, x)
            save_sae(sae, config, weights)
        return describe_training("bench", sae=sae, model=self.model, hook_name=HOOK_NAME)

    def _activations(self) -> Tensor:
        """Return what an SAE reads, on some of the corpus: [token, d_in]."""
        tokenizer = Tokenizer.from_file(str(self.model / "tokenizer.json"))
        ids: list[int] = []
        for text in read_texts(self.texts):
            ids += tokenizer.encode(text).ids
            if len(ids) > _SEEN:
                break
        model = GPT2LMHeadModel.from_pretrained(self.model).eval()
        tokens = torch.tensor(ids[:_SEEN]).reshape(-1, CONTEXT_SIZE)
        with torch.inference_mode():
            states = model.transformer(tokens, output_hidden_states=True).hidden_states
        return states[HOOK_BLOCK + 1].reshape(-1, D_IN).clone()


def make_parts(folder: Path) -> Parts:
    """Write model, tokenizer and texts into `folder`, unless they are there."""
    parts = Parts(folder)
    if (parts.model / "model.safetensors").exists():
        return parts
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(parts.texts)
    write_tokenizer(parts.model, read_texts(parts.texts))
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        write_model(parts.model)
    return parts


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Train a byte-level BPE tokenizer on `texts`; write it as transformers does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles |= {f"{role}_token": END for role in ("bos", "eos", "pad", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def write_model(folder: Path) -> GPT2LMHeadModel:
    """Write a model of GPT-2's shape with random weights; return it."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=2 * CONTEXT_SIZE,
        n_embd=D_IN,
        n_layer=N_LAYERS,
        n_head=8,
        initializer_range=0.05,  # larger than GPT-2's, so that context matters untrained
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    # As GPT-2's own: where the logits of a feature stay below 0.3, SAEDashboard writes 100,000
    # ticks on their axis and takes several times as long, which a real model spares it.
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.14)
    model.save_pretrained(folder)
    return model


def read_texts(texts: Path) -> list[str]:
    """Return the documents of a ``.jsonl`` file."""
    return [json.loads(line)["text"] for line in texts.read_text().splitlines()]


def sae_config(
    architecture: str, d_sae: int, *, d_in: int = D_IN, hook_name: str = HOOK_NAME
) -> dict[str, Any]:
    """Return the ``cfg.json`` of an SAE of the model."""
    config = saelens_config(
        architecture, d_in=d_in, d_sae=d_sae, k=K_OF_TOPK, hook_name=hook_name
    )
    config["metadata"] |= {"prepend_bos": False, "context_size": CONTEXT_SIZE}
    return config


def make_sae(
    architecture: str, d_sae: int, x: Tensor, *, hook_name: str = HOOK_NAME
) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return ``cfg.json`` and weights of an SAE for activations like `x`, on its device."""
    chance, on = torch.Generator(x.device).manual_seed(d_sae), {"device": x.device}
    d_in = x.shape[1]
    w_dec = torch.randn(d_sae, d_in, generator=chance, **on)
    w_dec = torch.nn.functional.normalize(w_dec, dim=1)
    rare = torch.exp(SKEW * torch.randn(d_sae, generator=chance, **on))
    l0 = L0_OF_JUMPRELU if architecture == "jumprelu" else K_OF_TOPK
    density = (rare * (l0 / float(rare.sum()))).clamp(1e-6, 0.3)
    b_dec = x.mean(0)
    height = math.sqrt(2) * torch.erfinv(1 - 2 * density)  # of a normal distribution
    bound = torch.empty(d_sae, **on)
    for start in range(0, d_sae, _BLOCK):
        some = slice(start, start + _BLOCK)
        pre = (x - b_dec) @ w_dec[some].T
        bound[some] = pre.mean(0) + pre.std(0) * height[some]
    config = sae_config(architecture, d_sae, d_in=d_in, hook_name=hook_name)
    weights = {
        "W_enc": w_dec.T.contiguous(),
        "W_dec": w_dec,
        "b_enc": torch.zeros(d_sae, **on),
        "b_dec": b_dec,
    }
    if architecture == "jumprelu":
        weights["threshold"] = bound.clamp(min=1e-3)
    else:
        weights["b_enc"] = -bound  # features whose bound is high win rarely
    return config, weights
