"""The tanh form of GELU in one step, where `transformers` spells it out in eight.

GPT-2, GPT-J, Phi and others name it ``gelu_new`` or ``gelu_fast``, and each of the eight steps
reads and writes the widest tensor of the block. torch has the same function in one step, which
rounds once instead of eight times: in float32 both are within some 1e-6 of each other, in half
precision the one step is nearer to the function (Hendrycks and Gimpel, arXiv:1606.08415).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.activations import FastGELUActivation, NewGELUActivation


def spelled_out(model: nn.Module) -> list[nn.Module]:
    """Return the modules of `model` that compute the tanh form of GELU in many steps."""
    kinds = (NewGELUActivation, FastGELUActivation)
    return [each for each in model.modules() if type(each) in kinds]


@contextmanager
def in_one_step(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let what `spelled_out` found compute in one step; afterwards they are as before."""
    changed = [each for each in modules if "forward" not in vars(each)]
    for each in changed:
        each.forward = _gelu
    try:
        yield
    finally:
        for each in changed:
            del each.forward


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")
