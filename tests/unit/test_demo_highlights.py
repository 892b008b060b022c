"""What the demo prints of a feature: which ones, and its examples."""

import re

import pytest

from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.demo.highlights import (
    choose_features,
    render_examples,
    render_window,
)


def window(tokens, acts, *, pos=None, rank=0):
    peak = acts.index(max(acts)) if pos is None else pos
    return ExampleWindow(
        rank=rank,
        act=acts[peak],
        context=rank,
        pos=40 + peak,
        start=40,
        token_ids=list(range(len(tokens))),
        tokens=tokens,
        acts=acts,
    )


def row(feature, *, density=1e-3, n_contexts=50, max_act=10.0, mean_act=5.0):
    return {
        "feature": feature,
        "density": density,
        "n_contexts": n_contexts,
        "max_act": max_act,
        "mean_act": mean_act,
    }


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_without_colors_active_tokens_stand_in_marks():
    shown = render_window(
        window(["The", " Paris", " of", " old"], [0.0, 8.0, 0.5, 4.0]),
        width=80,
        colors=False,
    )
    assert shown == "The «Paris» of «old»"


def test_with_colors_the_strongest_token_has_the_strongest_background():
    shown = render_window(window(["a", "b", "c"], [1.0, 9.0, 0.0]), width=80, colors=True)
    assert plain(shown) == "abc"
    assert "\x1b[48;5;230m" in shown.split("a")[0]
    assert shown.index("48;5;208m") > shown.index("a")
    assert shown.endswith("c")


def test_an_example_fits_the_line_and_keeps_its_peak():
    tokens = [f" word{number}" for number in range(60)]
    acts = [0.0] * 60
    acts[45] = 3.0
    shown = render_window(window(tokens, acts), width=60, colors=False)
    assert "«word45»" in shown
    assert len(shown.replace("«", "").replace("»", "")) <= 60


@pytest.mark.parametrize("colors", [True, False])
def test_text_of_the_corpus_never_steers_the_terminal(colors):
    shown = render_window(
        window(["a\n", "\x1b[2J", "\t!"], [0.0, 2.0, 0.0]), width=80, colors=colors
    )
    assert "\x1b[2J" not in shown
    assert "\n" not in shown
    assert plain(shown).startswith("a↵")


def test_equal_texts_are_shown_once():
    windows = [window(["same"], [2.0], rank=rank) for rank in range(4)]
    windows.append(window(["other"], [1.0], rank=4))
    shown = render_examples(windows, n=3, width=80, colors=False)
    assert shown == ["«same»", "«other»"]


def test_features_too_rare_or_too_frequent_are_not_chosen():
    rows = [
        row(0, density=1e-6),
        row(1, density=0.5),
        row(2),
        row(3, n_contexts=1),
    ]
    assert [one["feature"] for one in choose_features(rows, 5)] == [2]


def test_each_band_of_density_gives_its_most_selective_feature():
    rows = [
        row(0, density=0.01, max_act=6.0),
        row(1, density=0.009, max_act=50.0),
        row(2, density=0.0003, max_act=40.0),
        row(3, density=0.0002, max_act=7.0),
    ]
    assert [one["feature"] for one in choose_features(rows, 2)] == [1, 2]


def test_nothing_suitable_gives_nothing():
    assert choose_features([], 6) == []
