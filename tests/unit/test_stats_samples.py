"""Which examples are drawn: against plain Python, and against chance."""

import numpy as np
import pytest
import torch

from extraction_kit.results import GROUPS, N_BANDS
from extraction_kit.stats import (
    BandExamples,
    Collection,
    RandomExamples,
    SilentExamples,
    Sizes,
)
from extraction_kit.stats.hashing import LARGEST, Draw, mixed
from extraction_kit.stats.samples import N_OCTAVES, held_out, octave
from tests.unit.test_stats_contract import (
    D_SAE,
    N_CONTEXTS,
    SIZE,
    WINDOW,
    batch_of,
    batches,
    shuffler,
)

SEED = 5
M = (1 << 64) - 1


@pytest.fixture(params=[0, 1, 2])
def stream(request):
    """Dense activations [context, pos, feature] of six octaves, tokens, valid."""
    chance = np.random.default_rng(request.param)
    dense = np.exp2(chance.uniform(-4, 2, (N_CONTEXTS, SIZE, D_SAE))).astype(np.float32)
    dense[chance.random(dense.shape) < 0.85] = 0
    dense[:, :, D_SAE - 1] = 0  # a dead feature
    dense[:, :, 0] *= np.float32(1e4)  # beyond the largest octave, in one band
    valid = chance.random((N_CONTEXTS, SIZE)) < 0.8
    valid[7] = False
    return dense, chance.integers(0, 50, (N_CONTEXTS, SIZE)), valid


def splitmix(seed, *numbers):
    """SplitMix64's finaliser over unbounded integers, as published."""
    state = seed * 0x9E3779B97F4A7C15 & M
    for number in numbers:
        x = ((number & M) ^ state) + 0x9E3779B97F4A7C15 & M
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
        x = (x ^ x >> 27) * 0x94D049BB133111EB & M
        state = x ^ x >> 31
    return state & (1 << 62) - 1


def test_the_hash_is_the_published_one_for_any_numbers():
    numbers = [0, 1, 2, 127, 2**31, 2**40 + 3, 2**62]
    for seed in (0, 1, 2**63 - 1, (2**63 - 1) * 7 + 5):
        left = torch.tensor(numbers)
        found = mixed(seed, left, left.flip(0))
        expected = [
            splitmix(seed, a, b) for a, b in zip(numbers, reversed(numbers), strict=True)
        ]
        assert found.tolist() == expected


def test_hashes_are_spread_evenly():
    drawn = mixed(SEED, torch.arange(100_000) % 317, torch.arange(100_000))
    counts = torch.histc(drawn.double() / LARGEST, bins=20, min=0, max=1)
    assert (counts - 5000).abs().max() < 5 * 5000**0.5


def test_octaves_are_those_of_log2():
    value = torch.tensor([2**-20, 2**-10, 0.0009, 0.4, 0.5, 1, 1.9, 2, 1023, 1024, 1e30])
    expected = [0, 1, 0, 9, 10, 11, 11, 12, 20, 21, 21]
    assert octave(value.float()).tolist() == expected
    assert N_OCTAVES == 22


def peaks_of(stream, feature):
    """Return (context, pos, value) of each context in which a feature is active."""
    dense, _, valid = stream
    found = []
    for context in range(N_CONTEXTS):
        acts = np.where(valid[context], dense[context, :, feature], 0)
        if acts.max() > 0:
            found.append((context, int(acts.argmax()), float(acts.max())))
    return found


def drawn_of(examples, feature):
    """Return (group, rank, context, pos, act) of the examples of a feature."""
    of_feature = np.flatnonzero(examples.feature == feature)
    return [
        (
            GROUPS[examples.group[i]],
            int(examples.rank[i]),
            int(examples.context[i]),
            int(examples.pos[i]),
            float(examples.act[i]),
        )
        for i in of_feature
    ]


def fed(statistic, stream, seed=0):
    for batch in batches(stream, shuffler(seed), ((0, 3), (3, D_SAE - 3))):
        statistic.update(batch)
    return statistic.compute()


def test_random_examples_are_those_with_the_smallest_hash(stream):
    found = fed(RandomExamples(D_SAE, k=5, window=WINDOW, seed=SEED), stream)
    for feature in range(D_SAE):
        ordered = sorted(
            (splitmix(Draw.RANDOM.seed(SEED), feature, context), context, pos, act)
            for context, pos, act in peaks_of(stream, feature)
        )
        expected = [("random", rank, *place[1:]) for rank, place in enumerate(ordered[:5])]
        assert drawn_of(found, feature) == expected


def test_bands_are_the_octaves_below_the_largest_activation(stream):
    found = fed(BandExamples(D_SAE, k=2, window=WINDOW, seed=SEED), stream)
    for feature in range(D_SAE):
        peaks = peaks_of(stream, feature)
        highest = max((place[2] for place in peaks), default=0)
        expected = []
        for band in range(N_BANDS):
            ordered = sorted(
                (splitmix(Draw.BANDS.seed(SEED), feature, context), context, pos, act)
                for context, pos, act in peaks
                if int(np.clip(np.floor(np.log2(highest)), -11, 10)) - band
                == int(np.clip(np.floor(np.log2(act)), -11, 10))
            )
            expected += [
                (f"band_{band + 1}", rank, *place[1:])
                for rank, place in enumerate(ordered[:2])
            ]
        assert drawn_of(found, feature) == expected


@pytest.mark.parametrize("pool", [6, 64])
def test_silent_examples_are_drawn_where_a_feature_is_never_active(stream, pool):
    statistic = SilentExamples(D_SAE, k=3, before=WINDOW[0], seed=SEED)
    statistic.pool = pool
    found = fed(statistic, stream)
    _, tokens, valid = stream
    seed = SEED * len(Draw)
    usable = [context for context in range(N_CONTEXTS) if valid[context].any()]
    members = sorted(usable, key=lambda context: splitmix(seed + 3, context))[:pool]
    for feature in range(D_SAE):
        active = {place[0] for place in peaks_of(stream, feature)}
        quiet = sorted(
            (splitmix(seed + 5, feature, context), context)
            for context in members
            if context not in active
        )
        expected = []
        for rank, (_, context) in enumerate(quiet[:3]):
            pos = min(
                (at for at in range(SIZE) if valid[context, at]),
                key=lambda at, c=context: splitmix(seed + 4, c, at),
            )
            expected.append(("silent", rank, context, pos, 0.0))
        assert drawn_of(found, feature) == expected
    for i in range(found.feature.size):
        assert found.peak_token[i] == tokens[found.context[i], found.pos[i]]


def test_random_examples_are_a_fair_draw():
    """Each of 40 contexts, in all of which it is active, is drawn equally often."""
    dense = np.ones((40, 1, 2000), dtype=np.float32)
    stream = dense, np.zeros((40, 1), np.int64), np.ones((40, 1), bool)
    statistic = RandomExamples(2000, k=10, window=(0, 0), seed=SEED)
    statistic.update(batch_of(stream, 0, 40, tile=(0, 2000)))
    times = np.bincount(statistic.compute().context, minlength=40)
    assert abs(times - 500).max() < 5 * 500**0.5


def test_the_held_out_share_is_one_of_contexts_and_never_splits_one():
    contexts = torch.arange(20_000)
    for share in (0.0, 0.2, 1.0):
        marked = held_out(contexts, share=share, seed=SEED)
        assert abs(int(marked.sum()) - 20_000 * share) < 5 * 20_000**0.5 * share**0.5 + 1
        assert torch.equal(
            marked.flip(0), held_out(contexts.flip(0), share=share, seed=SEED)
        )
    assert not torch.equal(
        held_out(contexts, share=0.5, seed=1), held_out(contexts, share=0.5, seed=2)
    )


def test_every_group_is_in_the_result_sorted_and_can_be_left_out(stream):
    sizes = Sizes(
        top_k=2, window=WINDOW, per_band=1, n_random=2, n_silent=1, held_out_share=0.5
    )
    collection = Collection(d_in=3, d_sae=D_SAE, sizes=sizes)
    alone = Collection(d_in=3, d_sae=D_SAE, sizes=Sizes(top_k=2, window=WINDOW))
    for batch in batches(stream, shuffler(3)):
        collection.update(batch)
        alone.update(batch)
    found = collection.compute()
    rows = found["examples"]
    key = list(zip(rows.feature, rows.group, rows.rank, strict=True))
    assert key == sorted(key)
    assert {GROUPS[code] for code in rows.group} == set(GROUPS)
    marked = held_out(torch.from_numpy(rows.context), share=0.5, seed=0)
    assert found["held_out"].tolist() == marked.tolist()
    dense, _, valid = stream
    for i in range(rows.feature.size):  # windows are those of the row, in every group
        acts = np.where(
            valid[rows.context[i]], dense[rows.context[i], :, rows.feature[i]], 0
        )
        span = slice(rows.start[i], rows.pos[i] + WINDOW[1] + 1)
        kept = slice(rows.offsets[i], rows.offsets[i + 1])
        assert rows.act_val[kept].tolist() == acts[span][acts[span] > 0].tolist()
        assert rows.act_off[kept].tolist() == np.flatnonzero(acts[span]).tolist()
    top = rows.group == GROUPS.index("top")
    assert set(alone.compute()["examples"].group) == {GROUPS.index("top")}
    assert alone.compute()["examples"].context.tolist() == rows.context[top].tolist()
