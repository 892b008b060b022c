"""Contexts of like length are computed together, each in a shape of its own length alone."""

import numpy as np
import pytest

from extraction_kit.corpora import ReadingOrder, tiles

LENGTHS = np.random.default_rng(0).integers(1, 101, 3000).astype(np.int32)


def order_of(lengths=LENGTHS, context_size=100, tile_tokens=400):
    return ReadingOrder(lengths, context_size=context_size, tile_tokens=tile_tokens)


def test_every_context_is_read_once_in_a_tile_that_it_fits_into():
    seen = []
    for plan in order_of():
        assert (LENGTHS[plan.contexts] <= plan.length).all()
        assert plan.rows * plan.length <= 400 or plan.rows == 1
        assert 0 < plan.contexts.size <= plan.rows
        assert (np.diff(plan.contexts) > 0).all()
        seen += plan.contexts.tolist()
    assert sorted(seen) == list(range(3000))


def test_little_padding_is_computed():
    computed = sum(plan.rows * plan.length for plan in order_of())
    assert computed / LENGTHS.sum() < 1.2
    assert 3000 * 100 / LENGTHS.sum() > 1.9  # what one shape for all would compute


def test_the_shape_depends_on_the_length_of_the_context_alone():
    shape = {}
    for chosen in (slice(0, 3000), slice(0, 3000, 7), slice(1000, 1001)):
        for plan in order_of(LENGTHS[chosen]):
            for length in LENGTHS[chosen][plan.contexts].tolist():
                assert shape.setdefault(length, (plan.rows, plan.length)) == (
                    plan.rows,
                    plan.length,
                )


def test_full_contexts_are_read_in_order():
    plans = list(order_of(np.full(10, 100)))
    assert [plan.contexts.tolist() for plan in plans] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert {(plan.rows, plan.length) for plan in plans} == {(4, 100)}


def test_an_order_continues_where_a_tile_ended():
    plans = list(order_of())
    ends = np.cumsum([plan.contexts.size for plan in plans])
    for number in (0, 1, 17, len(plans) - 2):
        left = list(order_of().after(int(ends[number])))
        assert len(left) == len(plans) - number - 1
        assert left[0].contexts.tolist() == plans[number + 1].contexts.tolist()
    assert list(order_of().after(3000)) == []
    with pytest.raises(ValueError, match="no tile ends after 1 contexts"):
        list(order_of().after(1))


def test_a_context_longer_than_the_tile_gets_one_of_its_own():
    plans = list(order_of(np.array([90, 40_000]), context_size=40_000, tile_tokens=64))
    assert [(plan.rows, plan.length) for plan in plans] == [(1, 40_000), (1, 5000)]


def test_order_is_made_within_windows(monkeypatch):
    monkeypatch.setattr(tiles, "WINDOW_TOKENS", 100 * 64)
    latest = [int(plan.contexts[-1]) // 64 for plan in order_of()]
    assert latest == sorted(latest), "no window begins before the one before has ended"
