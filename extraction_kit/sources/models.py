"""A `transformers` language model that runs up to its hookpoint and no further."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from extraction_kit.errors import BadModel
from extraction_kit.trainings import Hookpoint, ModelSpec

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)$")
_SHOWN = 5


class _HookpointReached(BaseException):
    """Ends the forward pass once all is captured; never leaves this module.

    A `BaseException`, so that no ``except Exception`` in a model's code swallows it.
    """


class HookedModel:
    """Maps tokens to the activations at a hookpoint.

    Parameters
    ----------
    model : nn.Module
        A causal language model; put into eval mode.
    hookpoint : Hookpoint
        Where to stop. Modules above it are never executed.
    target : Hookpoint, optional
        A second place, whose activations a transcoder predicts.
    """

    def __init__(
        self, model: nn.Module, hookpoint: Hookpoint, target: Hookpoint | None = None
    ) -> None:
        self.model = model.eval()
        self.hookpoint = hookpoint
        self.target = target
        for each in (hookpoint, target):
            if each is not None:
                self._module(each)

    def _module(self, hookpoint: Hookpoint) -> nn.Module:
        try:
            return self.model.get_submodule(hookpoint.module_path)
        except AttributeError as error:
            inside = [
                name for name, _ in self.model.named_modules() if name.count(".") <= 1
            ]
            raise BadModel(
                f"{type(self.model).__name__} has no module {hookpoint.module_path!r} "
                f"(hook {hookpoint.hook_name!r}); its outer modules are "
                f"{', '.join(filter(None, inside))}"
            ) from error

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def __call__(self, tokens: Int64[Tensor, "context pos"]) -> Float[Tensor, "row width"]:
        """Return the activations of all positions, row = context * context_size + pos.

        No attention mask is passed: the model is causal and padding stands on the right,
        so that no token before it can see it.
        """
        return self._capture(tokens, (self.hookpoint,))[0]

    def with_target(
        self, tokens: Int64[Tensor, "context pos"]
    ) -> tuple[Float[Tensor, "row width"], Float[Tensor, "row target_width"] | None]:
        """Return the activations at the hookpoint and, from the same pass, at the target."""
        if self.target is None:
            return self(tokens), None
        x, target = self._capture(tokens, (self.hookpoint, self.target))
        return x, target

    def _capture(self, tokens: Tensor, places: tuple[Hookpoint, ...]) -> list[Tensor]:
        found: dict[int, object] = {}
        with ExitStack() as hooks:
            for number, each in enumerate(places):

                def keep(activations: object, number: int = number) -> None:
                    found[number] = activations
                    if len(found) == len(places):
                        raise _HookpointReached

                hooks.callback(self._listen(each, keep).remove)
            try:
                self.model(input_ids=tokens, use_cache=False)
            except _HookpointReached:
                return [_checked(found[i], each, tokens) for i, each in enumerate(places)]
        missed = next(each for i, each in enumerate(places) if i not in found)
        raise BadModel(
            f"the forward pass of {type(self.model).__name__} did not reach "
            f"{missed.module_path!r}: pass the hook_name of a module that it uses"
        )

    def _listen(self, place: Hookpoint, keep: Callable[[object], None]) -> RemovableHandle:
        """Let `keep` have what the forward pass brings to a place."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(args[0] if args else kwargs.get("hidden_states"))

        def after(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            # Decoder layers returned tuples before transformers 4.54 and may elsewhere.
            keep(output[0] if isinstance(output, tuple) else output)

        if place.side == "input":
            return self._module(place).register_forward_pre_hook(before, with_kwargs=True)
        return self._module(place).register_forward_hook(after)

    def check_hookpoint(self, tokens: Int64[Tensor, "1 pos"]) -> bool | None:
        """Compare the captured tensor with the model's own record of its hidden states.

        Runs the whole decoder once, so pass a few tokens only.

        Returns
        -------
        bool or None
            True if they are equal; None if the model keeps no record of this place.

        Raises
        ------
        BadModel
            They differ: the hook does not capture what its name says.
        """
        index = self._hidden_state_index()
        if index is None:
            return None
        decoder = getattr(self.model, "base_model", self.model)
        record = decoder(
            input_ids=tokens, use_cache=False, output_hidden_states=True
        ).hidden_states
        captured = self(tokens)
        # The last record has gone through the final norm, so it cannot be compared.
        if record is None or index >= len(record) - 1:
            return None
        expected = record[index].reshape(captured.shape)
        if torch.allclose(captured, expected, rtol=1e-3, atol=1e-4):
            return True
        raise BadModel(
            f"what is captured at {self.hookpoint.module_path!r} differs from hidden state "
            f"{index} of the model by {float((captured - expected).abs().max()):.3g}: this "
            f"architecture is not supported at hook {self.hookpoint.hook_name!r}"
        )

    def _hidden_state_index(self) -> int | None:
        block = _BLOCK.search(self.hookpoint.module_path)
        if block is None:
            return None
        return int(block[1]) + (self.hookpoint.side == "output")


def _checked(activations: object, place: Hookpoint, tokens: Tensor) -> Tensor:
    expected = (*tokens.shape, place.width)
    where = f"the {place.side} of {place.module_path!r}"
    if not isinstance(activations, Tensor):
        raise BadModel(
            f"{where} is a {type(activations).__name__}, not a tensor: choose a hook "
            "at a residual stream, an MLP or an attention output"
        )
    if tuple(activations.shape) != expected:
        raise BadModel(
            f"{where} has shape {list(activations.shape)}, the SAE needs "
            f"{list(expected)} (context, position, d_in): choose another hook_name"
        )
    return activations.reshape(-1, place.width)


def load_model(
    spec: ModelSpec,
    hookpoint: Hookpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    target: Hookpoint | None = None,
) -> HookedModel:
    """Load a model from its local folder; nothing is downloaded, no remote code is run.

    Raises
    ------
    BadModel
        The folder is missing or torn, weights are absent or not finite, or the hookpoint
        is not in the model.
    """
    path = spec.path
    if path is None or not os.path.isdir(path):  # noqa: PTH112 - one call, no Path needed
        raise BadModel(f"model folder {path!r} is not there: was it moved or deleted?")
    with quiet_transformers():
        try:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise BadModel(
                f"model {path} cannot be loaded by transformers "
                f"{transformers.__version__}: {_first_line(error)}. Save it again with "
                "model.save_pretrained(folder)"
            ) from error
    _refuse_absent(path, report)
    _refuse_non_finite(path, model)
    return HookedModel(model.to(device), hookpoint, target)


def _refuse_absent(path: str, report: dict[str, Any]) -> None:
    absent = sorted(str(name) for name in report.get("missing_keys") or ())
    if absent:
        raise BadModel(
            f"model {path} lacks {len(absent)} weights ({', '.join(absent[:_SHOWN])}), "
            "which transformers would fill with random numbers: copy the model again"
        )


def _refuse_non_finite(path: str, model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
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
