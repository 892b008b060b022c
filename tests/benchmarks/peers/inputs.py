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
from measuring import HOOK_BLOCK

from extraction_kit import ExtractionConfig, Settings
from extraction_kit.corpora import prepare
from extraction_kit.demo.texts import write_texts
from extraction_kit.paths import Paths
from extraction_kit.testing import save_sae
from extraction_kit.trainings import describe_tokenizer
from tests.benchmarks.parts import (
    CONTEXT_SIZE,
    D_IN,
    K_OF_TOPK,
    L0_OF_JUMPRELU,
    sae_config,
    write_model,
    write_tokenizer,
)

D_SAE, N_CONTEXTS, N_CALIBRATION = 8192, 256, 64
CONFIG = ExtractionConfig(
    context_size=CONTEXT_SIZE,
    n_tokens=N_CONTEXTS * CONTEXT_SIZE,
    prepend_bos=False,  # so that every token counts, for all
    exclude_special_tokens=False,
    n_logits=0,  # read off the weights, once per run; only SAEDashboard has them too
    n_neighbours=0,  # likewise, and no peer has them
)


def write_saes(root: Path, x: torch.Tensor) -> None:
    """Write both SAEs; `x` [token, d_in] is what they read."""
    mean, chance = x.mean(0), torch.Generator().manual_seed(1)
    centred = x - mean
    some = centred[torch.randint(len(x), (D_SAE,), generator=chance)]
    noise = torch.randn(D_SAE, D_IN, generator=chance) * centred.std(0)
    directions = torch.nn.functional.normalize(some + noise, dim=1)
    p = centred @ directions.T
    density = torch.exp(1.2 * torch.randn(D_SAE, generator=chance))
    density *= L0_OF_JUMPRELU / density.sum()
    rank = (density.clamp(max=0.2) * len(p)).long().clamp(min=1)
    threshold = p.sort(0, descending=True).values.gather(0, rank[None])[0].clamp(min=1e-3)
    # off the token it comes from, which any rounding would move across
    threshold *= 1 - 1e-4
    _write(root / "sae-jumprelu", directions, mean, p * (p > threshold), centred,
           threshold=threshold)  # fmt: skip
    margin = p - threshold
    enough = -margin.topk(K_OF_TOPK, dim=1).values[:, -1].quantile(0.001)
    best = (margin + enough).relu().topk(K_OF_TOPK, dim=1)
    acts = torch.zeros_like(p).scatter_(1, best.indices, best.values)
    _write(root / "sae-topk", directions, mean, acts, centred, b_enc=enough - threshold)


def _write(folder, directions, mean, acts, centred, **thresholds) -> None:
    """Write an SAE whose decoder rows have norm 1, scaled to reconstruct best."""
    x_hat = acts @ directions
    scale = (x_hat * centred).sum() / x_hat.square().sum()
    weights = {"W_enc": scale * directions.T, "W_dec": directions, "b_dec": mean}
    weights["b_enc"] = torch.zeros(D_SAE)
    weights |= {name: scale * value for name, value in thresholds.items()}
    config = sae_config("jumprelu" if "threshold" in thresholds else "topk", D_SAE)
    if config["architecture"] == "topk":
        # SAEDashboard folds decoder norms in, and SAELens refuses to without this; the norms
        # are 1, so that it changes no number.
        config["rescale_acts_by_decoder_norm"] = True
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
