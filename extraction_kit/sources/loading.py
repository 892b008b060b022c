"""Loading a `transformers` model no further than its hookpoint."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from extraction_kit.errors import BadModel
from extraction_kit.sources.models import HookedModel
from extraction_kit.trainings import Hookpoint, ModelSpec
from extraction_kit.trainings.families import FAMILIES

_SHOWN = 5
_HEADS = re.compile(r"(?:^|\.)pooler\.")  # of an encoder: never executed
_FAILURES = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def load_model(  # noqa: PLR0913 - what, where, and how much of it
    spec: ModelSpec,
    hookpoint: Hookpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    target: Hookpoint | None = None,
    others: Iterable[Hookpoint] = (),
    device_map: str | None = None,
    whole: bool = False,
) -> HookedModel:
    """Load a model from its local folder; nothing is downloaded, no remote code is run.

    Parameters
    ----------
    spec, hookpoint, target
        The model, and the places that are captured.
    others : iterable of Hookpoint
        Places that are captured too, see ``HookedModel.at``: the layers below them are loaded.
    device, dtype
        Where and in what arithmetic. A quantised model keeps its own weights; `dtype` is
        that of its activations.
    device_map : str, optional
        Spreads the layers over several devices, see `transformers`; needs `accelerate`.
    whole : bool
        Load the layers above the last captured one too.

    Raises
    ------
    BadModel
        The folder is missing or torn, weights are absent or not finite, a package that its
        quantisation needs is not installed, or the hookpoint is not in the model.
    """
    path = spec.path
    if path is None or not os.path.isdir(path):  # noqa: PTH112 - one call, no Path needed
        raise BadModel(f"model folder {path!r} is not there: was it moved or deleted?")
    family = FAMILIES.get(spec.model_type)
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
            encoder = _is_encoder(config)
            if family is not None and not whole:
                _cut(config, _layers_needed([hookpoint, target, *others]))
            quantised = getattr(config, "quantization_config", None) is not None
            auto = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
            where = device_map or ({"": str(device)} if quantised else None)
            model, report = auto.from_pretrained(
                path, config=config, dtype=dtype, local_files_only=True,
                output_loading_info=True, **({} if where is None else {"device_map": where}),
            )  # fmt: skip
        except _FAILURES as error:
            raise BadModel(
                f"model {path} cannot be loaded by transformers "
                f"{transformers.__version__}: {_first_line(error)}. Save it again with "
                "model.save_pretrained(folder)"
            ) from error
    _refuse_absent(path, report)
    _refuse_non_finite(path, model)
    return hooked(
        model if where is not None else model.to(device), spec, hookpoint, target=target
    )


def hooked(
    model: nn.Module,
    spec: ModelSpec,
    hookpoint: Hookpoint,
    *,
    target: Hookpoint | None = None,
) -> HookedModel:
    """Return a loaded `transformers` model as what runs up to a hookpoint; eval mode."""
    family = FAMILIES.get(spec.model_type)
    norm = None
    if family is not None:
        norm = ".".join(part for part in (family.base, family.norm) if family.norm and part)
    return HookedModel(
        model, hookpoint, target, sees_ahead=_is_encoder(model.config), final_norm=norm
    )


def _is_encoder(config: Any) -> bool:  # noqa: ANN401 - transformers has no types
    """Tell whether tokens see those behind them.

    Raises
    ------
    ValueError
        It is an encoder and a decoder in one, or no language model.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        msg = f"{kind} models have an encoder and a decoder: one of them alone is supported"
        raise ValueError(msg)
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    return masked and not getattr(config, "is_decoder", False)


def _layers_needed(places: Iterable[Hookpoint | None]) -> int | None:
    """Return how many layers lead to the places; None if it may be all of them."""
    layers = [place.layer for place in places if place is not None]
    known = [layer for layer in layers if layer is not None]
    return max(known) + 1 if len(known) == len(layers) else None


def _cut(config: Any, n_layers: int | None) -> None:  # noqa: ANN401 - transformers has no types
    """Let a config say `n_layers`, so that those above are neither made nor read."""
    whole = config.num_hidden_layers
    if n_layers is None or n_layers >= whole:
        return
    for name, value in vars(config).copy().items():
        if "layer" in name and isinstance(value, list) and len(value) == whole:
            setattr(config, name, value[:n_layers])
    config.num_hidden_layers = n_layers


def _refuse_absent(path: str, report: Mapping[str, Any]) -> None:
    names = (str(name) for name in report.get("missing_keys") or ())
    absent = sorted(name for name in names if not _HEADS.search(name))
    if absent:
        raise BadModel(
            f"model {path} lacks {len(absent)} weights ({', '.join(absent[:_SHOWN])}), "
            "which transformers would fill with random numbers: copy the model again"
        )


def _refuse_non_finite(path: str, model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not weight.dtype.is_floating_point or weight.element_size() == 1:
            continue  # quantised
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise BadModel(
                f"model {path} has numbers that are not finite in {name}: copy it again, "
                "or load it in the dtype that it was saved in"
            )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and notices for a while."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
