"""A TopK SAE trained in half a minute: enough to look at, no record.

Imports torch: import it only when the SAE has to be trained. Formula and loss as in Gao et
al., "Scaling and evaluating sparse autoencoders" (https://arxiv.org/abs/2406.04093). Two
things make it quick: features begin as directions of real activations, and the encoder
begins at the scale that fits them best.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from extraction_kit import atomic
from extraction_kit.corpora import Corpus
from extraction_kit.demo.folders import whole_folder
from extraction_kit.sources import HookedModel, load_model
from extraction_kit.trainings import ModelSpec
from extraction_kit.trainings.hookpoints import resolve_hookpoint
from extraction_kit.trainings.model_folder import read_model_config
from extraction_kit.trainings.sae_formats.saelens import CONFIG, WEIGHTS

_CONTEXTS_AT_ONCE = 8
_HELD_OUT = 10  # one of so many rows is not trained on
_WARMUP_STEPS = 20
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an SAE is trained."""

    d_sae: int = 2048
    k: int = 32
    n_steps: int = 200
    n_rows: int = 512
    """Activations per step."""
    lr: float = 2e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainedSae:
    """Weights of a TopK SAE in the units of the model, and how good it is."""

    weights: Mapping[str, Tensor]
    """``W_enc`` [d_in, d_sae], ``W_dec`` [d_sae, d_in] of unit rows, ``b_enc``, ``b_dec``."""
    k: int
    fvu: float
    """Share of the variance that is not explained, on activations that were held out."""
    dead_share: float
    """Share of the features that no activation of the sample makes active."""


# --- activations ----------------------------------------------------------------------------


def load_hooked(spec: ModelSpec, hook_name: str) -> HookedModel:
    """Load a model that runs up to a hook."""
    hookpoint = resolve_hookpoint(hook_name, read_model_config(Path(spec.path)))
    cpu = torch.device("cpu")
    return load_model(spec, hookpoint, device=cpu, dtype=torch.float32)


def collect_activations(
    model: HookedModel, corpus: Corpus, report: Callable[[int], None]
) -> Float[Tensor, "row d_in"]:
    """Return the activations of all valid tokens of a corpus.

    BOS, which stands first in each context, is not among them: language models park a
    vector of enormous norm there, which an SAE would learn before anything else.
    """
    parts = []
    with torch.inference_mode():
        for start in range(0, corpus.n_contexts, _CONTEXTS_AT_ONCE):
            batch = corpus.read(start, _CONTEXTS_AT_ONCE)
            found = model(torch.from_numpy(batch.tokens.astype(np.int64)))
            parts.append(found[torch.from_numpy(batch.valid.reshape(-1))])
            report(sum(len(part) for part in parts))
    return torch.cat(parts).clone()


# --- training -------------------------------------------------------------------------------


class _TopkSae:
    """The parameters while they are trained, for activations of mean 0 and scale 1."""

    def __init__(self, x: Float[Tensor, "row d_in"], recipe: Recipe) -> None:
        self.k = recipe.k
        first = x[: recipe.d_sae]
        self.w_dec = first / torch.linalg.vector_norm(first, dim=1, keepdim=True)
        self.w_enc = self.w_dec.T.contiguous()
        self.b_enc, self.b_dec = x.new_zeros(recipe.d_sae), x.new_zeros(x.shape[1])
        sample = x[:_ROWS_AT_ONCE]
        x_hat = self.encode(sample) @ self.w_dec
        self.w_enc *= (x_hat * sample).sum() / x_hat.square().sum()
        self.parameters = [self.w_enc, self.w_dec, self.b_enc, self.b_dec]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        pre = torch.addmm(self.b_enc, x - self.b_dec, self.w_enc)
        value, feature = pre.topk(self.k, dim=1)
        return torch.zeros_like(pre).scatter(1, feature, value.relu())

    def decode(self, z: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_in"]:
        x_hat: Tensor = z @ self.w_dec + self.b_dec
        return x_hat


def train_topk_sae(
    activations: Float[Tensor, "row d_in"],
    recipe: Recipe,
    report: Callable[[int, float], None] | None = None,
) -> TrainedSae:
    """Train an SAE; equal arguments (and threads) give equal weights.

    Parameters
    ----------
    activations : Tensor [row, d_in]
        At least ``recipe.d_sae`` rows, plus a tenth that is held out.
    recipe : Recipe
        Sizes and steps.
    report : callable, optional
        Called with the steps done and the FVU of the last batch.
    """
    mean = activations.mean(0)
    centred = activations - mean
    scale = centred.square().mean().sqrt()
    generator = torch.Generator().manual_seed(recipe.seed)
    x = centred[torch.randperm(len(centred), generator=generator)] / scale
    held_out, x = x[: len(x) // _HELD_OUT], x[len(x) // _HELD_OUT :]
    sae = _TopkSae(x, recipe)
    optimizer = torch.optim.Adam(sae.parameters, lr=recipe.lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _share_of_lr(step, recipe.n_steps)
    )
    for step in range(recipe.n_steps):
        rows = torch.randint(len(x), (recipe.n_rows,), generator=generator)
        fvu = _step(sae, x[rows], optimizer)
        schedule.step()
        if report is not None:
            report(step + 1, fvu)
    with torch.inference_mode():
        fired = torch.zeros(recipe.d_sae, dtype=torch.bool)
        for some in torch.split(x, _ROWS_AT_ONCE):
            fired |= (sae.encode(some) > 0).any(dim=0)
        fvu = _fvu(held_out, sae.decode(sae.encode(held_out)))
    return TrainedSae(
        weights=_in_units_of_the_model(sae, mean, scale),
        k=recipe.k,
        fvu=fvu,
        dead_share=1 - float(fired.float().mean()),
    )


def _share_of_lr(step: int, n_steps: int) -> float:
    """Return the learning rate's factor: a short rise, then down in the second half."""
    rise = (step + 1) / min(_WARMUP_STEPS, n_steps)
    return min(1.0, rise, max(0.02, 2 * (n_steps - step) / n_steps))


def _step(sae: _TopkSae, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    x_hat = sae.decode(sae.encode(x))
    loss = (x_hat - x).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    with torch.no_grad():
        sae.w_dec /= torch.linalg.vector_norm(sae.w_dec, dim=1, keepdim=True)
        return _fvu(x, x_hat)


def _fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


def _in_units_of_the_model(sae: _TopkSae, mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Fold the normalisation into the weights, decoder rows staying of length 1.

    relu and top-k commute with a positive scale: encoding ``x - b_dec`` instead of its
    scaled self, with ``b_enc`` scaled, gives features that are `scale` times as large.
    """
    return {
        "W_enc": sae.w_enc.detach(),
        "b_enc": sae.b_enc.detach() * scale,
        "W_dec": sae.w_dec.detach(),
        "b_dec": sae.b_dec.detach() * scale + mean,
    }


def save_sae(folder: Path, sae: TrainedSae, *, metadata: Mapping[str, Any]) -> None:
    """Save an SAE in the format of SAELens 6.

    Parameters
    ----------
    folder : Path
        Appears when it is complete.
    sae : TrainedSae
        The SAE.
    metadata : mapping
        ``hook_name``, ``model_name``, ``context_size``, ``prepend_bos`` and others.
    """
    d_in, d_sae = sae.weights["W_enc"].shape
    config = {
        "architecture": "topk",
        "d_in": d_in,
        "d_sae": d_sae,
        "k": sae.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": dict(metadata),
    }
    with whole_folder(folder) as staged:
        contiguous = {name: part.contiguous() for name, part in sae.weights.items()}
        save_file(contiguous, staged / WEIGHTS)
        atomic.write_json(staged / CONFIG, config)
