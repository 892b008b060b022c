"""A hash that chooses samples: the same choice for any batches, order, shards and merges."""

from enum import IntEnum

from torch import Tensor

_BITS = 62
_MASK = (1 << 64) - 1
_SALT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
LARGEST = (1 << _BITS) - 1
"""Largest hash."""


class Draw(IntEnum):
    """What is drawn by hash: each with a seed of its own, so that draws are unrelated."""

    HELD_OUT = 0
    RANDOM = 1
    BANDS = 2
    SILENT_CONTEXTS = 3
    SILENT_POSITIONS = 4
    SILENT = 5
    CE_CONTEXTS = 6
    SAMPLE = 7

    def seed(self, seed: int) -> int:
        """Return the seed of this draw, of a run's `seed`."""
        return seed * len(Draw) + self


def mixed(seed: int, *numbers: Tensor) -> Tensor:
    """Return a hash from 0 to `LARGEST` of each row of `numbers`: int64, as they are.

    Each number goes through the finaliser of SplitMix64 (Steele, Lea, Flood 2014, "Fast
    splittable pseudorandom number generators"), so that hashes of neighbours are unrelated.
    """
    state: Tensor | int = _signed(seed * _SALT)
    for number in numbers:
        state = _finalised((number ^ state) + _signed(_SALT))
    if not isinstance(state, Tensor):
        msg = "nothing to hash"
        raise TypeError(msg)
    return state & LARGEST


def _finalised(x: Tensor) -> Tensor:
    # int64 wraps like uint64 in sums and products; its shift keeps the sign, a mask drops it
    for shift, factor in zip(_SHIFTS, (*_FACTORS, None), strict=True):
        x = x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))
        if factor is not None:
            x = x * _signed(factor)
    return x


def _signed(number: int) -> int:
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
