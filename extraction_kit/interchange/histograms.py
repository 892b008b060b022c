"""Histograms with bins of equal width, which the field's viewers draw."""

import math

import numpy as np

from extraction_kit.results import LOG2_HIGH, LOG2_LOW, bin_edges


def equal_bins(hist: np.ndarray, max_act: float, n_bins: int) -> np.ndarray:
    """Return the active tokens in `n_bins` bins of equal width from 0 to `max_act`.

    A run counts on a logarithmic scale. Within each of its bins (1/8 octave, 9 %) the
    tokens are taken to lie evenly, as for its quantiles, and the number below each new edge
    is rounded: a token may be counted in a bin too far, none is lost or added.

    Parameters
    ----------
    hist : ndarray int64 [N_BINS]
        Active tokens per bin of `results.bin_edges`.
    max_act : float
        Largest activation.
    n_bins : int
        Bins wanted.

    Returns
    -------
    ndarray int64 [n_bins]
        Their sum is that of `hist`.
    """
    if not hist.any():
        return np.zeros(n_bins, dtype=np.int64)
    ours = np.minimum(bin_edges(), max_act)
    below = np.concatenate([[0], np.cumsum(hist)])
    edges = np.linspace(0, max_act, n_bins + 1)
    at = np.rint(np.interp(edges, ours, below)).astype(np.int64)
    at[-1] = below[-1]
    return np.diff(at)


def middles(max_act: float, n_bins: int) -> np.ndarray:
    """Return the middles of those bins, float64 [n_bins]."""
    return (np.arange(n_bins) + 0.5) * (max_act / n_bins)


def band(number: int, max_act: float) -> tuple[float, float]:
    """Return what the peaks of the examples ``band_<number>`` lie between.

    Band 1 is the octave, from one power of two to the next, of the largest activation;
    octaves below 2^-10 are one, and those from 2^10.
    """
    highest = min(max(math.floor(math.log2(max_act)), LOG2_LOW - 1), LOG2_HIGH)
    octave = highest - number + 1
    low = 2.0**octave if octave >= LOG2_LOW else 0.0
    return low, max_act if octave == LOG2_HIGH else min(2.0 ** (octave + 1), max_act)
