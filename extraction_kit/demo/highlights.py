"""What was found, as text: which features are worth a look, and examples with intensity."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from extraction_kit.catalog.reading import ExampleWindow

MIN_DENSITY, MAX_DENSITY = 1e-4, 2e-2
"""Features that are active more rarely have few examples, more often seldom one meaning."""
MIN_CONTEXTS = 5
_INK = "\x1b[38;5;16m"  # black, on backgrounds that are light in every theme
_BACKGROUNDS = (230, 229, 222, 215, 208)  # of the 256 colours, pale yellow to orange
_RESET = "\x1b[0m"
_MARKED_SHARE = 0.25  # of the peak, without colours


def choose_features(rows: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """Return `n` typical, selective features, from the most to the least frequent.

    Parameters
    ----------
    rows : sequence of mapping
        Columns ``feature, density, n_contexts, max_act, mean_act``.
    n : int
        Of as many bands of density (equally many features each) the one whose maximum
        stands out most from its mean is taken. Fewer come back if fewer are suitable.
    """
    suitable = [
        row
        for row in rows
        if MIN_DENSITY <= row["density"] <= MAX_DENSITY
        and row["n_contexts"] >= MIN_CONTEXTS
        and row["mean_act"]
    ]
    suitable.sort(key=lambda row: (-row["density"], row["feature"]))
    edges = [len(suitable) * band // n for band in range(n + 1)]
    bands = [suitable[low:high] for low, high in itertools.pairwise(edges)]
    return [max(band, key=_selectivity) for band in bands if band]


def _selectivity(row: Mapping[str, Any]) -> float:
    return float(row["max_act"] / row["mean_act"])


def render_examples(
    windows: Sequence[ExampleWindow], *, n: int, width: int, colors: bool
) -> list[str]:
    """Return up to `n` examples, one line each, of different texts.

    Parameters
    ----------
    windows : sequence of ExampleWindow
        In order of rank.
    n, width : int
        At most so many lines, at most so many characters each (marks not counted).
    colors : bool
        Backgrounds that grow with the activation; else active tokens in «marks».
    """
    lines: dict[str, str] = {}
    for window in windows:
        first, last = _around_peak(window, width)
        key = "".join(map(_visible, window.tokens[first : last + 1]))
        lines.setdefault(key, render_window(window, width=width, colors=colors))
    return list(lines.values())[:n]


def render_window(window: ExampleWindow, *, width: int, colors: bool) -> str:
    """Return one example as one line; see :func:`render_examples`."""
    first, last = _around_peak(window, width)
    top = max(window.acts, default=0.0) or 1.0
    tokens, acts = window.tokens[first : last + 1], window.acts[first : last + 1]
    paint = _painted if colors else _marked
    pieces = (
        paint(_visible(text), act / top) for text, act in zip(tokens, acts, strict=True)
    )
    return "".join(pieces)


def _around_peak(window: ExampleWindow, width: int) -> tuple[int, int]:
    """Return the first and last token that fit, grown from the peak, twice as far back."""
    first = last = window.pos - window.start
    room = width - len(_visible(window.tokens[first]))
    for step in _steps(len(window.tokens)):
        at = first - 1 if step < 0 else last + 1
        if not 0 <= at < len(window.tokens):
            continue
        room -= len(_visible(window.tokens[at]))
        if room < 0:
            break
        first, last = min(first, at), max(last, at)
    return first, last


def _steps(n: int) -> Iterator[int]:
    for _ in range(n):
        yield from (-1, -1, 1)


def _visible(text: str) -> str:
    """Return `text` on one line, without anything that a terminal would obey."""
    text = text.replace("\n", "↵")
    return "".join(letter if letter.isprintable() else "·" for letter in text)


def _painted(text: str, share: float) -> str:
    if share <= 0:
        return text
    level = min(len(_BACKGROUNDS) - 1, math.floor(share * len(_BACKGROUNDS)))
    return f"\x1b[48;5;{_BACKGROUNDS[level]}m{_INK}{text}{_RESET}"


def _marked(text: str, share: float) -> str:
    if share < _MARKED_SHARE:
        return text
    inner = text.lstrip(" ")
    return f"{text[: len(text) - len(inner)]}«{inner or text}»"
