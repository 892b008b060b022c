"""Write what all are measured on: a model, its tokenizer, its tokens and two SAEs.

A language model of GPT-2's shape (6 layers, 512 wide) with random weights reads real English:
the reference topics and docstrings of this Python, in contexts of 128 tokens. The features of
the SAEs are directions in the model's own residual stream after block 2; how often each fires
is drawn from a log-normal distribution (few features fire often, most rarely) and reached
through quantiles of its own pre-activations.

``inputs/`` gets ``model/`` (transformers), ``sae-jumprelu/``, ``sae-topk/`` (SAELens),
``tokens.npy`` [context, 128] and ``text.jsonl``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from measuring import HOOK_BLOCK, HOOK_NAME
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

from extraction_kit import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.demo.texts import write_texts
from extraction_kit.paths import Paths
from extraction_kit.testing import save_sae
from extraction_kit.trainings import describe_tokenizer

D_IN, D_SAE, N_LAYERS, VOCABULARY = 512, 8192, 6, 16_384
CONTEXT_SIZE, N_CONTEXTS, N_CALIBRATION = 128, 256, 64
L0, K = 50, 32
END = "<|endoftext|>"
CONFIG = ExtractionConfig(
    context_size=CONTEXT_SIZE,
    n_tokens=N_CONTEXTS * CONTEXT_SIZE,
    prepend_bos=False,  # so that every token counts, for all
    exclude_special_tokens=False,
)


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles |= {f"{role}_token": END for role in ("bos", "eos", "pad", "unk")}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))


def write_model(folder: Path) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT_SIZE * 2,
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


def write_saes(root: Path, x: torch.Tensor) -> None:
    """Write both SAEs; `x` [token, d_in] is what they read."""
    mean, chance = x.mean(0), torch.Generator().manual_seed(1)
    centred = x - mean
    some = centred[torch.randint(len(x), (D_SAE,), generator=chance)]
    noise = torch.randn(D_SAE, D_IN, generator=chance) * centred.std(0)
    directions = torch.nn.functional.normalize(some + noise, dim=1)
    p = centred @ directions.T
    density = torch.exp(1.2 * torch.randn(D_SAE, generator=chance))
    density *= L0 / density.sum()
    rank = (density.clamp(max=0.2) * len(p)).long().clamp(min=1)
    threshold = p.sort(0, descending=True).values.gather(0, rank[None])[0].clamp(min=1e-3)
    threshold *= (
        1 - 1e-4
    )  # off the token it comes from, which any rounding would move across
    _write(root / "sae-jumprelu", directions, mean, p * (p > threshold), centred,
           threshold=threshold)  # fmt: skip
    margin = p - threshold
    enough = -margin.topk(K, dim=1).values[:, -1].quantile(0.001)
    best = (margin + enough).relu().topk(K, dim=1)
    acts = torch.zeros_like(p).scatter_(1, best.indices, best.values)
    _write(root / "sae-topk", directions, mean, acts, centred, b_enc=enough - threshold)


def _write(folder, directions, mean, acts, centred, **thresholds) -> None:
    """Write an SAE whose decoder rows have norm 1, scaled to reconstruct best."""
    x_hat = acts @ directions
    scale = (x_hat * centred).sum() / x_hat.square().sum()
    weights = {"W_enc": scale * directions.T, "W_dec": directions, "b_dec": mean}
    weights["b_enc"] = torch.zeros(D_SAE)
    weights |= {name: scale * value for name, value in thresholds.items()}
    config = {
        "architecture": "jumprelu" if "threshold" in thresholds else "topk",
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12",
            "model_name": "gpt2-shape", "hook_name": HOOK_NAME, "hook_head_index": None,
            "prepend_bos": False, "context_size": CONTEXT_SIZE,
        },
    }  # fmt: skip
    if config["architecture"] == "topk":
        # SAEDashboard folds decoder norms in, and SAELens refuses to without this; the norms
        # are 1, so that it changes no number.
        config |= {"k": K, "rescale_acts_by_decoder_norm": True}
    save_sae(folder, config, weights)


@torch.inference_mode()
def write_inputs(root: Path) -> None:
    torch.manual_seed(0)
    root.mkdir(parents=True, exist_ok=True)
    write_texts(root / "text.jsonl")
    lines = (root / "text.jsonl").read_text(encoding="utf-8").splitlines()
    write_tokenizer(root / "model", [json.loads(line)["text"] for line in lines])
    model = write_model(root / "model")
    corpus = prepare(
        root / "text.jsonl",
        tokenizer=describe_tokenizer(root / "model"),
        config=CONFIG,
        paths=Paths.of(root / "workspace", Settings()),
    )
    tokens = corpus.read(0, N_CONTEXTS).tokens
    assert tokens.shape == (N_CONTEXTS, CONTEXT_SIZE)
    assert corpus.n_tokens == tokens.size
    x = [
        model(torch.from_numpy(some).long(), output_hidden_states=True).hidden_states[
            HOOK_BLOCK + 1
        ]
        for some in np.split(tokens[:N_CALIBRATION], N_CALIBRATION // 8)
    ]
    write_saes(root, torch.cat(x).reshape(-1, D_IN))
    np.save(root / "tokens.npy", tokens.astype(np.int64))  # last: the inputs are complete


if __name__ == "__main__":
    write_inputs(Path(sys.argv[1]))
