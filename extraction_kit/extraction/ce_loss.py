"""What the model loses when the SAE's output takes the place of what it describes.

The next-token cross entropy H (nats per token) is measured three ways on the same contexts:
with the model as it is, with the SAE's reconstruction at the hookpoint, with zeros there.

    loss recovered = (H_zero - H_sae) / (H_zero - H_orig)

as SAELens (``evals.py``, ``ce_loss_score``) and dictionary_learning (``evaluation.py``,
``frac_recovered``) have it; 1 is perfect, 0 no better than zeros. Unlike both, sums go over
tokens, not over means of batches, and what the statistics do not count takes no part: only
valid positions are replaced (BOS and other masked ones keep the model's own activations, in
the zero ablation too), and only valid tokens are predicted, from all that stands before them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from extraction_kit.errors import BadModel, BadSettings
from extraction_kit.extraction.rig import Rig
from extraction_kit.extraction.station import Station
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.saes import reconstruct
from extraction_kit.stats import Contexts
from extraction_kit.stats.hashing import Draw, mixed

COLUMNS = ("ce_loss", "ce_loss_sae", "ce_loss_zero", "ce_loss_recovered", "n_ce_tokens")
"""What the summary gets: nats per token, a share, and the number of tokens predicted."""


@dataclass(frozen=True, kw_only=True)
class CeLoss:
    """What was measured, or why nothing was."""

    summary: dict[str, Any]
    """`COLUMNS`; all None where nothing was measured."""
    not_measured_because: str | None = None

    def provenance(self) -> dict[str, Any]:
        """Return plain JSON values."""
        if self.not_measured_because is not None:
            return {"not_measured_because": self.not_measured_because}
        return {
            "unit": "nats per predicted token",
            "replaced": "valid positions only; others keep the model's activations",
            "predicted": "valid tokens only",
        }


def measure_ce_loss(rig: Rig, station: Station, *, tell: Callable[[], None]) -> CeLoss:
    """Measure on ``config.n_ce_contexts`` contexts, those with the smallest hash.

    The whole model is loaded in the place of the one that ends at the hookpoint, once for all
    stations. What fails then (no memory for the logits, no such place) is told as the reason,
    never raised.

    Parameters
    ----------
    rig : Rig
        After the pass.
    station : Station
        The SAE.
    tell : callable
        Called after each tile; what it raises ends the measuring.
    """
    why_not = _why_not(rig, station)
    if why_not is not None:
        return _absent(why_not)
    try:
        return _measured(rig, station, tell)
    except (BadModel, BadSettings) as error:  # no reason to lose what the pass has found
        return _absent(str(error))


def _absent(because: str) -> CeLoss:
    return CeLoss(summary=dict.fromkeys(COLUMNS), not_measured_because=because)


def _measured(rig: Rig, station: Station, tell: Callable[[], None]) -> CeLoss:
    chosen = drawn(rig.corpus.n_contexts, n=rig.config.n_ce_contexts, seed=rig.config.seed)
    model = rig.whole_model_at(station)
    n_tokens, sums = 0, torch.zeros(3, dtype=torch.float64)
    for first in range(0, len(chosen), rig.tile):
        with rig.memory_errors():
            contexts = rig.gather(chosen[first : first + rig.tile])
            n, three = _losses(station, model, contexts)
        n_tokens, sums = n_tokens + n, sums + three
        tell()
    if not n_tokens:
        return _absent("no valid token follows another in the contexts drawn")
    as_it_is, with_sae, with_zeros = (sums / n_tokens).tolist()
    gap = with_zeros - as_it_is
    recovered = (with_zeros - with_sae) / gap if gap else None
    values = (as_it_is, with_sae, with_zeros, recovered, n_tokens)
    return CeLoss(summary=dict(zip(COLUMNS, values, strict=True)))


def _why_not(rig: Rig, station: Station) -> str | None:
    if not rig.config.n_ce_contexts:
        return "n_ce_contexts=0"
    if rig.model.sees_ahead:
        return "the model is an encoder: it predicts no next token"
    if station.compared_at.hook_name.endswith("hook_resid_mid"):
        return (
            "no module of the model passes on the residual stream at hook_resid_mid alone"
        )
    return station.not_compared_because


def drawn(n_contexts: int, *, n: int, seed: int) -> np.ndarray:
    """Return `n` of the contexts 0 to `n_contexts` - 1, uniform, ascending: int64 [n].

    Those with the smallest hash of (seed, context): of a larger `n`, all of a smaller one.
    """
    context = torch.arange(n_contexts)
    hashes = mixed(Draw.CE_CONTEXTS.seed(seed), context)
    return torch.argsort(hashes, stable=True)[:n].sort().values.numpy()


def _losses(station: Station, model: HookedModel, contexts: Contexts) -> tuple[int, Tensor]:
    """Return the tokens predicted in a tile, and their summed losses in the three ways."""
    tokens, valid = contexts.tokens, contexts.valid
    rows = valid.reshape(-1, 1)

    def with_sae(x: Tensor, there: Tensor) -> Tensor:
        x_hat = reconstruct(station.sae, x, contexts).to(there)
        return torch.where(rows.to(there.device), x_hat, there)

    def with_zeros(_: Tensor, there: Tensor) -> Tensor:
        return there.masked_fill(rows.to(there.device), 0)

    losses = []
    for change in (None, with_sae, with_zeros):
        logits = model.logits(tokens, write=station.compared_at, change=change)
        losses.append(summed_loss(logits, tokens, valid))
        del logits  # they are large: one at a time
    return int(valid[:, 1:].sum()), torch.stack(losses)


def summed_loss(
    logits: Float[Tensor, "context pos vocab"],
    tokens: Int64[Tensor, "context pos"],
    valid: Bool[Tensor, "context pos"],
) -> Tensor:
    """Return the cross entropy in nats, summed over the valid tokens but the first: float64."""
    total = torch.zeros((), dtype=torch.float64)
    following, counted = tokens[:, 1:].to(logits.device), valid[:, 1:].to(logits.device)
    for scores, ids, counts in zip(logits[:, :-1], following, counted, strict=True):
        loss = functional.cross_entropy(
            scores[counts].float(), ids[counts], reduction="none"
        )
        total += loss.cpu().double().sum()
    return total
