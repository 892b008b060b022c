"""The log2 histogram: exact at its edges."""

import numpy as np
import torch

from extraction_kit.results import N_BINS, bin_edges
from extraction_kit.stats import Histogram


def test_bins_equal_a_float64_search_at_and_beside_every_edge():
    inner = bin_edges()[1:-1].astype(np.float32)
    above, below = (
        np.nextafter(inner, np.float32(np.inf)),
        np.nextafter(inner, np.float32(0)),
    )
    smallest, largest = np.float32(1e-45), np.finfo(np.float32).max
    random = np.exp2(np.random.default_rng(0).uniform(-14, 14, 5000)).astype(np.float32)
    values = np.concatenate([inner, above, below, [smallest, largest], random])
    expected = np.searchsorted(bin_edges(), values.astype(np.float64), side="right") - 1
    found = Histogram(1).bins(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.min() == 0
    assert found.max() == N_BINS - 1


def test_a_power_of_two_belongs_to_the_bin_that_begins_there():
    bins = Histogram(1).bins(torch.tensor([2.0**-10, 1.0, 2.0**10])).tolist()
    assert bins == [1, 81, 161]
