"""Top examples: what is kept when the buffer is emptied early, late or often."""

import numpy as np
import pytest
import torch

from extraction_kit.stats import Activations, Contexts, TopK

SIZE = 6


def context(number, acts, valid=None):
    """Return one context of one feature with activations `acts`."""
    acts = torch.tensor(acts, dtype=torch.float32)
    row = torch.nonzero(acts).squeeze(1)
    if valid is not None:
        row = row[torch.tensor(valid)[row]]
    tokens = torch.arange(100 * number, 100 * number + SIZE)[None]
    contexts = Contexts.consecutive(number, tokens, torch.ones((1, SIZE), dtype=torch.bool))
    return Activations(contexts, row, torch.zeros_like(row), acts[row], 0, 1)


def windows(examples):
    return [
        list(
            zip(examples.act_off[a:b].tolist(), examples.act_val[a:b].tolist(), strict=True)
        )
        for a, b in zip(examples.offsets, examples.offsets[1:], strict=False)
    ]


def test_one_example_per_context_and_the_earliest_of_equal_peaks():
    topk = TopK(1, k=3, window=(1, 1))
    topk.update(context(4, [0, 2, 0, 2, 1, 0]))
    found = topk.compute()
    assert found.context.tolist() == [4]
    assert found.pos.tolist() == [1]
    assert found.peak_token.tolist() == [401]


def test_of_equal_values_the_smaller_context_stays_though_it_came_last():
    topk = TopK(1, k=2, window=(0, 0))
    topk._limit = 0  # sort after every batch, so that the bound is in force
    for number in (9, 7, 8, 3):
        topk.update(context(number, [0, 1, 0, 0, 0, 0]))
    assert topk.compute().context.tolist() == [3, 7]


def test_the_window_is_cut_at_both_edges_of_the_context():
    topk = TopK(1, k=2, window=(3, 2))
    topk.update(context(0, [1, 5, 0, 2, 3, 4])).update(context(1, [1, 2, 0, 0, 4, 3]))
    found = topk.compute()
    assert found.start.tolist() == [0, 1]
    assert windows(found) == [[(0, 1), (1, 5), (3, 2)], [(0, 2), (3, 4), (4, 3)]]


def test_a_token_that_is_not_counted_is_not_in_a_window():
    topk = TopK(1, k=1, window=(3, 3))
    topk.update(context(0, [9, 5, 1, 0, 0, 0], valid=[False, True, True, True, True, True]))
    found = topk.compute()
    assert found.pos.tolist() == [1]
    assert windows(found) == [[(1, 5), (2, 1)]]


@pytest.mark.parametrize("limit", [0, 3, 10**9])
def test_when_the_buffer_is_emptied_changes_nothing(limit):
    chance = np.random.default_rng(0)
    topk = TopK(1, k=5, window=(2, 2))
    topk._limit = limit
    stream = chance.integers(0, 6, (80, SIZE))
    for number in chance.permutation(80):
        topk.update(context(int(number), stream[number].tolist()))
    peaks = sorted((-int(acts.max()), number) for number, acts in enumerate(stream))
    found = topk.compute()
    assert [(-act, at) for act, at in zip(found.act, found.context, strict=True)] == peaks[
        :5
    ]
    assert found.rank.tolist() == [0, 1, 2, 3, 4]
