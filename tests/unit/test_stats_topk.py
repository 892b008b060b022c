"""Top examples: what is kept when the buffer is emptied early, late or often; copies."""

from dataclasses import replace

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


# --- examples of different windows --------------------------------------------------------


def windowed(number, acts, tokens, valid=None):
    """Return one context with the tokens `tokens`."""
    batch = context(number, acts, valid)
    known = torch.ones(SIZE, dtype=torch.bool) if valid is None else torch.tensor(valid)
    return replace(
        batch, contexts=Contexts.consecutive(number, torch.tensor([tokens]), known[None])
    )


def kept(*batches, k=3, window=(1, 1)):
    topk = TopK(1, k=k, window=window, dedupe=True)
    for batch in batches:
        topk.update(batch)
    found = topk.compute()
    return list(zip(found.context.tolist(), found.act.tolist(), strict=True))


def test_of_equal_windows_the_best_stays_and_the_next_text_moves_up():
    copies = [windowed(n, [0, 0, n, 0, 0, 0], [n, 5, 6, 7, n, n]) for n in (1, 4, 3, 2)]
    other = windowed(9, [0, 0, 0.5, 0, 0, 0], [0, 5, 6, 8, 0, 0])
    assert kept(*copies, other, k=2) == [(4, 4.0), (9, 0.5)]
    assert kept(other, *copies[::-1], k=2) == [(4, 4.0), (9, 0.5)]
    plain = TopK(1, k=2, window=(1, 1))
    for batch in (*copies, other):
        plain.update(batch)
    assert plain.compute().context.tolist() == [4, 3]


def test_of_equal_windows_with_equal_values_the_smaller_context_stays():
    copies = [windowed(n, [0, 0, 1, 0, 0, 0], [5] * SIZE) for n in (8, 3, 5)]
    assert kept(*copies) == [(3, 1.0)]


def test_the_same_tokens_at_other_offsets_from_the_peak_are_another_window():
    one = windowed(0, [0, 2, 0, 0, 0, 0], [5, 6, 7, 0, 0, 0])
    cut = windowed(1, [2, 0, 0, 0, 0, 0], [6, 7, 0, 0, 0, 0])
    turned = windowed(2, [0, 2, 0, 0, 0, 0], [7, 6, 5, 0, 0, 0])
    assert [number for number, _ in kept(one, cut, turned)] == [0, 1, 2]


def test_what_is_masked_around_a_peak_makes_no_difference():
    known = [False, True, True, True, True, True]
    left = windowed(0, [0, 2, 0, 0, 0, 0], [1, 6, 7, 0, 0, 0], known)
    right = windowed(1, [0, 2, 0, 0, 0, 0], [2, 6, 7, 0, 0, 0], known)
    assert kept(left, right) == [(0, 2.0)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [0, 3, 10**9])
def test_different_windows_are_the_same_for_any_buffer_order_and_shards(limit, seed):
    chance = np.random.default_rng(seed)
    acts = chance.integers(0, 9, (80, SIZE))
    tokens = chance.integers(0, 2, (80, SIZE))  # few texts, many copies
    best = {}
    for number in range(80):
        pos = int(acts[number].argmax())
        span = tuple(
            (at - pos, tokens[number, at])
            for at in (pos - 1, pos, pos + 1)
            if 0 <= at < SIZE
        )
        row = (-int(acts[number].max()), number)
        if row[0] < 0:
            best[span] = min(best.get(span, row), row)
    expected = [(number, float(-act)) for act, number in sorted(best.values())[:5]]
    assert len(expected) == 5
    for n_shards in (1, 2, 5):
        shards = [TopK(1, k=5, window=(1, 1), dedupe=True) for _ in range(n_shards)]
        for place, number in enumerate(chance.permutation(80).tolist()):
            shard = shards[place * place % n_shards]
            shard._limit = limit
            shard.update(windowed(number, acts[number].tolist(), tokens[number].tolist()))
        merged = TopK(1, k=5, window=(1, 1), dedupe=True)
        for shard in chance.permutation(n_shards):
            merged.merge(shards[shard])
        found = merged.compute()
        pairs = list(zip(found.context.tolist(), found.act.tolist(), strict=True))
        assert pairs == expected


@pytest.mark.parametrize("limit", [0, 3, 10**9])
def test_the_best_row_is_found_kept_or_buffered(limit):
    chance = np.random.default_rng(0)
    topk, best = TopK(3, k=2, window=(1, 1)), {}
    topk._limit = limit
    for number in range(40):
        acts = torch.from_numpy(chance.integers(0, 9, (SIZE, 3))).float()
        row, feature = torch.nonzero(acts).unbind(1)
        tokens = torch.zeros((1, SIZE), dtype=torch.int64)
        contexts = Contexts.consecutive(number, tokens, torch.ones((1, SIZE), dtype=bool))
        topk.update(Activations(contexts, row, feature, acts[row, feature], 0, 3))
        for one in range(3):
            act = acts[:, one].max()
            if act > best.get(one, (0, 0))[0]:
                best[one] = (float(act), number, int(acts[:, one].argmax()))
        asked = torch.tensor([2, 0])
        there = torch.tensor([best[2][1], best[0][1]])
        found = topk.best(asked, there)
        rows = zip(found.feature, found.value, found.context, found.pos, strict=True)
        shown = {int(one): tuple(map(float, rest)) for one, *rest in rows}
        assert shown == {one: best[one] for one in (0, 2)}
    assert topk.best(torch.tensor([1]), torch.tensor([77])).n == 0
