"""The logit lens: what a feature's decoder row does to the logits, read off the weights.

The final norm of a model takes its scale from the data, which weights cannot know. All else is
in them: for a decoder row d in the residual stream, gain g of the final norm and unembedding U,

    logits per unit of activation = U (g * (d - mean(d)))      LayerNorm
                                    U (g * d)                  RMSNorm

times one positive number that differs from token to token and is left out, as is what does not
depend on d: the bias of a LayerNorm and that of the unembedding. So the order of the tokens is
that of the direct effect, the unit is not. Soft-capping of the logits (Gemma 2) keeps the order
and is left out too, and so is the scale that an SAE that normalises its input gives its output.
Layers in between are skipped, as always with this lens.

nostalgebraist 2020, "interpreting GPT: the logit lens",
https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru; of SAE features: Bricken et al. 2023,
https://transformer-circuits.pub/2023/monosemantic-features, "logit weights".
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from extraction_kit.sources.models import HookedModel
from extraction_kit.trainings import Hookpoint, ModelSpec
from extraction_kit.trainings.families import FAMILIES, Family
from extraction_kit.trainings.hookpoints import is_residual_stream
from extraction_kit.trainings.model_folder import read_model_config

_LARGE = 2.0**10  # so that a norm's epsilon is nothing


@dataclass(frozen=True, kw_only=True)
class LogitLens:
    """The way from the residual stream to the logits, without what depends on the data."""

    unembedding: Float[Tensor, "token width"]
    """Of the tokens that the tokenizer has; as it was loaded, not copied."""
    gain: Float64[Tensor, " width"]
    """What the final norm multiplies by; 1 + weight in Gemma."""
    centred: bool
    """Whether the final norm takes the mean away."""
    soft_cap: float | None
    norm: str

    def read(self, rows: Float64[Tensor, "feature width"]) -> Float64[Tensor, "f width"]:
        """Return decoder rows as the unembedding sees them."""
        if self.centred:
            rows = rows - rows.mean(dim=1, keepdim=True)
        return rows * self.gain.to(rows.device)

    def to_dict(self) -> dict[str, Any]:
        """Return what was folded and what was left out, as plain JSON values."""
        return {
            "final_norm": self.norm,
            "folded": ["weight of the final norm"]
            + (["centring of the decoder row"] if self.centred else []),
            "left_out": ["scale of the final norm", "biases"]
            + ([] if self.soft_cap is None else [f"soft cap {self.soft_cap:g}"]),
            "n_tokens_ranked": self.unembedding.shape[0],
        }


def logit_lens(
    model: HookedModel, spec: ModelSpec, written: Hookpoint, *, n_tokens: int
) -> tuple[LogitLens | None, str | None]:
    """Return the lens for what is written at a place, or why there is none.

    Parameters
    ----------
    model : HookedModel
        The model, cut or whole: its final norm and head are there in both.
    spec : ModelSpec
        What its files say.
    written : Hookpoint
        Where the SAE's output belongs.
    n_tokens : int
        Tokens that the tokenizer has; an unembedding with more rows is padded.
    """
    model_type = spec.model_type
    family = FAMILIES.get(model_type)
    if model.sees_ahead:
        return None, f"{model_type} is an encoder: no head of it predicts the next token"
    if family is None:
        return None, f"which norm precedes the head of {model_type} is not known"
    if not is_residual_stream(written, read_model_config(Path(spec.path))):
        return None, (
            f"what is written at {written.hook_name!r} does not go into the residual stream "
            "as it is"
        )
    weight, absent = _unembedding(model.model)
    if weight is None:
        return None, absent
    soft_cap = getattr(model.model.config, "final_logit_softcapping", None)
    norm = ".".join(part for part in (family.base, family.norm) if part)
    return LogitLens(
        unembedding=weight[:n_tokens],
        gain=_gain(model.model.get_submodule(norm), family),
        centred=family.centred,
        soft_cap=soft_cap,
        norm=norm,
    ), None


def _unembedding(model: nn.Module) -> tuple[Tensor | None, str | None]:
    head = model.get_output_embeddings()  # type: ignore[operator] # of transformers
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor):
        return None, f"{type(model).__name__} was loaded without an unembedding matrix"
    plain = weight.dtype.is_floating_point and weight.element_size() > 1
    if not plain or type(weight.data) is not Tensor:
        return None, f"the unembedding is quantised ({weight.dtype})"
    if weight.is_meta:
        return None, "the unembedding is not in memory (device_map)"
    return weight.data, None


def _gain(norm: nn.Module, family: Family) -> Float64[Tensor, " width"]:
    """Return what a norm multiplies by; of an RMSNorm it is what it makes of equal numbers.

    Its weight would not do: Gemma multiplies by 1 + weight.
    """
    norm = copy.deepcopy(norm).to(torch.float32)
    weight: Tensor = norm.get_parameter("weight")
    if not family.centred:
        weight = norm(torch.full_like(weight, _LARGE))
    return weight.detach().to(torch.float64)
