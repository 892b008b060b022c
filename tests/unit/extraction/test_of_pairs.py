"""Tokens, partners and different windows in a whole extraction: exact, and after any stop."""

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from extraction_kit.corpora import prepare
from extraction_kit.extraction import StopAfterCheckpoint, extract
from extraction_kit.paths import Paths
from extraction_kit.results import GROUPS, result_digest
from extraction_kit.stats import ActivationSample
from tests.unit.extraction.oracle import (
    CONFIG,
    CONFIGS,
    SETTINGS,
    naive_activations,
)
from tests.unit.extraction.stops import Killed, stopper


def columns(table, *names):
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def test_tokens_and_partners_equal_naive_loops_over_tiles_and_masks(parts, monkeypatch):
    monkeypatch.setattr("extraction_kit.sources.saes.FEATURE_TILE", 20)
    config = CONFIGS["masked"].replace(n_top_tokens=3, n_neighbours=0, n_coactive=4)
    training, corpus = parts("standard", config)
    found = extract(training, corpus, config=config, settings=SETTINGS)
    active, at = [], {}
    for tokens, valid, acts, *_ in naive_activations(training, corpus):
        for pos in np.flatnonzero(valid[: len(acts)]):
            active.append(set(np.flatnonzero(acts[pos]).tolist()))
            for feature in active[-1]:
                at.setdefault(feature, Counter())[int(tokens[pos])] += 1
    assert columns(found.tables["tokens"], "feature", "rank", "token", "n_active") == [
        (feature, rank, token, n)
        for feature in sorted(at)
        for rank, (token, n) in enumerate(
            sorted(at[feature].items(), key=lambda item: (-item[1], item[0]))[:3]
        )
    ]
    rows = found.tables["neighbours"]
    assert np.bincount(rows["feature"]).max() == 4
    for feature, other, n_both, value in columns(
        rows, "feature", "other", "n_both", "value"
    ):
        both = sum(feature in each and other in each for each in active)
        union = sum(feature in each or other in each for each in active)
        assert (n_both, value) == (both, pytest.approx(both / union))
    assert any(a < 20 <= b for a, b in columns(rows, "feature", "other"))


@pytest.mark.parametrize("budget", [2**25, 150])
def test_what_is_counted_in_a_sample_is_the_same_after_any_interruption(
    parts, tmp_path, monkeypatch, budget
):
    """To the last bit, sums too; also where the corpus does not fit the budget."""
    monkeypatch.setattr(
        "extraction_kit.stats.collection.ActivationSample",
        functools.partial(ActivationSample, budget=budget),
    )
    config = CONFIG.replace(n_top_tokens=3, n_coactive=2, dedupe=True)
    training, corpus = parts()
    undisturbed = extract(training, corpus, config=config, settings=SETTINGS)
    assert (undisturbed.summary["tokens_share"] == 1) == (budget > 150)
    for attempt, stop in enumerate([(2, Killed), (3, StopAfterCheckpoint), None], 1):
        try:
            found = extract(
                training,
                corpus,
                config=config,
                settings=replace(SETTINGS, checkpoint_every_s=1e-9),
                checkpoints=tmp_path / f"a{attempt}",
                resume_from=tmp_path,
                on_progress=stop and stopper(*stop),
            )
        except (Killed, StopAfterCheckpoint):
            continue
    assert found.provenance["resumed_from_tokens"] > 0
    assert result_digest(found) == result_digest(undisturbed)
    for name in ("tokens", "neighbours"):
        for column, values in undisturbed.tables[name].items():
            assert found.tables[name][column].tobytes() == values.tobytes(), column
    for name in ("tokens_share", "tokens_contexts", "coactivation_share"):
        assert found.summary[name] == undisturbed.summary[name]


def test_each_option_changes_the_result_and_none_is_on_by_default(parts):
    def extracted(**changes):
        config = CONFIG.replace(window=(0, 0), n_logits=0, n_neighbours=0, **changes)
        training, corpus = parts(config=config)
        return extract(training, corpus, config=config, settings=SETTINGS)

    plain = extracted()
    assert not plain.tables
    assert "tokens_share" not in plain.summary
    found = [
        extracted(**{name: value})
        for name, value in (("n_top_tokens", 2), ("n_coactive", 2), ("dedupe", True))
    ]
    assert len({result_digest(each) for each in (plain, *found)}) == 4
    assert [list(each.tables) for each in found] == [["tokens"], ["neighbours"], []]
    rows = found[2].examples
    top = rows.group == GROUPS.index("top")
    once = list(zip(rows.feature[top], rows.peak_token[top], strict=True))
    assert len(set(once)) == len(once), "with a window of one token, each token once"
    rows = plain.examples
    top = rows.group == GROUPS.index("top")
    often = list(zip(rows.feature[top], rows.peak_token[top], strict=True))
    assert len(set(often)) < len(often)


def test_copies_of_one_document_do_not_fill_the_top_examples(parts, folder):
    """Twenty copies of a text among others: with dedupe it is there once per feature."""
    chance = np.random.default_rng(0)
    text = chance.integers(4, 60, 11).tolist()
    others = [chance.integers(4, 60, 11).tolist() for _ in range(6)]
    rows = others[:3] + [text] * 20 + others[3:]
    for dedupe in (False, True):
        config = CONFIG.replace(packing="document", dedupe=dedupe, window=(12, 12))
        training, _ = parts()
        paths = Paths.of(folder / "copies", SETTINGS)
        corpus = prepare(rows, tokenizer=training.tokenizer, config=config, paths=paths)
        found = extract(training, corpus, config=config, settings=SETTINGS).examples
        top = found.group == GROUPS.index("top")
        copies = Counter(found.feature[top & (found.context >= 3) & (found.context < 23)])
        if dedupe:
            assert set(copies.values()) == {1}
            assert (found.context[top][(found.context[top] > 3)] >= 23).all(), "the first"
        else:
            assert max(copies.values()) == CONFIG.top_k
