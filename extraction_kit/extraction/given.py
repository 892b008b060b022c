"""Parts of an extraction that are objects of this process, used and left as they were."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from extraction_kit.config import ExtractionConfig, Settings
from extraction_kit.errors import BadConfig, BadModel, BadSae, BadSettings
from extraction_kit.sources.custom_sae import EncodesAndDecodes
from extraction_kit.sources.devices import DTYPES, resolve_device
from extraction_kit.sources.loading import hooked
from extraction_kit.sources.models import HookedModel
from extraction_kit.trainings import Hookpoint, ModelSpec, SaeSpec


@dataclass(frozen=True)
class Functions:
    """Two functions in the place of an SAE."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is in memory already; what is None is loaded from its files."""

    saes: Mapping[str, EncodesAndDecodes] = field(default_factory=dict)
    """By training id."""
    model: nn.Module | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules among them, those of bound methods too."""
        parts: list[object] = [self.model, *self.saes.values()]
        for sae in self.saes.values():
            if isinstance(sae, Functions):
                functions = (sae.encode, sae.decode)
                parts += [getattr(function, "__self__", None) for function in functions]
        found = (each for each in parts if isinstance(each, nn.Module))
        return tuple(dict.fromkeys(found))

    def settings(self, settings: Settings) -> Settings:
        """Return `settings` for the device that the objects are on.

        Raises
        ------
        BadSettings
            They are on different ones, or ``settings.device`` asks for another.
        """
        devices = {str(device) for each in self.modules for device in _devices(each)}
        if self.model is not None:  # it is where it is
            settings = replace(settings, device_map=None)
        if not devices:
            return settings
        asked = settings.device
        if len(devices) > 1 or (
            asked != "auto" and str(_placed(resolve_device(asked))) not in devices
        ):
            wish = "" if asked == "auto" else f", Settings say device={asked!r}"
            raise BadSettings(
                f"the objects are on {' and '.join(sorted(devices))}{wish}: they are used "
                "where they are, never moved. Move them to one device first"
            )
        return replace(settings, device=devices.pop())

    def check_dtype(self, config: ExtractionConfig) -> None:
        """Refuse a model that computes in another arithmetic than `config` says.

        Raises
        ------
        BadConfig
            It does; it is never converted, because it is not ours.
        """
        found = getattr(self.model, "dtype", None)
        if self.model is not None and found is not DTYPES[config.dtype]:
            raise BadConfig(
                f"the model is in {str(found).removeprefix('torch.')}, the config says "
                f"dtype={config.dtype!r}: pass config=ExtractionConfig(dtype=...) with the "
                "model's, or load the model with the config's"
            )

    def hooked(self, spec: ModelSpec, hookpoint: Hookpoint) -> HookedModel:
        """Return the model as what runs up to a hookpoint."""
        assert self.model is not None  # noqa: S101 - for the type checker
        try:
            return hooked(self.model, spec, hookpoint)
        except ValueError as error:
            if isinstance(error, BadModel):
                raise
            raise BadModel(f"{spec.source} cannot be used: {error}") from error


def as_sae(given: object) -> EncodesAndDecodes:
    """Return an object with ``encode`` and ``decode``, from such an object or two functions.

    Raises
    ------
    BadSae
        It is neither.
    """
    if isinstance(given, EncodesAndDecodes):
        return given
    if isinstance(given, tuple) and len(given) == 2 and all(map(callable, given)):  # noqa: PLR2004 - a pair
        return Functions(*given)
    raise BadSae(
        f"sae={type(given).__name__} object: a folder, an object with encode(x) "
        "[row, d_in] -> [row, d_sae] and decode(f) [row, d_sae] -> [row, d_in], or the two "
        "functions as a pair (encode, decode) is needed"
    )


def name_of(given: object) -> str:
    """Return what messages call an object."""
    return f"{type(given).__name__} object"


def describe_given(
    sae: EncodesAndDecodes,
    *,
    d_in: int,
    d_sae: int | None,
    hook_name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> SaeSpec:
    """Describe an SAE that is an object; None for `d_sae` asks it by encoding one row.

    Raises
    ------
    BadSae
        It cannot encode and decode a row of `d_in` numbers, or gives another width.
    """
    row = torch.zeros(1, d_in, device=device, dtype=dtype)
    it = name_of(sae)
    f = _tried(
        sae.encode, row, f"encode of {it} on a row of d_in={d_in}, {dtype}, {device}"
    )
    if f.ndim != 2 or f.shape[0] != 1 or f.shape[1] != (d_sae or f.shape[1]):  # noqa: PLR2004 - row, d_sae
        raise BadSae(
            f"encode of {it} makes a tensor of shape {list(f.shape)} of one of shape "
            f"[1, {d_in}]: {[1, d_sae or 'd_sae']} is needed"
        )
    x_hat = _tried(
        sae.decode, torch.zeros_like(f), f"decode of {it} on a row of {f.shape[1]}"
    )
    if tuple(x_hat.shape) != (1, d_in):
        raise BadSae(
            f"decode of {it} makes a tensor of shape {list(x_hat.shape)} of one of shape "
            f"{list(f.shape)}: [1, {d_in}] is needed, as wide as the activations at "
            f"{hook_name!r}"
        )
    return SaeSpec(
        path=it,
        format="object",
        architecture="custom",
        d_in=d_in,
        d_sae=f.shape[1],
        k=None,
        apply_b_dec_to_input=False,
        normalize_activations="none",
        rescale_acts_by_decoder_norm=False,
        hook_name=hook_name,
        metadata={},
        digest="",
        factory=it,
    )


def _tried(call: Callable[[Tensor], Tensor], row: Tensor, what: str) -> Tensor:
    try:
        with torch.no_grad():
            made = call(row)
    except Exception as error:
        raise BadSae(
            f"{what} fails with {type(error).__name__}: {error}. Does this SAE belong to this "
            "hook_name, and is it in this dtype and on this device?"
        ) from error
    if not isinstance(made, Tensor):
        raise BadSae(f"{what} returns a {type(made).__name__}, a tensor is needed")
    return made


@contextmanager
def left_as_they_were(*modules: nn.Module) -> Iterator[None]:
    """Let modules be in eval mode for a while; modes, buffers and hooks are put back."""
    with ExitStack() as undo:
        for module in modules:
            for each in module.modules():
                undo.callback(_put_back, each, _kept(each))
            module.eval()
        yield


_HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)
# transformers 5 installs hooks for good when a model is first asked for its hidden states
# (utils/output_capturing.py), and notes it here.
_INSTALLED = "_output_capturing_hooks_installed"


def _kept(module: nn.Module) -> dict[str, Any]:
    return {
        "training": module.training,
        "buffers": {
            name: each.clone() for name, each in module.named_buffers(recurse=False)
        },
        "hooks": {name: dict(getattr(module, name) or {}) for name in _HOOKS},
        "installed": _INSTALLED in vars(module),
    }


def _put_back(module: nn.Module, kept: Mapping[str, Any]) -> None:
    module.training = kept["training"]
    for name, hooks in kept["hooks"].items():
        there = getattr(module, name)
        if there:  # the same object: handles of the owner's refer to it
            there.clear()
            there.update(hooks)
    if not kept["installed"]:
        vars(module).pop(_INSTALLED, None)
    now = dict(module.named_buffers(recurse=False))
    with torch.no_grad():
        for name, before in kept["buffers"].items():
            if name in now and not torch.equal(now[name], before):
                now[name].copy_(before)


def _devices(module: nn.Module) -> set[torch.device]:
    return {_placed(each.device) for each in (*module.parameters(), *module.buffers())}


def _placed(device: torch.device) -> torch.device:
    """Return `device` as its tensors name it: cuda is cuda:0."""
    return torch.empty(0, device=device).device
