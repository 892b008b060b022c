"""A `transformers` language model that runs up to its hookpoint and no further."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from extraction_kit.errors import BadModel
from extraction_kit.sources.shortcuts import Shortcuts
from extraction_kit.trainings import Hookpoint

_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)$")


class _HookpointReached(BaseException):
    """Ends the forward pass once all is captured; never leaves this module.

    A `BaseException`, so that no ``except Exception`` in a model's code swallows it.
    """


class HookedModel:
    """Maps tokens to the activations at a hookpoint.

    Parameters
    ----------
    model : nn.Module
        A causal language model, or an encoder; put into eval mode.
    hookpoint : Hookpoint
        Where to stop. Modules above it are never executed.
    target : Hookpoint, optional
        A second place, whose activations a transcoder predicts.
    sees_ahead : bool
        Whether a token sees those behind it, as in an encoder: padding must then be masked.
    final_norm : str
        Path of the module that the model's last hidden state goes through before the model
        records it; empty where it is recorded as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        hookpoint: Hookpoint,
        target: Hookpoint | None = None,
        *,
        sees_ahead: bool = False,
        final_norm: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.hookpoint = hookpoint
        self.target = target
        self.sees_ahead = sees_ahead
        self._final_norm = final_norm
        self._shortcuts = Shortcuts(model)
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

    def at(self, hookpoint: Hookpoint, target: Hookpoint | None = None) -> "HookedModel":
        """Return the same model, its weights not copied, read at another place."""
        return HookedModel(
            self.model,
            hookpoint,
            target,
            sees_ahead=self.sees_ahead,
            final_norm=self._final_norm,
        )

    @property
    def shortcuts(self) -> dict[str, str]:
        """What a pass computes in another way than the model's own code, and how."""
        return self._shortcuts.described

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device

    def __call__(
        self,
        tokens: Int64[Tensor, "context pos"],
        present: Bool[Tensor, "context pos"] | None = None,
    ) -> Float[Tensor, "row width"]:
        """Return the activations of all positions, row = context * context_size + pos.

        A causal model gets no attention mask: padding stands on the right, so that no token
        before it can see it. One that sees ahead gets `present`; None masks nothing.
        """
        return self.capture(tokens, (self.hookpoint,), present)[0]

    def with_target(
        self,
        tokens: Int64[Tensor, "context pos"],
        present: Bool[Tensor, "context pos"] | None = None,
    ) -> tuple[Float[Tensor, "row width"], Float[Tensor, "row target_width"] | None]:
        """Return the activations at the hookpoint and, from the same pass, at the target."""
        if self.target is None:
            return self(tokens, present), None
        x, target = self.capture(tokens, (self.hookpoint, self.target), present)
        return x, target

    def capture(
        self, tokens: Tensor, places: tuple[Hookpoint, ...], present: Tensor | None = None
    ) -> list[Tensor]:
        """Return the activations at several places, from one pass that ends at the last."""
        masks = {}
        if self.sees_ahead and present is not None:
            seen = present.clone()
            seen[:, 0] |= ~present.any(dim=1)  # an attention over nothing would be NaN
            masks = {"attention_mask": seen.to(torch.int64)}
        kept = _Kept(len(places))
        found = kept.found
        with ExitStack() as hooks:
            for number, each in enumerate(places):
                hooks.callback(self._listen(each, partial(kept.keep, number)).remove)
            try:
                self._run(self.model, tokens, **masks)
            except _HookpointReached:
                return [_checked(found[i], each, tokens) for i, each in enumerate(places)]
        missed = next(each for i, each in enumerate(places) if i not in found)
        raise BadModel(
            f"the forward pass of {type(self.model).__name__} did not reach "
            f"{missed.module_path!r}: pass the hook_name of a module that it uses"
        )

    def logits(
        self,
        tokens: Int64[Tensor, "context pos"],
        *,
        write: Hookpoint,
        change: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "context pos vocab"]:
        """Return the logits of a whole causal model, with activations changed on the way.

        Parameters
        ----------
        tokens : Tensor
            Padding, if any, on the right.
        write : Hookpoint
            Where activations are changed: the hookpoint itself, or a place behind it.
        change : callable, optional
            Given the activations at the hookpoint and those at `write`, [row, width],
            returns what takes their place at `write`. None changes nothing.
        """
        if change is None:
            plain: Tensor = self._run(self.model, tokens).logits
            return plain
        is_here = write.place == self.hookpoint.place
        read: list[Tensor] = []

        def see(activations: object) -> None:
            read.append(_checked(activations, self.hookpoint, tokens))

        def swap(activations: Tensor) -> Tensor:
            there = _checked(activations, write, tokens)
            if not is_here and not read:
                raise BadModel(
                    f"{write.module_path!r} comes before {self.hookpoint.module_path!r} in "
                    "the forward pass: nothing is known yet that could take its place"
                )
            changed = change(there if is_here else read[0], there)
            # what a centred place is read without stays in the stream; else this adds 0
            apart = activations.reshape(there.shape) - there
            return (changed.to(there) + apart).reshape(activations.shape)

        with ExitStack() as hooks:
            if not is_here:
                hooks.callback(self._listen(self.hookpoint, see).remove)
            hooks.callback(self._replace(write, swap).remove)
            made: Tensor = self._run(self.model, tokens).logits
            return made

    def _run(self, module: nn.Module, tokens: Tensor, **options: Any) -> Any:  # noqa: ANN401 - a model's own
        cache = {} if self.sees_ahead else {"use_cache": False}
        with self._shortcuts.taken():
            return module(input_ids=tokens, **cache, **options)

    def _listen(self, place: Hookpoint, keep: Callable[[object], None]) -> RemovableHandle:
        """Let `keep` have what the forward pass brings to a place."""
        if place.side == "input":
            return self._module(place).register_forward_pre_hook(
                partial(_given, keep), with_kwargs=True
            )
        return self._module(place).register_forward_hook(partial(_made, keep))

    def _replace(
        self, place: Hookpoint, swap: Callable[[Tensor], Tensor]
    ) -> RemovableHandle:
        """Let `swap` change what the forward pass brings to a place."""

        def before(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (swap(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": swap(kwargs["hidden_states"])}

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401 - a layer's own
            if isinstance(output, tuple):
                return (swap(output[0]), *output[1:])
            return swap(output)

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
        record = None if index is None else self._recorded(tokens)
        if record is None or index is None or index >= len(record):
            return None
        if index == len(record) - 1 and self._final_norm is None:
            return None  # it may have gone through a norm that is not known
        raw = replace(self.hookpoint, centred=False)
        captured = self.capture(tokens, (raw,))[0]
        expected = record[index].reshape(captured.shape).to(captured.device)
        if torch.allclose(captured, expected, rtol=1e-3, atol=1e-4):
            return True
        raise BadModel(
            f"what is captured at {self.hookpoint.module_path!r} differs from hidden state "
            f"{index} of the model by {float((captured - expected).abs().max()):.3g}: this "
            f"architecture is not supported at hook {self.hookpoint.hook_name!r}"
        )

    def _recorded(self, tokens: Tensor) -> tuple[Tensor, ...] | None:
        """Return the model's own record of its hidden states, the last one before any norm."""
        with ExitStack() as hooks:
            if self._final_norm:
                norm = self.model.get_submodule(self._final_norm)
                hooks.callback(norm.register_forward_hook(_pass_by).remove)
            decoder = getattr(self.model, "base_model", self.model)
            made = self._run(decoder, tokens, output_hidden_states=True)
            record: tuple[Tensor, ...] | None = made.hidden_states
            return record

    def _hidden_state_index(self) -> int | None:
        block = _BLOCK.search(self.hookpoint.module_path)
        if block is None:
            return None
        return int(block[1]) + (self.hookpoint.side == "output")


class _Kept:
    """What a forward pass brings to some places; ends it at the last."""

    def __init__(self, n_places: int) -> None:
        self.found: dict[int, object] = {}
        self._n_places = n_places

    def keep(self, number: int, activations: object) -> None:
        """Take what is at place `number`."""
        self.found[number] = activations
        if len(self.found) == self._n_places:
            raise _HookpointReached


def _given(
    keep: Callable[[object], None],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    keep(args[0] if args else kwargs.get("hidden_states"))


def _made(
    keep: Callable[[object], None], _: nn.Module, __: tuple[Any, ...], output: object
) -> None:
    # Decoder layers returned tuples before transformers 4.54 and may elsewhere.
    keep(output[0] if isinstance(output, tuple) else output)


def _pass_by(_: nn.Module, given: tuple[Any, ...], __: object) -> object:
    return given[0]


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
    rows = activations.reshape(-1, place.width)
    return rows - rows.mean(dim=1, keepdim=True) if place.centred else rows
