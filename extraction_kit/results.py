"""What an extraction hands over: plain arrays, no torch, no file format.

The engine makes an `ExtractionResult`, the catalog writes it, the notebook reads it back.
The result digest is defined here, in one place.
"""

import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from extraction_kit.errors import UnknownFeature

DENSE = 0.1
"""Activation density above which a feature is called dense."""

BINS_PER_OCTAVE = 8
LOG2_LOW, LOG2_HIGH = -10, 10
N_BINS = (LOG2_HIGH - LOG2_LOW) * BINS_PER_OCTAVE + 2
"""Histogram bins: underflow, 160 bins of 1/8 octave from 2^-10 to 2^10, overflow."""

N_BANDS = 4
"""Octaves from which examples are drawn: that of the largest activation, and those below."""

GROUPS = ("top", *(f"band_{i}" for i in range(1, N_BANDS + 1)), "random", "silent")
"""Groups of examples, in the order in which they are sorted and stored."""

SIGNS = ("top", "bottom")
"""Ends of the list of a feature's logits."""

KINDS = ("decoder", "coactivation")
"""What makes two features neighbours."""

Tables = Mapping[str, Mapping[str, np.ndarray]]
"""Table name to column name to array [row]; ``sign`` and ``kind`` are int8 indices into
`SIGNS` and `KINDS`, ``n_both`` is -1 where it has no meaning."""

TABLE_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "logits": ("feature", "sign", "rank"),
        "neighbours": ("feature", "kind", "rank"),
        "tokens": ("feature", "rank"),
    }
)
"""The flat tables of a result, each with the columns that it is sorted by."""


def joined_tables(*parts: Tables) -> dict[str, dict[str, np.ndarray]]:
    """Return all rows of `parts`, those of each table sorted by its `TABLE_KEYS`.

    The rows of each part are sorted already, and parts with the same table have the same
    columns of it.
    """
    return {
        name: _joined([part[name] for part in parts if name in part], keys)
        for name, keys in TABLE_KEYS.items()
        if any(name in part for part in parts)
    }


def _joined(
    parts: Sequence[Mapping[str, np.ndarray]], keys: tuple[str, ...]
) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return dict(parts[0])
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort([columns[name] for name in reversed(keys)])
    return {name: column[order] for name, column in columns.items()}


def spans(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return ``begin[0], begin[0] + 1, ...``, `length` of each, one span after another."""
    entry: np.ndarray = np.repeat(begin - (np.cumsum(length) - length), length)
    entry += np.arange(entry.size)
    return entry


def feature_number(feature: object, d_sae: int) -> int:
    """Return the index of a feature of an SAE as an int.

    Raises
    ------
    UnknownFeature
        It is no index of a feature.
    """
    try:
        number = operator.index(feature)  # type: ignore[arg-type]
    except TypeError:
        raise UnknownFeature(feature=feature, d_sae=d_sae) from None
    if isinstance(feature, bool) or not 0 <= number < d_sae:
        raise UnknownFeature(feature=feature, d_sae=d_sae)
    return number


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
        entry = spans(begin[order], length[order])
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
    tables : mapping of str to mapping of str to ndarray
        Rows of the tables of `TABLE_KEYS`, sorted by those columns; the columns are those
        of the same table in the catalog. A table that is not here has no rows.
    """

    features: Mapping[str, np.ndarray]
    histograms: np.ndarray
    examples: Examples
    held_out: np.ndarray
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    tables: Tables = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a table that nobody would write."""
        unknown = sorted(self.tables.keys() - TABLE_KEYS.keys())
        if unknown:
            raise ValueError(f"tables {unknown}: {', '.join(TABLE_KEYS)} are known")

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return int(self.histograms.shape[0])


_DIGESTED = (
    "n_active", "n_contexts", "max_act", "max_context", "max_pos", "last_context",
)  # fmt: skip
_DIGESTED_OF_TABLES = {
    "logits": ("feature", "sign", "rank", "token"),
    "neighbours": ("feature", "kind", "rank", "other", "n_both"),
    "tokens": ("feature", "rank", "token", "n_active", "max_act"),
}


def result_digest(result: ExtractionResult) -> str:
    """Return the sha256 (hex) over everything that must be equal to the last bit.

    Integer statistics, histograms, maxima and examples with their float bits, in canonical
    order and little-endian. Sums are left out: they agree to 1e-12 relative, because the
    order of addition may differ.

    Of logits and decoder neighbours the integers count. They are a function of the weights
    alone, computed in blocks of a fixed size after the last token, so that no interruption
    has a part in them; like all else they are equal under an equal numerics fingerprint.
    Their values say nothing more, nor does the value of a coactivation, which follows from
    ``n_both`` and ``n_active``.
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
    for table, columns in _DIGESTED_OF_TABLES.items():
        if table in result.tables:
            for name in columns:
                add(f"{table}.{name}", result.tables[table][name])
    for name in ("n_tokens", "n_tokens_total", "n_contexts"):
        sha.update(f"{name}={int(result.summary[name])};".encode())
    return sha.hexdigest()
