"""Every statistic: the same numbers for any batches, order, shards and merges."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from extraction_kit.results import N_BINS, bin_edges
from extraction_kit.stats import (
    Activations,
    ActivationSample,
    BandExamples,
    Collection,
    Contexts,
    Histogram,
    LastFired,
    Maximum,
    Moments,
    Quality,
    RandomExamples,
    SilentExamples,
    Sizes,
    TopK,
)
from tests.devices import DEVICE

D_SAE, N_CONTEXTS, SIZE, K, WINDOW = 7, 60, 9, 4, (2, 3)
SUMS = {"sum_act", "sum_sq_act"}

FEATURE_STATISTICS = {
    "moments": lambda: Moments(D_SAE, device=DEVICE),
    "maximum": lambda: Maximum(D_SAE, device=DEVICE),
    "histogram": lambda: Histogram(D_SAE, device=DEVICE),
    "last fired": lambda: LastFired(D_SAE, device=DEVICE),
    "topk": lambda: TopK(D_SAE, k=K, window=WINDOW, device=DEVICE),
    "topk, different windows": lambda: TopK(
        D_SAE, k=K, window=(0, 0), dedupe=True, device=DEVICE
    ),
    "bands": lambda: BandExamples(D_SAE, k=2, window=WINDOW, seed=1, device=DEVICE),
    "random": lambda: RandomExamples(D_SAE, k=K, window=WINDOW, seed=1, device=DEVICE),
    "silent": lambda: silent(pool=64),
    "silent, of a small pool": lambda: silent(pool=8),
    "sample": lambda: sample(budget=10_000),
    "sample beyond its budget": lambda: sample(budget=300),
    "sample with too many pairs": lambda: sample(budget=10_000, pairs=700),
    "sample of nothing": lambda: sample(budget=3),
}


def silent(pool):
    statistic = SilentExamples(D_SAE, k=2, before=WINDOW[0], seed=1, device=DEVICE)
    statistic.pool = pool
    return statistic


def sample(**limits):
    return ActivationSample(
        D_SAE, n_top_tokens=2, n_coactive=3, seed=1, device=DEVICE, **limits
    )


@pytest.fixture(params=["large buffers", "small buffers"], autouse=True)
def buffers(request, monkeypatch):
    if request.param == "small buffers":
        monkeypatch.setattr("extraction_kit.stats.examples.MIN_BUFFER", 3)
        monkeypatch.setattr("extraction_kit.stats.silent.MANY", 3)


@pytest.fixture(params=[0, 1, 2])
def stream(request):
    """Dense activations [context, pos, feature] with many equal values, tokens, valid."""
    chance = np.random.default_rng(request.param)
    grid = np.float32([2**-11, 0.3, 0.5, 1.0, 1.25, 3.0, 1500.0])
    dense = chance.choice(grid, (N_CONTEXTS, SIZE, D_SAE))
    dense[chance.random(dense.shape) < 0.7] = 0
    dense[:, :, D_SAE - 1] = 0  # a dead feature
    dense[10:30, :, D_SAE - 2] = 0  # and one that is silent for a while
    valid = chance.random((N_CONTEXTS, SIZE)) < 0.8
    tokens = chance.integers(0, 50, (N_CONTEXTS, SIZE))
    return dense, tokens, valid


def shuffler(seed):
    return random.Random(seed)  # noqa: S311 - test data


def batch_of(stream, first, n, *, tile=(0, D_SAE)):
    """Return contexts `first` to `first` + `n` for features of `tile` as activations."""
    dense, tokens, valid = (array[first : first + n] for array in stream)
    shown = np.where(valid[..., None], dense, 0)[:, :, tile[0] : tile[0] + tile[1]]
    shown = shown.reshape(-1, tile[1])
    row, column = np.nonzero(shown)
    return Activations(
        Contexts.consecutive(first, torch.from_numpy(tokens), torch.from_numpy(valid)),
        torch.from_numpy(row),
        torch.from_numpy(column + tile[0]),
        torch.from_numpy(shown[row, column]),
        tile[0],
        tile[1],
    ).to(torch.device(DEVICE))


def batches(stream, chance, tiles=((0, D_SAE),)):
    """Cut the stream into whole contexts of random numbers, in random order."""
    cuts = sorted({0, N_CONTEXTS, *(chance.randrange(N_CONTEXTS) for _ in range(9))})
    found = [
        batch_of(stream, start, stop - start, tile=tile)
        for start, stop in pairwise(cuts)
        for tile in tiles
    ]
    chance.shuffle(found)
    return found


def plain(computed):
    """Return what a statistic computed as a dict of arrays."""
    if not isinstance(computed, dict):
        return {"value": computed} if isinstance(computed, np.ndarray) else vars(computed)
    flat = {}
    for name, value in computed.items():
        inside = value if isinstance(value, dict) else {"": value}
        flat |= {name + key: np.asarray(array) for key, array in inside.items()}
    return flat


def assert_equal(left, right):
    left, right = plain(left), plain(right)
    assert left.keys() == right.keys()
    for name, array in left.items():
        if name in SUMS:
            np.testing.assert_allclose(array, right[name], rtol=1e-12)
        else:
            assert array.dtype == right[name].dtype, name
            np.testing.assert_array_equal(array, right[name], err_msg=name)


def naive(stream):
    """Count in plain Python loops over float64 numbers."""
    dense, tokens, valid = stream
    edges, (before, after) = bin_edges(), WINDOW
    moments = {name: [0] * D_SAE for name in ("n_active", "n_contexts", *SUMS)}
    maximum = {
        "max_act": [0.0] * D_SAE,
        "max_context": [-1] * D_SAE,
        "max_pos": [-1] * D_SAE,
        "last_context": [-1] * D_SAE,
    }
    histogram = np.zeros((D_SAE, N_BINS), dtype=np.int64)
    examples = []
    for feature in range(D_SAE):
        peaks = []
        for context in range(N_CONTEXTS):
            acts = [
                float(dense[context, pos, feature]) if valid[context, pos] else 0.0
                for pos in range(SIZE)
            ]
            active = [act for act in acts if act > 0]
            moments["n_active"][feature] += len(active)
            moments["n_contexts"][feature] += bool(active)
            moments["sum_act"][feature] += sum(active)
            moments["sum_sq_act"][feature] += sum(act * act for act in active)
            for act in active:
                histogram[feature, np.searchsorted(edges, act, side="right") - 1] += 1
            if active:
                maximum["last_context"][feature] = context
                peaks.append((-max(active), context, acts.index(max(active)), acts))
        peaks.sort(key=lambda peak: peak[:3])
        if peaks:
            value, context, pos, _ = peaks[0]
            maximum["max_act"][feature] = -value
            maximum["max_context"][feature], maximum["max_pos"][feature] = context, pos
        for rank, (value, context, pos, acts) in enumerate(peaks[:K]):
            start = max(0, pos - before)
            window = [
                (at - start, acts[at])
                for at in range(start, min(SIZE, pos + after + 1))
                if acts[at] > 0
            ]
            token = int(tokens[context, pos])
            examples.append((feature, rank, context, pos, start, -value, token, window))
    return moments, maximum, histogram, examples


def test_every_number_equals_a_naive_loop(stream):
    moments, maximum, histogram, examples = naive(stream)
    collection = Collection(
        d_in=3, d_sae=D_SAE, sizes=Sizes(top_k=K, window=WINDOW), device=DEVICE
    )
    for batch in batches(stream, shuffler(1), tiles=((0, 3), (3, D_SAE - 3))):
        collection.update(batch)
    found = collection.compute()
    for name, expected in (moments | maximum).items():
        if name in SUMS:
            np.testing.assert_allclose(found["features"][name], expected, rtol=1e-12)
        else:
            assert found["features"][name].tolist() == expected, name
    np.testing.assert_array_equal(found["histograms"], histogram)
    rows = found["examples"]
    seen = [
        (
            *(
                int(getattr(rows, name)[i])
                for name in ("feature", "rank", "context", "pos")
            ),
            int(rows.start[i]),
            float(rows.act[i]),
            int(rows.peak_token[i]),
            [
                (int(rows.act_off[at]), float(rows.act_val[at]))
                for at in range(rows.offsets[i], rows.offsets[i + 1])
            ],
        )
        for i in range(rows.feature.size)
    ]
    assert seen == examples
    assert collection.n_dead() == 1


@pytest.mark.parametrize("name", FEATURE_STATISTICS)
class TestContract:
    def test_batches_and_their_order_change_nothing(self, name, stream):
        whole = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, N_CONTEXTS))
        for seed in range(5):
            cut = FEATURE_STATISTICS[name]()
            tiles = ((0, D_SAE),) if seed % 2 else ((0, 2), (2, 3), (5, D_SAE - 5))
            for batch in batches(stream, shuffler(seed), tiles):
                cut.update(batch)
            assert_equal(cut.compute(), whole.compute())

    def test_batches_of_any_size_in_any_order_change_nothing(self, name, stream):
        whole = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, N_CONTEXTS))
        for size in (1, 3, 8, 32):
            cut = [batch_of(stream, at, size) for at in range(0, N_CONTEXTS, size)]
            for _ in range(2):  # in order, then shuffled
                found = FEATURE_STATISTICS[name]()
                for batch in cut:
                    found.update(batch)
                assert_equal(found.compute(), whole.compute())
                shuffler(size).shuffle(cut)

    def test_shards_merge_in_any_order(self, name, stream):
        whole = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, N_CONTEXTS))
        for n_shards in (1, 2, 3, 5):
            chance = shuffler(n_shards)
            shards = [FEATURE_STATISTICS[name]() for _ in range(n_shards)]
            for batch in batches(stream, chance):
                chance.choice(shards).update(batch)
            while len(shards) > 1:  # any two of what is left
                chance.shuffle(shards)
                shards[0].merge(shards.pop())
            assert_equal(shards[0].compute(), whole.compute())
            merged = FEATURE_STATISTICS[name]().merge(shards[0])
            assert_equal(merged.compute(), whole.compute())

    def test_merging_leaves_the_argument_as_it_was(self, name, stream):
        one = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, 20))
        other = FEATURE_STATISTICS[name]().update(batch_of(stream, 20, 20))
        twin = FEATURE_STATISTICS[name]().update(batch_of(stream, 20, 20))
        one.merge(other)
        one.update(batch_of(stream, 40, 20))
        assert_equal(other.compute(), twin.compute())
        other.update(batch_of(stream, 0, 20))
        twin.update(batch_of(stream, 0, 20))
        assert_equal(other.compute(), twin.compute())

    def test_a_saved_state_continues_as_if_never_saved(self, name, stream):
        whole = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, N_CONTEXTS))
        first = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, 25))
        second = FEATURE_STATISTICS[name]()
        second.load_state_dict(first.state_dict())
        before = first.compute()
        second.update(batch_of(stream, 25, N_CONTEXTS - 25))
        assert_equal(second.compute(), whole.compute())
        assert_equal(first.compute(), before)

    def test_nothing_seen_is_a_result_too(self, name, stream):
        empty = FEATURE_STATISTICS[name]()
        seen = FEATURE_STATISTICS[name]().update(batch_of(stream, 0, N_CONTEXTS))
        expected = seen.compute()
        empty.merge(FEATURE_STATISTICS[name]())
        assert plain(empty.compute()).keys() == plain(expected).keys()
        assert_equal(seen.merge(empty).compute(), expected)


@pytest.mark.parametrize("name", ["moments", "maximum", "histogram"])
def test_a_state_of_another_size_is_refused_by_name(name):
    kind = type(FEATURE_STATISTICS[name]())
    with pytest.raises(ValueError, match=r"has torch"):
        FEATURE_STATISTICS[name]().load_state_dict(kind(D_SAE + 1).state_dict())


@pytest.mark.parametrize("seen", [2**24, 2**31 - 1, 2**31, 2**53])
def test_counts_go_beyond_what_float32_int32_and_float64_can_count(seen):
    collection = Collection(d_in=1, d_sae=1, sizes=Sizes(top_k=1, window=(0, 0)))
    state = collection.state_dict()
    for name in ("moments.n_active", "moments.n_contexts", "quality.counts"):
        state[name] = torch.full_like(state[name], seen)
    state["histogram.counts"] = torch.full_like(state["histogram.counts"], seen)
    collection.load_state_dict(state)
    tokens = torch.zeros((1, 1), dtype=torch.int64)
    one = torch.zeros(1, dtype=torch.int64)
    contexts = Contexts.consecutive(seen, tokens, torch.ones((1, 1), dtype=torch.bool))
    collection.update(Activations(contexts, one, one, torch.ones(1), 0, 1))
    collection.update_quality(torch.ones(1, 1), torch.ones(1, 1), n_active=1)
    found = collection.compute()
    for name in ("n_active", "n_contexts"):
        assert found["features"][name].tolist() == [seen + 1]
    assert sorted(found["histograms"][0].tolist()) == [seen] * (N_BINS - 1) + [seen + 1]
    assert found["quality"]["n_tokens"] == seen + 1
    assert found["features"]["last_context"].tolist() == [seen]
    assert found["features"]["max_context"].tolist() == [seen]
    assert found["examples"].context.tolist() == [seen]
    twice = Collection(d_in=1, d_sae=1, sizes=Sizes(top_k=1, window=(0, 0)))
    twice.merge(collection).merge(collection)
    assert twice.compute()["features"]["n_active"].tolist() == [2 * (seen + 1)]
    assert int(twice.histogram.counts.max()) == 2 * (seen + 1)


class TestQuality:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 30
    x_hat = x + torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) / 4

    def expected(self):
        x, x_hat = self.x.double().numpy(), self.x_hat.double().numpy()
        return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()

    def test_fvu_and_l0_equal_their_definitions(self):
        quality = Quality(6)
        for start in range(0, 50, 7):
            part = slice(start, start + 7)
            quality.update(self.x[part], self.x_hat[part], n_active=3)
        found = quality.compute()
        assert found["fvu"] == pytest.approx(self.expected(), rel=1e-6)
        assert found["explained_variance"] == 1 - found["fvu"]
        error = self.x.double() - self.x_hat.double()
        assert found["mse"] == pytest.approx(float(error.square().sum() / 50), rel=1e-6)
        assert found["l0"] == 24 / 50
        assert found["n_tokens"] == 50

    def test_shards_merge_and_states_continue(self):
        one = Quality(6).update(self.x[:20], self.x_hat[:20], n_active=1)
        other = Quality(6).update(self.x[20:], self.x_hat[20:], n_active=2)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        merged = Quality(6)
        merged.load_state_dict(one.state_dict())
        merged.merge(other)
        assert merged.compute()["fvu"] == pytest.approx(self.expected(), rel=1e-6)
        assert merged.compute()["l0"] == 3 / 50
        assert all(
            torch.equal(before[name], now) for name, now in other.state_dict().items()
        )

    def test_nothing_seen_gives_no_number(self):
        absent = dict.fromkeys(("l0", "mse", "fvu", "explained_variance"))
        assert Quality(6).compute() == {"n_tokens": 0, **absent}

    def test_constant_activations_have_no_fvu(self):
        x = torch.ones(4, 6)
        assert Quality(6).update(x, x, n_active=0).compute()["fvu"] is None

    def test_what_is_not_compared_has_no_fvu_but_an_l0(self):
        quality = Quality(6, compared=False).update(self.x, None, n_active=25)
        absent = dict.fromkeys(("mse", "fvu", "explained_variance"))
        assert quality.compute() == {"n_tokens": 50, "l0": 0.5, **absent}
        assert quality.finite
