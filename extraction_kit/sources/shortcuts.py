"""Parts of a model that compute the same in less time, for as long as a pass of ours takes.

GELU. GPT-2, GPT-J, Phi and others name its tanh form ``gelu_new`` or ``gelu_fast``, and
`transformers` spells it out in eight steps, each of which reads and writes the widest tensor of
the block. torch has the same function in one step, which rounds once instead of eight times: in
float32 both are within some 1e-6 of each other, in half precision the one step is nearer to the
function (Hendrycks and Gimpel, arXiv:1606.08415).

Linear layers. Their products are made by `onednn` where that is faster; in float32 both are
within some 1e-6 of the largest number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from extraction_kit.sources import onednn


class Shortcuts:
    """The shorter ways through a model; its modules are as they were outside of `taken`.

    Parameters
    ----------
    model : nn.Module
        Only modules of exactly the known types are meant: a subclass, or a module whose
        ``forward`` was replaced already, may compute something else.
    """

    def __init__(self, model: nn.Module) -> None:
        self._gelus: list[nn.Module] = []
        self._linears: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        for each in model.modules():
            if "forward" in vars(each):
                continue
            if type(each) in {NewGELUActivation, FastGELUActivation}:
                self._gelus.append(each)
            elif type(each) in {nn.Linear, Conv1D} and _gains(each):
                self._linears[each] = partial(_linear, each)

    @property
    def described(self) -> dict[str, str]:
        """What is computed in another way than by the model's own code, and how."""
        found = {}
        if self._gelus:
            found["gelu"] = "one step"
        if self._linears:
            found["linear"] = "oneDNN"
        return found

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Compute by the shorter ways; a call in a call changes nothing."""
        ways = dict.fromkeys(self._gelus, _gelu) | self._linears
        changed = [each for each in ways if "forward" not in vars(each)]
        for each in changed:
            each.forward = ways[each]
        try:
            yield
        finally:
            for each in changed:
                del each.forward


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def _gains(module: nn.Module) -> bool:
    weight: Any = module.weight  # no parameter where it is computed from others
    return onednn.is_faster(weight.device, weight.dtype)


def _linear(module: nn.Linear | Conv1D, x: Tensor) -> Tensor:
    if x.dtype is not torch.float32:  # under somebody's autocast
        return type(module).forward(module, x)
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    return onednn.linear(x, weight, module.bias)
