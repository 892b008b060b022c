"""What an extraction hands over: plain arrays, no torch, no file format.

The engine makes an `ExtractionResult`, the catalog writes it, the notebook reads it back.
The result digest is defined here, in one place.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS_PER_OCTAVE = 8
LOG2_LOW, LOG2_HIGH = -10, 10
N_BINS = (LOG2_HIGH - LOG2_LOW) * BINS_PER_OCTAVE + 2
"""Histogram bins: underflow, 160 bins of 1/8 octave from 2^-10 to 2^10, overflow."""

GROUPS = ("top",)
"""Groups of examples, in the order in which they are sorted and stored."""


def bin_edges() -> np.ndarray:
    """Return the `N_BINS` + 1 edges of the histogram: 0, 2^-10 ... 2^10, infinity."""
    steps = np.arange(LOG2_LOW * BINS_PER_OCTAVE, LOG2_HIGH * BINS_PER_OCTAVE + 1)
    return np.concatenate([[0.0], np.exp2(steps / BINS_PER_OCTAVE), [math.inf]])


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows of examples, sorted by (feature, group, rank).

    ``offsets[i]:offsets[i + 1]`` selects the active tokens of row i in ``act_off`` (token
    offset from ``start``) and ``act_val``.
    """

    feature: np.ndarray  # int32 [n]
    group: np.ndarray  # int8 [n], index into GROUPS
    rank: np.ndarray  # int16 [n], 0 is the first
    context: np.ndarray  # int64 [n]
    pos: np.ndarray  # int32 [n], position of the peak in its context
    start: np.ndarray  # int32 [n], first position of the window
    act: np.ndarray  # float32 [n], activation at the peak
    peak_token: np.ndarray  # int32 [n], token id at the peak
    offsets: np.ndarray  # int64 [n + 1]
    act_off: np.ndarray  # int32 [m]
    act_val: np.ndarray  # float32 [m]


@dataclass(frozen=True, kw_only=True)
class ExtractionResult:
    """Everything one extraction found.

    Parameters
    ----------
    features : mapping of str to ndarray [d_sae]
        Columns ``n_active``, ``n_contexts`` (int64), ``sum_act``, ``sum_sq_act`` (float64),
        ``max_act`` (float32), ``max_context`` (int64), ``max_pos`` (int32); -1 where a
        feature never fired. Derived columns are made by the catalog. Further columns
        (``decoder_norm``, ``encoder_norm``, ``enc_dec_cos``, float32) come from the weights.
    histograms : ndarray int64 [d_sae, N_BINS]
        Active tokens per bin of `bin_edges`.
    examples : Examples
        Top activating examples.
    summary : mapping
        Run-level numbers: ``n_tokens`` (valid), ``n_tokens_total``, ``n_contexts``, ``l0``,
        ``fvu``, ``n_dead``, ``tokens_per_s``, ``peak_rss_bytes`` and others.
    provenance : mapping
        Numerics fingerprint, compute tile, versions, units, mask policy.
    """

    features: Mapping[str, np.ndarray]
    histograms: np.ndarray
    examples: Examples
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.histograms.shape[0])


_DIGESTED = ("n_active", "n_contexts", "max_act", "max_context", "max_pos")


def result_digest(result: ExtractionResult) -> str:
    """Return the sha256 (hex) over everything that must be equal to the last bit.

    Integer statistics, histograms, maxima and examples with their float bits, in canonical
    order and little-endian. Sums are left out: they agree to 1e-12 relative, because the
    order of addition may differ.
    """
    sha = hashlib.sha256()

    def add(name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        sha.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        sha.update(array.tobytes())

    for name in _DIGESTED:
        add(name, result.features[name])
    add("histograms", result.histograms)
    for name in (
        "feature", "group", "rank", "context", "pos", "start", "act", "peak_token",
        "offsets", "act_off", "act_val",
    ):  # fmt: skip
        add(f"examples.{name}", getattr(result.examples, name))
    for name in ("n_tokens", "n_tokens_total", "n_contexts"):
        sha.update(f"{name}={int(result.summary[name])};".encode())
    return sha.hexdigest()
