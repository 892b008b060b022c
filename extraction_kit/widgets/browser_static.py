"""The feature browser as text that never changes: for GitHub, nbconvert, reopened notebooks.

Pure functions of the same values that the page gets. Everything from outside is escaped, and
the words are complete without the styles, which some sites strip.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from extraction_kit.results import BINS_PER_OCTAVE, bin_edges
from extraction_kit.widgets import static, words

N_EXAMPLES = 5
_BLOCKS = "▁▂▃▄▅▆▇█"
_CELL = (
    'style="text-align:left;vertical-align:top;padding:1px 16px 1px 0;white-space:nowrap"'
)
_SMALL = 'style="font-size:12px;margin-top:6px"'

Values = Mapping[str, Any]


def html(facts: Values, rows: Values, page: Values) -> str:
    """Return the feature shown and the head of the list as one ``<div>``.

    Parameters
    ----------
    facts, rows, page : mapping
        What `FeatureBrowser.facts`, `first_rows` and `page` return.
    """
    parts = [
        _head(facts, page),
        _figures(page),
        *_histogram(page),
        *_tables(page),
        *_examples(page),
        *(static.line(static.prose(why)) for why in page["absent"].values()),
        _list(facts, rows),
        static.line(f"Saved; run the cell again to browse, or type {_call(facts, page)}."),
    ]
    return static.frame("\n".join(parts))


def _call(facts: Values, page: Values) -> str:
    return f"<code>{escape(facts['call'])}({page['feature']})</code>"


def _head(facts: Values, page: Values) -> str:
    label = "" if page["label"] is None else f" {static.isolated(page['label'])}"
    about = [facts["title"], *facts["about"], f"{facts['d_sae']:,} features"]
    said = (
        ""
        if page["description"] is None
        else static.line(static.isolated(page["description"]))
    )
    return (
        f"<div><strong>Feature {page['feature']}</strong>{label} · "
        f"{' · '.join(map(static.isolated, about))}</div>{said}"
    )


def _figures(page: Values) -> str:
    stats = page["stats"]
    if page["dead"]:
        return static.line("dead: never active on the tokens of the corpus")
    shown = [
        (words.share(stats["density"]), "of tokens"),
        (words.number(stats["max_act"]), "max"),
        (
            f"{words.number(stats['mean_act'])} ± {words.number(stats['std_act'])}",
            "mean ± std",
        ),
        (words.number(stats["q50"]), "median"),
        (words.share(stats["context_density"]), "of contexts"),
    ]
    return static.line(
        " · ".join(f"<strong>{value}</strong> {name}" for value, name in shown)
    )


def _histogram(page: Values) -> Iterable[str]:
    """Yield the histogram by octaves, in characters: no site strips them."""
    first, counts = page["hist"]["first"], page["hist"]["counts"]
    if not counts:
        return
    octave = [(first + i - 1) // BINS_PER_OCTAVE for i in range(len(counts))]
    sums = [
        sum(n for at, n in zip(octave, counts, strict=True) if at == one)
        for one in range(octave[0], octave[-1] + 1)
    ]
    bars = "".join(_BLOCKS[round(n / max(sums) * 7)] if n else " " for n in sums)
    edges = bin_edges()
    low = edges[max(0, octave[0] * BINS_PER_OCTAVE + 1)]
    yield static.line(
        f"activations by octave, from {words.number(low)}: <code>{bars}</code> "
        f"to {words.number(page['stats']['max_act'])}"
    )


def _tables(page: Values) -> Iterable[str]:
    columns = [
        ("promotes", _tokens(page["logits"]["top"])),
        ("suppresses", _tokens(page["logits"]["bottom"])),
        ("similar", _features(page["similar"])),
        ("fires with", _features(page["partners"])),
        ("fires on", _tokens([[text, n] for text, n, _ in page["tokens"]])),
    ]
    shown = [(name, cells) for name, cells in columns if cells]
    if shown:
        heads = "".join(f"<th {_CELL}>{name}</th>" for name, _ in shown)
        cells = "".join(f"<td {_CELL}>{'<br>'.join(cells)}</td>" for _, cells in shown)
        yield f"<table {_SMALL}><tr>{heads}</tr><tr>{cells}</tr></table>"


def _tokens(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"<code>{static.isolated(words.token(text))}</code> {words.number(value)}"
        for text, value in rows[:N_EXAMPLES]
    ]


def _features(rows: Sequence[Sequence[Any]]) -> list[str]:
    return [
        f"{feature}{'' if label is None else f' {static.isolated(label)}'} {value:.3f}"
        for feature, value, label in rows[:N_EXAMPLES]
    ]


def _examples(page: Values) -> Iterable[str]:
    scale = page["stats"]["max_act"]
    for one in page["examples"][:N_EXAMPLES]:
        held = " (held out)" if one["held_out"] else ""
        heat = static.heat(one["tokens"], one["acts"], scale)
        yield static.line(f"{words.number(one['act'])}{held} {heat}")


def _list(facts: Values, rows: Values) -> str:
    lines = "".join(
        f"<tr><td {_CELL}>{feature}</td><td {_CELL}>{_cell(label)}</td>"
        f"<td {_CELL}>{words.share(density)}</td><td {_CELL}>{words.number(measure)}</td></tr>"
        for feature, label, density, measure in zip(
            rows["feature"],
            rows.get("label", rows["token"]),
            rows["density"],
            rows["measure"],
            strict=True,
        )
    )
    name = "label" if "label" in rows else "token at the peak"
    head = "".join(
        f"<th {_CELL}>{each}</th>" for each in ("feature", name, "density", rows["by"])
    )
    return (
        f'<details style="margin-top:6px"><summary>{rows["n"]:,} of {facts["d_sae"]:,} '
        f"features</summary><table {_SMALL}><tr>{head}</tr>{lines}</table></details>"
    )


def _cell(text: str | None) -> str:
    return "" if text is None else static.isolated(words.token(text))
