"""What is counted in pairs: against plain loops, whole and beyond the budget, in any order."""

import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from extraction_kit.results import KINDS
from extraction_kit.stats import ActivationSample, Collection, Sizes
from extraction_kit.stats.hashing import Draw
from tests.unit.test_stats_contract import (
    D_SAE,
    N_CONTEXTS,
    SIZE,
    WINDOW,
    assert_equal,
    batch_of,
    shuffler,
)
from tests.unit.test_stats_samples import splitmix

SEED, N_TOKENS, N_PARTNERS = 5, 4, 3
TILES = ((0, 3), (3, D_SAE - 3))
WHOLE = 10**6


@pytest.fixture(params=[0, 1])
def stream(request):
    """Dense activations [context, pos, feature], few token ids so that they repeat, valid."""
    chance = np.random.default_rng(request.param)
    dense = np.exp2(chance.uniform(-4, 2, (N_CONTEXTS, SIZE, D_SAE))).astype(np.float32)
    dense[chance.random(dense.shape) < 0.7] = 0
    dense[..., 1] = np.where(chance.random((N_CONTEXTS, SIZE)) < 0.8, dense[..., 0], 0)
    dense[:, :, D_SAE - 1] = 0  # a dead feature
    dense[11] = 0  # a context without an active token
    valid = chance.random((N_CONTEXTS, SIZE)) < 0.8
    valid[7] = False
    return dense, chance.integers(0, 9, (N_CONTEXTS, SIZE)), valid


def sample(**limits):
    return ActivationSample(
        D_SAE, n_top_tokens=N_TOKENS, n_coactive=N_PARTNERS, seed=SEED, **limits
    )


def fed(stream, *, size=N_CONTEXTS, tiles=((0, D_SAE),), seed=0, **limits):
    """Feed batches of `size` contexts in a shuffled order."""
    found = sample(**limits)
    cuts = list(itertools.product(range(0, N_CONTEXTS, size), tiles))
    shuffler(seed).shuffle(cuts)
    for first, tile in cuts:
        found.update(batch_of(stream, first, size, tile=tile))
    return found


# --- the oracle -------------------------------------------------------------------------


def active_of(stream, context):
    """Return (token id, {feature: activation}) of each valid token of a context."""
    dense, tokens, valid = stream
    return [
        (
            int(tokens[context, pos]),
            {f: float(v) for f, v in enumerate(dense[context, pos]) if v > 0},
        )
        for pos in range(SIZE)
        if valid[context, pos]
    ]


def by_hash(stream):
    """Return the contexts with a valid token, the smallest hash first."""
    usable = [c for c in range(N_CONTEXTS) if active_of(stream, c)]
    return sorted(usable, key=lambda c: splitmix(Draw.SAMPLE.seed(SEED), c))


def fitting(stream, contexts, weight, budget):
    """Return the contexts until one would exceed the budget."""
    kept, total = [], 0
    for context in contexts:
        total += sum(weight(len(acts)) for _, acts in active_of(stream, context))
        if total > budget:
            break
        kept.append(context)
    return kept


def naive_tokens(stream, contexts):
    acts = defaultdict(list)
    for context in sorted(contexts):
        for token, active in active_of(stream, context):
            for feature, act in active.items():
                acts[feature, token].append(act)
    rows = []
    for feature in range(D_SAE):
        found = [(-len(v), token, v) for (f, token), v in acts.items() if f == feature]
        for rank, (_, token, values) in enumerate(sorted(found)[:N_TOKENS]):
            mean = pytest.approx(sum(values) / len(values), rel=1e-12)
            total = pytest.approx(sum(values), rel=1e-12)
            rows.append((feature, rank, token, len(values), total, mean, max(values)))
    return rows


def naive_partners(stream, contexts):
    alone, both = Counter(), Counter()
    for context in contexts:
        for _, active in active_of(stream, context):
            alone.update(list(active))
            both.update(itertools.permutations(active, 2))
    rows = []
    for feature in range(D_SAE):
        found = sorted(
            (-n / (alone[a] + alone[b] - n), b, n)
            for (a, b), n in both.items()
            if a == feature
        )
        for rank, (value, other, n) in enumerate(found[:N_PARTNERS]):
            rows.append((feature, rank, other, pytest.approx(-value, rel=1e-6), n))
    return rows


def rows_of(table, *names):
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def assert_counted_in(stream, found, contexts, counted):
    """Compare `found` with plain loops over the contexts of tokens, and of pairs."""
    names = ("feature", "rank", "token", "n_active", "sum_act", "mean_act", "max_act")
    assert rows_of(found["tokens"], *names) == naive_tokens(stream, contexts)
    names = ("feature", "rank", "other", "value", "n_both")
    assert rows_of(found["neighbours"], *names) == naive_partners(stream, counted)
    assert set(found["neighbours"]["kind"].tolist()) <= {KINDS.index("coactivation")}
    every = sum(len(active_of(stream, c)) for c in range(N_CONTEXTS))
    for name, inside in (("tokens", contexts), ("coactivation", counted)):
        n_tokens = sum(len(active_of(stream, c)) for c in inside)
        assert found["summary"][f"{name}_share"] == n_tokens / every
        assert found["summary"][f"{name}_contexts"] == len(inside)


@pytest.mark.parametrize("tiles", [((0, D_SAE),), TILES])
def test_tokens_and_partners_equal_naive_loops(stream, tiles):
    found = fed(stream, size=8, tiles=tiles).compute()
    assert_counted_in(stream, found, by_hash(stream), by_hash(stream))
    assert found["summary"]["tokens_share"] == found["summary"]["coactivation_share"] == 1
    assert D_SAE - 1 not in found["tokens"]["feature"]


@pytest.mark.parametrize("budget", [0, 1, 40, 200, 400])
def test_beyond_the_budget_the_contexts_with_the_smallest_hash_are_counted(stream, budget):
    found = fed(stream, size=3, tiles=TILES, budget=budget).compute()
    kept, total = [], 0
    for context in by_hash(stream):  # a context itself weighs like an active token
        total += 1 + sum(len(acts) for _, acts in active_of(stream, context))
        if total > budget:
            break
        kept.append(context)
    assert len(kept) < len(by_hash(stream))
    assert_counted_in(stream, found, kept, kept)


def test_beyond_the_pairs_partners_are_counted_in_fewer_contexts(stream):
    found = fed(stream, size=3, tiles=TILES, pairs=300).compute()
    counted = fitting(stream, by_hash(stream), lambda n: n * n, 300)
    assert 0 < len(counted) < len(by_hash(stream))
    # one without an active token, just behind the last that fits, is counted as well
    rest = by_hash(stream)[len(counted) :]
    counted += itertools.takewhile(
        lambda c: not any(acts for _, acts in active_of(stream, c)), rest
    )
    assert_counted_in(stream, found, by_hash(stream), counted)


# --- in any order -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [WHOLE, 200])
@pytest.mark.parametrize("size", [1, 3, 8, 32])
def test_batches_and_tiles_in_any_order_give_the_same_to_the_last_bit(stream, size, budget):
    expected = fed(stream, budget=budget).compute()
    for seed, tiles in enumerate([((0, D_SAE),), TILES, ((0, 1), (1, 2), (3, 4))]):
        found = fed(stream, size=size, tiles=tiles, seed=seed, budget=budget).compute()
        for table in expected:
            if table != "summary":
                for name, column in expected[table].items():
                    assert found[table][name].tobytes() == column.tobytes(), name
        assert found["summary"] == expected["summary"]


@pytest.mark.parametrize("budget", [WHOLE, 200])
@pytest.mark.parametrize("n_shards", [1, 2, 5])
def test_shards_of_any_sizes_merge_in_any_order(stream, n_shards, budget):
    """One shard holds nearly everything: the bounds of the shards differ."""
    expected = fed(stream, budget=budget).compute()
    for seed in range(3):
        shards = [sample(budget=budget) for _ in range(n_shards)]
        for context in range(N_CONTEXTS):
            shard = shards[0 if context % 5 else context // 5 % n_shards]
            shard.update(batch_of(stream, context, 1))
        chance = shuffler(seed)
        while len(shards) > 1:
            chance.shuffle(shards)
            left, right = shards.pop(), shards.pop()
            shards.append(left.merge(right))
        assert_equal(shards[0].compute(), expected)


def test_a_state_saved_at_any_moment_continues_and_stays_within_the_budget(stream):
    budget = 200
    expected = fed(stream, budget=budget).compute()
    one = sample(budget=budget)
    for context in shuffler(1).sample(range(N_CONTEXTS), N_CONTEXTS):
        one.update(batch_of(stream, context, 1))
        state = {name: tensor.clone() for name, tensor in one.state_dict().items()}
        assert state["feature"].numel() + state["context"].numel() <= budget
        assert state["place"].numel() <= budget
        one = sample(budget=budget)
        one.load_state_dict(state)
    assert_equal(one.compute(), expected)


def test_a_context_that_was_refused_once_never_comes_in_later(stream):
    """The small ones after a large one must not take the place that it left."""
    dense, tokens, valid = (array.copy() for array in stream)
    order = by_hash(stream)
    dense[order[3]] = 1.0
    valid[order[3]] = True
    changed = dense, tokens, valid
    weights = [1 + sum(len(a) for _, a in active_of(changed, c)) for c in order]
    budget = sum(weights[:4]) - 1
    assert budget - sum(weights[:3]) > weights[4]  # there is room for the next
    expected = fed(changed, budget=budget).compute()
    assert expected["summary"]["tokens_contexts"] == 3
    one = sample(budget=budget)
    for context in (order[3], *order[:3], *order[4:]):
        one.update(batch_of(changed, context, 1))
        state, one = one.state_dict(), sample(budget=budget)
        one.load_state_dict(state)
    assert_equal(one.compute(), expected)
    for turned in (False, True):  # nor from another shard
        full, late = sample(budget=budget), sample(budget=budget)
        late.update(batch_of(changed, order[4], 1))
        for context in order[:4]:
            full.update(batch_of(changed, context, 1))
        full.state_dict()
        merged = late.merge(full) if turned else full.merge(late)
        assert merged.compute()["summary"]["tokens_contexts"] == 3


# --- chance and options -----------------------------------------------------------------


def test_the_stated_standard_error_is_that_of_the_draw():
    """n / p over many seeds scatters around the corpus's count by what the docstring says."""
    chance = np.random.default_rng(3)
    n_contexts, p = 400, 0.25
    dense = np.zeros((n_contexts, 4, 2), dtype=np.float32)
    dense[..., 0] = chance.random((n_contexts, 4)) < 0.3
    dense[:, 1:, 0] *= dense[:, :1, 0]  # it comes in clusters
    dense[..., 1] = 1
    stream = dense, np.zeros((n_contexts, 4), np.int64), np.ones((n_contexts, 4), bool)
    batch = batch_of(stream, 0, n_contexts, tile=(0, 2))
    own = dense[..., 0].sum(axis=1)
    m = (own**2).sum() / own.sum()
    ratios = []
    for seed in range(200):
        one = ActivationSample(
            2, n_top_tokens=1, n_coactive=0, seed=seed, budget=int(6 * n_contexts * p)
        )
        found = one.update(batch).compute()
        n = found["tokens"]["n_active"][0]
        share = found["summary"]["tokens_share"]
        error = np.sqrt((1 - share) * m / n)
        ratios.append((n / share / own.sum() - 1) / error)
    assert abs(np.mean(ratios)) < 0.3
    assert 0.8 < np.std(ratios) < 1.25


def test_a_feature_on_very_many_tokens_is_counted_in_parts(stream, monkeypatch):
    expected = fed(stream).compute()
    monkeypatch.setattr("extraction_kit.stats.pairs._AT_ONCE", 2)
    assert_equal(fed(stream).compute(), expected)
    monkeypatch.setattr("extraction_kit.stats.pairs._SPARSE", 10**-6)  # sorts all pairs
    assert_equal(fed(stream).compute(), expected)


def test_each_is_left_out_unless_asked_for(stream):
    def collected(**sizes):
        one = Collection(d_in=3, d_sae=D_SAE, sizes=Sizes(top_k=2, window=WINDOW, **sizes))
        return one.update(batch_of(stream, 0, N_CONTEXTS)).compute()

    assert collected()["tables"] == collected()["sampled"] == {}
    assert collected(n_top_tokens=1)["tables"].keys() == {"tokens"}
    assert collected(n_top_tokens=1)["sampled"].keys() == {
        "tokens_share",
        "tokens_contexts",
    }
    assert collected(n_coactive=1)["tables"].keys() == {"neighbours"}
    both = collected(n_top_tokens=1, n_coactive=2)
    assert both["tables"].keys() == {"tokens", "neighbours"}
    assert both["sampled"]["coactivation_share"] == 1.0
    assert both["tables"]["tokens"]["rank"].max() == 0
    assert both["tables"]["neighbours"]["rank"].max() == 1
