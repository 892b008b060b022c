"""Pictures of a result with matplotlib, which is installed on request only."""

from typing import TYPE_CHECKING, Any

import numpy as np

from extraction_kit.results import BINS_PER_OCTAVE, LOG2_LOW, bin_edges

if TYPE_CHECKING:
    import duckdb
    from matplotlib.axes import Axes

_BINS_PER_DECADE = 8


def density(features: "duckdb.DuckDBPyRelation", ax: "Axes | None" = None) -> "Axes":
    """Draw how many features have which density; dead ones are told in the title.

    Parameters
    ----------
    features : DuckDBPyRelation
        Rows with ``density`` and ``dead``.
    ax : matplotlib Axes, optional
        Where to draw; None makes a figure.

    Raises
    ------
    ImportError
        matplotlib is not installed; the message says what to type.
    """
    axes: Axes = _axes(ax)
    found = features.project("density, dead").fetchnumpy()
    alive = found["density"][~found["dead"]]
    if alive.size:
        low, high = np.floor(np.log10(alive.min())), np.ceil(np.log10(alive.max()))
        n_bins = max(1, round(high - low)) * _BINS_PER_DECADE
        edges = np.logspace(low, max(high, low + 1), n_bins + 1)
        axes.hist(alive, bins=edges.tolist(), color="tab:orange")
        axes.set_xscale("log")
    n_dead = len(found["dead"]) - alive.size
    axes.set_xlabel("density (share of valid tokens)")
    axes.set_ylabel("features")
    axes.set_title(f"{alive.size:,} features alive, {n_dead:,} dead")
    return axes


def histogram(hist: np.ndarray, feature: int, ax: "Axes | None" = None) -> "Axes":
    """Draw the active tokens of a feature per bin of 1/8 octave, from first to last.

    Parameters
    ----------
    hist : ndarray int64 [N_BINS]
        As `ResultReader.histogram` returns it.
    feature : int
        For the title.
    ax : matplotlib Axes, optional
        Where to draw; None makes a figure.

    Raises
    ------
    ImportError
        matplotlib is not installed; the message says what to type.
    """
    axes: Axes = _axes(ax)
    edges = bin_edges()
    step = 2 ** (1 / BINS_PER_OCTAVE)
    edges[0], edges[-1] = 2.0**LOG2_LOW / step, edges[-2] * step  # 0 and infinity
    used = np.flatnonzero(hist)
    if used.size:
        span = slice(int(used[0]), int(used[-1]) + 1)
        axes.stairs(
            hist[span], edges[span.start : span.stop + 1], fill=True, color="tab:orange"
        )
        axes.set_xscale("log", base=2)
    axes.set_xlabel("activation")
    axes.set_ylabel("active tokens")
    axes.set_title(f"feature {feature}: {int(hist.sum()):,} active tokens")
    return axes


def _axes(ax: "Axes | None") -> Any:  # noqa: ANN401 - an Axes; its methods have loose types
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415 - on request
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'extraction_kit[plot]'"
        ) from error
    return plt.subplots(figsize=(6, 3), layout="constrained")[1]
