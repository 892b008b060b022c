"""The first batch, looked at before the work: whether the SAE explains what it reads.

A wrong layer, a missing normalisation or a BOS that should not be counted leave every shape
right and every number wrong. They show in the fraction of variance unexplained (FVU), but not
always by themselves: an SAE one layer off may still explain most of what it reads. So the
usual mistakes are undone one at a time on the same tokens, and if one of them explains clearly
more, it is named. What costs a copy of the weights, or the layers above, is tried only where
the FVU is doubtful; the layers above also where the SAE's files name another hookpoint.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from extraction_kit.errors import BadSae
from extraction_kit.sources.models import HookedModel
from extraction_kit.sources.sae_weights import load_weights
from extraction_kit.sources.saes import Autoencoder, SparseAutoencoder
from extraction_kit.stats import Contexts
from extraction_kit.trainings import Hookpoint, SaeSpec, Training
from extraction_kit.trainings.families import FAMILIES
from extraction_kit.trainings.hookpoints import layer_hooks
from extraction_kit.trainings.model_folder import read_model_config

DOUBTFUL_FVU = 0.3
"""Above it, what is costly to try is tried too."""
BETTER = 0.7
"""An explanation must bring the FVU below this share of what was found."""
NO_BETTER_THAN_MEAN = 1.0
"""The FVU of a constant; at or above it nothing is computed."""
_TOKENS = 512  # on which explanations are tried
_FEWEST = 64  # of an SAE so large that more would take minutes
_WORK = 2**35  # multiplications of the encoder for one explanation on a CPU: about a second
_NEAR = 2  # layers below within which another place is always looked for


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Contexts on the device of the model."""

    tokens: Int64[Tensor, "context pos"]
    present: Bool[Tensor, "context pos"]
    valid: Bool[Tensor, "context pos"]

    def first(self, n_tokens: int) -> "Batch":
        """Return the first contexts, about so many tokens; of a longer one its beginning."""
        n = max(1, n_tokens // self.tokens.shape[1])
        return Batch(
            tokens=self.tokens[:n, :n_tokens],
            present=self.present[:n, :n_tokens],
            valid=self.valid[:n, :n_tokens],
        )

    def with_bos(self, bos_id: int) -> "Batch":
        """Return the contexts with BOS before them, their last token gone."""
        valid = self.valid.roll(1, 1)
        valid[:, 0] = False
        tokens, present = self.tokens.roll(1, 1), self.present.roll(1, 1)
        tokens[:, 0], present[:, 0] = bos_id, True
        return Batch(tokens=tokens, present=present, valid=valid & present)

    def without_first(self) -> "Batch":
        """Return the contexts without their first token."""
        return Batch(
            tokens=self.tokens[:, 1:], present=self.present[:, 1:], valid=self.valid[:, 1:]
        )

    def not_counting_first(self) -> "Batch":
        """Return the contexts, whose first token does not count."""
        valid = self.valid.clone()
        valid[:, 0] = False
        return replace(self, valid=valid)


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What the first batch showed."""

    n_tokens: int
    """Valid tokens in it."""
    l0: float
    fvu: float | None
    """None where there is nothing to compare the output with."""
    likely_cause: str | None = None
    """What explains an implausible FVU, and what to do; None if nothing does."""
    tried: Mapping[str, float] = field(default_factory=dict)
    """FVU under each explanation that was tried."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "n_tokens": self.n_tokens,
            "l0": self.l0,
            "fvu": self.fvu,
            "likely_cause": self.likely_cause,
            "tried": dict(self.tried),
        }


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is tried together."""

    training: Training
    model: HookedModel
    sae: Autoencoder
    load_whole: Callable[[], HookedModel]
    """Loads the model with all its layers, which other places are looked for in."""
    compared: bool
    """Whether the SAE's output can be compared with anything."""


def preflight(parts: Parts, batch: Batch, *, refuse: bool) -> Preflight:
    """Measure the first batch, and refuse an SAE that does not explain it.

    Parameters
    ----------
    parts : Parts
        Model and SAE.
    batch : Batch
        The first contexts.
    refuse : bool
        False only reports.

    Raises
    ------
    BadSae
        No feature fires, or the FVU is implausible: with the figures, what was tried, the
        likely cause and what to type.
    """
    x, target = parts.model.with_target(batch.tokens, batch.present)
    l0, measured = _measure(parts.sae, x, batch.valid, target=target)
    # What is not finite is refused in the loop, with its place.
    fvu = measured if parts.compared and math.isfinite(measured) else None
    found = Preflight(n_tokens=int(batch.valid.sum()), l0=l0, fvu=fvu)
    if fvu is not None:
        few = batch.first(_n_tried(parts.training.sae, x.device))
        found = _diagnosed(parts, few, found, costly=fvu > DOUBTFUL_FVU)
    silent = l0 == 0
    useless = fvu is not None and fvu >= NO_BETTER_THAN_MEAN
    if refuse and (silent or useless or found.likely_cause is not None):
        raise BadSae(_refusal(parts.training, found))
    return found


def _n_tried(sae: SaeSpec, device: torch.device) -> int:
    """Return on how many tokens explanations are tried: there may be a hundred of them."""
    if device.type != "cpu":
        return _TOKENS
    return max(_FEWEST, min(_TOKENS, _WORK // (sae.d_in * sae.d_sae)))


def _measure(
    sae: Autoencoder,
    x: Float[Tensor, "row d_in"],
    valid: Bool[Tensor, "context pos"],
    *,
    target: Tensor | None = None,
) -> tuple[float, float]:
    """Return (L0, FVU) over the valid rows, in float64.

    FVU = sum (x - x_hat)^2 / sum (x - mean)^2
    """
    contexts = Contexts.consecutive(0, torch.zeros_like(valid, dtype=torch.int64), valid)
    normal = sae.normalize(x)
    x_hat, n_active = sae.baseline(x), 0
    for active in sae.encode(normal.x, contexts):
        x_hat = x_hat + sae.decode(active, n_rows=x.shape[0])
        n_active += active.n_active
    rows = valid.reshape(-1)
    made = normal.undo(x_hat).expand(x.shape[0], -1)[rows].double()
    wanted = (x if target is None else target)[rows].double()
    spread = float((wanted - wanted.mean(0)).square().sum())
    error = float((wanted - made).square().sum())
    return n_active / max(1, int(rows.sum())), error / spread if spread else float("nan")


# --- what may be wrong ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Explanation:
    cause: str
    advice: str
    fvu: float


def _diagnosed(parts: Parts, batch: Batch, found: Preflight, *, costly: bool) -> Preflight:
    """Try the usual mistakes on a few contexts; name the one whose absence explains most.

    A first token that should not count hides all else: its norm may be a hundred times that
    of the others. So all is tried on the others, and it is named if nothing else explains
    them better.
    """
    others = batch.not_counting_first()
    x, target = parts.model.with_target(batch.tokens, batch.present)
    found_here = _measure(parts.sae, x, batch.valid, target=target)[1]
    counts_first = bool(batch.valid[:, 0].any()) and bool(others.valid.any())
    if not counts_first:
        others = batch
    here = _measure(parts.sae, x, others.valid, target=target)[1]
    tried = [
        *_normalisations(parts, others, x, target=target),
        *_starts(parts, others),
        *_places(
            parts, others, target, everywhere=costly or _is_contradicted(parts.training)
        ),
    ]
    if costly:
        tried += _readings(parts, others, x, target=target)
    tried = [each for each in tried if math.isfinite(each.fvu)]
    best = min(tried, key=lambda each: each.fvu, default=None)
    instead = here
    if counts_first:
        first = _first_token(parts, batch, fvu=here)
        tried.append(first)
        if best is None or not _is_better(best.fvu, here):
            best, instead = first, found_here
    cause = None
    if best is not None and _is_better(best.fvu, instead):
        cause = (
            f"{best.cause}: then the FVU is {best.fvu:.3g} instead of {instead:.3g} on the "
            f"same contexts. {best.advice}."
        )
    shown = sorted(tried, key=lambda each: each.fvu)[:12]
    return replace(
        found, likely_cause=cause, tried={each.cause: each.fvu for each in shown}
    )


def _is_better(fvu: float, instead: float) -> bool:
    """Tell whether an explanation is clearly better than what it explains."""
    return fvu < min(BETTER * instead, NO_BETTER_THAN_MEAN)


def _is_contradicted(training: Training) -> bool:
    """Tell whether the SAE's files name another hookpoint than the one that a person chose."""
    return training.sae.hook_name not in {None, training.hookpoint.hook_name}


def _normalisations(
    parts: Parts, batch: Batch, x: Tensor, *, target: Tensor | None
) -> Iterator[_Explanation]:
    """Normalise what the SAE reads, as it may have been in training."""
    spec = parts.training.sae
    if target is not None or spec.normalize_activations != "none":
        return
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    root = spec.d_in**0.5
    scale = root / float(norms[batch.valid.reshape(-1)].mean().clamp(min=1e-12))
    centred = x - x.mean(dim=1, keepdim=True)
    said = (
        "missing normalisation, the SAE was trained with normalize_activations={!r} but "
        "its files say 'none'"
    )
    ways = {
        said.format("constant_norm_rescale"): (
            x * (root / norms.clamp(min=1e-12)), "Correct it there"
        ),
        said.format("layer_norm"): (
            centred / (centred.std(dim=1, keepdim=True) + 1e-5), "Correct it there"
        ),
        "missing normalisation, the SAE was trained on activations scaled to a mean norm "
        f"of sqrt(d_in), here by {scale:.4g}": (
            x * scale,
            "Call sae.fold_activation_norm_scaling_factor(scale) of SAELens and save it",
        ),
        "folded weights, the SAE was trained on a model whose writing weights were centred "
        "(TransformerLens)": (
            centred,
            'Say so in cfg.json: model_from_pretrained_kwargs {"center_writing_weights": true}',
        ),
    }  # fmt: skip
    for cause, (changed, advice) in ways.items():
        yield _Explanation(cause, advice, _measure(parts.sae, changed, batch.valid)[1])


def _readings(
    parts: Parts, batch: Batch, x: Tensor, *, target: Tensor | None
) -> Iterator[_Explanation]:
    """Read the same activations through the SAE as it may have been meant."""
    spec = parts.training.sae
    if spec.factory is not None:  # code of the user's: there is no second way to read it
        return
    weights = load_weights(spec)
    flipped = not spec.apply_b_dec_to_input
    unit = dict(weights) | {"W_dec": functional.normalize(weights["W_dec"], dim=1)}
    meant = {
        "folded weights, the decoder's norms were folded into the encoder but the decoder "
        "kept them": (
            spec, unit, "Divide each row of W_dec by its norm and save the SAE again"
        ),
    }  # fmt: skip
    if spec.normalize_activations != "none":
        cause = (
            "wrong normalisation, the SAE was trained without any but its files say "
            f"{spec.normalize_activations!r}"
        )
        plain = replace(spec, normalize_activations="none")
        meant[cause] = (plain, weights, "Correct it there")
    if spec.d_out in (None, spec.d_in):
        cause = f"wrong bias, the SAE was trained with apply_b_dec_to_input={flipped}"
        other = replace(spec, apply_b_dec_to_input=flipped)
        meant[cause] = (other, weights, "Correct it in the SAE's files")
    for cause, (said, tensors, advice) in meant.items():
        sae = SparseAutoencoder(said, tensors, device=x.device, dtype=x.dtype)
        fvu = _measure(sae, x, batch.valid, target=target)[1]
        yield _Explanation(cause, advice, fvu)


def _has_bos(parts: Parts, batch: Batch) -> bool:
    """Tell whether all contexts begin with BOS."""
    bos = parts.training.tokenizer.bos_id
    return bos is not None and bool((batch.tokens[:, 0] == bos)[batch.present[:, 0]].all())


def _first_token(parts: Parts, batch: Batch, *, fvu: float) -> _Explanation:
    """Return that the first tokens should not count; `fvu` is that of the others."""
    has_bos = _has_bos(parts, batch)
    first = "BOS is" if has_bos else "the first token of each context is"
    return _Explanation(
        f"BOS, {first} counted, whose activations no SAE explains",
        "Set exclude_special_tokens=True"
        if has_bos
        else "Set ignore_positions=(0,), or prepend_bos=True",
        fvu,
    )


def _starts(parts: Parts, batch: Batch) -> Iterator[_Explanation]:
    """Begin contexts in the other way."""
    bos, has_bos = parts.training.tokenizer.bos_id, _has_bos(parts, batch)

    def fvu_of(changed: Batch) -> float:
        x, target = parts.model.with_target(changed.tokens, changed.present)
        return _measure(parts.sae, x, changed.valid, target=target)[1]

    if bos is not None and not has_bos:
        yield _Explanation(
            "BOS, the SAE was trained on contexts that begin with it",
            "Set prepend_bos=True",
            fvu_of(batch.with_bos(bos)),
        )
    if has_bos and batch.tokens.shape[1] > 1:
        yield _Explanation(
            "BOS, the SAE was trained on contexts without it",
            "Set prepend_bos=False",
            fvu_of(batch.without_first()),
        )


def _places(
    parts: Parts, batch: Batch, target: Tensor | None, *, everywhere: bool
) -> Iterator[_Explanation]:
    """Read elsewhere in the model where there is a tensor of this width.

    `everywhere`: in each layer of the whole model; else in the residual stream of the layers
    that are loaded, near the hookpoint.
    """
    here, model = parts.training.hookpoint, parts.training.model
    if model.model_type not in FAMILIES or (here.layer is None and not everywhere):
        return
    loaded = parts.load_whole() if everywhere else parts.model
    last = model.n_layers - 1 if everywhere or here.layer is None else here.layer
    first = 0 if everywhere else max(0, last - _NEAR)
    places = tuple(_hookpoints(parts.training, range(first, last + 1)))
    if not everywhere:
        places = tuple(place for place in places if "resid" in place.hook_name)
    captured = loaded.capture(batch.tokens, places, batch.present) if places else []
    for place, x in zip(places, captured, strict=True):
        if place.place != here.place:
            fvu = _measure(parts.sae, x, batch.valid, target=target)[1]
            kind = "wrong layer" if place.layer != here.layer else "wrong place"
            yield _Explanation(
                f"{kind}, the SAE was trained at {place.hook_name!r} and reads at "
                f"{here.hook_name!r}",
                f"Register it with hook_name={place.hook_name!r}",
                fvu,
            )


def _hookpoints(training: Training, layers: range) -> Iterator[Hookpoint]:
    config = read_model_config(Path(training.model.path))
    for layer in layers:
        for place in layer_hooks(layer, config).values():
            if place.width == training.sae.d_in:
                yield replace(place, centred=training.hookpoint.centred)


def _refusal(training: Training, found: Preflight) -> str:
    fvu = (
        ""
        if found.fvu is None
        else f"FVU {found.fvu:.3g} (fraction of variance unexplained; the mean alone has 1) and "
    )
    if found.likely_cause is not None:
        cause = f"Likely cause: {found.likely_cause}"
    elif found.l0 == 0:
        cause = (
            "No feature fires: thresholds and activations are of different scales. Is the "
            "input normalised as in training, and is this the model it was trained on?"
        )
    else:
        best = min(found.tried.values(), default=None)
        nothing = (
            "" if best is None else f" (the best of {len(found.tried)} has {best:.3g})"
        )
        cause = (
            "No other layer, normalisation, bias or BOS explains it"
            f"{nothing}. Is this the model that the SAE was trained on?"
        )
    return (
        f"preflight of {found.n_tokens:,} tokens: {fvu}L0 {found.l0:.4g}: the SAE "
        f"{training.sae.path} does not explain what it reads at "
        f"{training.hookpoint.hook_name!r}. {cause} To compute nevertheless, use "
        "Settings(preflight='report') or EXTRACTION_KIT_PREFLIGHT=report"
    )
