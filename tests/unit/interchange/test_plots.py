"""Pictures show the run's numbers; without matplotlib the error says what to type."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

from extraction_kit.errors import UnknownFeature

plt.switch_backend("agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_the_density_plot_counts_each_living_feature_once(run):
    axes = run.plot_density()
    assert sum(bar.get_height() for bar in axes.patches) == 47
    assert axes.get_title() == "47 features alive, 1 dead"
    assert axes.get_xscale() == "log"
    axes.figure.canvas.draw()


def test_the_histogram_plot_shows_the_runs_bins(run):
    ax = plt.figure().subplots()
    assert run.plot_histogram(3, ax=ax) is ax
    [steps] = ax.patches
    hist = run.histogram(3)
    assert steps.get_data().values.sum() == hist.sum()
    edges = steps.get_data().edges
    assert edges[0] > 0
    assert np.isfinite(edges).all()
    ax.figure.canvas.draw()


def test_a_dead_feature_makes_an_empty_picture(run):
    axes = run.plot_histogram(47)
    assert axes.get_title() == "feature 47: 0 active tokens"
    axes.figure.canvas.draw()


def test_there_must_be_such_a_feature(run):
    with pytest.raises(UnknownFeature):
        run.plot_histogram(48)


def test_without_matplotlib_the_error_says_what_to_type(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'extraction_kit\[plot\]'"):
        run.plot_density()
