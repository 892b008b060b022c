"""What an extraction hands over: plain arrays, no torch, no file format.

The engine makes an `ExtractionResult`, the catalog writes it, the notebook reads it back.
The result digest is defined here, in one place.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DENSE = 0.1
"""Activation density above which a feature is called dense."""

BINS_PER_OCTAVE = 8
LOG2_LOW, LOG2_HIGH = -10, 10
N_BINS = (LOG2_HIGH - LOG2_LOW) * BINS_PER_OCTAVE + 2
"""Histogram bins: underflow, 160 bins of 1/8 octave from 2^-10 to 2^10, overflow."""

N_BANDS = 4
"""Octaves below a feature's largest activation from which examples are drawn."""

GROUPS = ("top", *(f"band_{i}" for i in range(1, N_BANDS + 1)), "random", "silent")
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

    @classmethod
    def joined(cls, parts: "Sequence[Examples]") -> "Examples":
        """Return the rows of all `parts`, sorted by (feature, group, rank)."""
        n_rows = [part.feature.size for part in parts]
        length = np.concatenate([np.diff(part.offsets) for part in parts])
        begin = np.cumsum(length) - length
        column = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
            if name != "offsets"
        }
        order = np.lexsort((column["rank"], column["group"], column["feature"]))
        offsets = np.zeros(sum(n_rows) + 1, dtype=np.int64)
        np.cumsum(length[order], out=offsets[1:])
        # entry j of a row is at begin + j: one arange, shifted row by row
        entry = np.arange(offsets[-1])
        entry += np.repeat(begin[order] - offsets[:-1], length[order])
        for name in column:
            column[name] = column[name][entry if name.startswith("act_") else order]
        return cls(offsets=offsets, **column)


@dataclass(frozen=True, kw_only=True)
class ExtractionResult:
    """Everything one extraction found.

    Parameters
    ----------
    features : mapping of str to ndarray [d_sae]
        Columns ``n_active``, ``n_contexts`` (int64), ``sum_act``, ``sum_sq_act`` (float64),
        ``max_act`` (float32), ``max_context``, ``last_context`` (int64), ``max_pos``
        (int32); -1 where a feature never fired. Derived columns are made by the catalog.
        Further columns (``decoder_norm``, ``encoder_norm``, ``enc_dec_cos``, float32) come
        from the weights.
    histograms : ndarray int64 [d_sae, N_BINS]
        Active tokens per bin of `bin_edges`.
    examples : Examples
        Examples of all `GROUPS`.
    held_out : ndarray bool [n examples]
        Whether the context of an example is held out from explanations, to score them with.
    summary : mapping
        Run-level numbers: ``n_tokens`` (valid), ``n_tokens_total``, ``n_contexts``, ``l0``,
        ``fvu``, ``explained_variance``, ``mse``, ``n_dead``, ``n_dense``, ``tokens_per_s``,
        ``peak_rss_bytes``, ``statistics_format`` and others.
    provenance : mapping
        Numerics fingerprint, compute tile, versions, units, mask policy.
    """

    features: Mapping[str, np.ndarray]
    histograms: np.ndarray
    examples: Examples
    held_out: np.ndarray
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.histograms.shape[0])


_DIGESTED = (
    "n_active", "n_contexts", "max_act", "max_context", "max_pos", "last_context",
)  # fmt: skip


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
    add("held_out", result.held_out)
    for name in ("n_tokens", "n_tokens_total", "n_contexts"):
        sha.update(f"{name}={int(result.summary[name])};".encode())
    return sha.hexdigest()
