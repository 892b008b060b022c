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
_WIDE = (
    'style="text-align:left;vertical-align:top;padding:1px 16px 1px 0;width:50%;'
    'font-size:13px"'
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
    told = _one(page) if facts["compare"] is None else _both(facts, page)
    parts = [
        _head(facts, page),
        *told,
        _list(facts, rows),
        static.line(f"Saved; run the cell again to browse, or type {_call(facts, page)}."),
    ]
    return static.frame("\n".join(parts))


def _one(page: Values) -> list[str]:
    return [
        _figures(page),
        *_histogram(page),
        *_tables(page),
        *_examples(page, page["stats"]["max_act"]),
        *_absences(page),
    ]


def _both(facts: Values, page: Values) -> list[str]:
    """Return the pages of two runs in two columns, what the weights say once if it is one."""
    compare, pages = facts["compare"], (page, page["other"])
    scales = [one["stats"]["max_act"] for one in pages]
    if compare["one_sae"]:
        scales = [max(scales)] * 2
    once = compare["one_lens"]
    cells = [
        [
            f"<strong>{letter}</strong> {static.isolated(name)}{_why(compare, one)}",
            _figures(one),
            *_histogram(one),
            *_tables(one, lens=not once),
            *_examples(one, scale),
            *_absences(one),
        ]
        for letter, name, one, scale in zip(
            "AB", compare["names"], pages, scales, strict=True
        )
    ]
    columns = "".join(f"<td {_WIDE}>{''.join(parts)}</td>" for parts in cells)
    warmth = (
        "in both columns relative to the larger maximum"
        if compare["one_sae"]
        else "in each column relative to its own maximum"
    )
    return [
        f'<table style="width:100%;table-layout:fixed"><tr>{columns}</tr></table>',
        *(
            []
            if page["dead"] and page["other"]["dead"]
            else [static.line(f"Heat: {warmth}.")]
        ),
        *(_tables(_either(*pages), tokens=False) if once else []),
    ]


def _either(page: Values, other: Values) -> Values:
    """Return a page; what the weights say is that of the other run if only that asked for it."""
    logits = page if page["logits"]["top"] else other
    similar = page if page["similar"] else other
    return {**page, "logits": logits["logits"], "similar": similar["similar"]}


def _why(compare: Values, page: Values) -> str:
    """Return why a feature of the other run is shown; "" for one of the same number."""
    said = [f"feature {page['feature']}"] if compare["matched"] else []
    if compare["matched"] and page["label"] is not None:
        said.append(static.isolated(page["label"]))
    if "cosine" in page:
        said.append(f"cosine {page['cosine']:.3f}")
    return "".join(f" · {one}" for one in said)


def _absences(page: Values) -> Iterable[str]:
    return (static.line(static.prose(why)) for why in page["absent"].values())


def _call(facts: Values, page: Values) -> str:
    other = "" if facts["compare"] is None else ", compare=..."
    return f"<code>{escape(facts['call'])}({page['feature']}{other})</code>"


def _head(facts: Values, page: Values) -> str:
    label = "" if page["label"] is None else f" {static.isolated(page['label'])}"
    compare = facts["compare"]
    names = [facts["title"]] if compare is None else [" and ".join(compare["names"])]
    about = [*names, *facts["about"], f"{facts['d_sae']:,} features"]
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


def _tables(page: Values, *, lens: bool = True, tokens: bool = True) -> Iterable[str]:
    """Yield what is ranked: what the weights say (`lens`), what the corpus says (`tokens`)."""
    columns = [
        ("promotes", _tokens(page["logits"]["top"]) if lens else []),
        ("suppresses", _tokens(page["logits"]["bottom"]) if lens else []),
        ("similar", _features(page["similar"]) if lens else []),
        ("fires with", _features(page["partners"]) if tokens else []),
        (
            "fires on",
            _tokens([[text, n] for text, n, _ in page["tokens"]] if tokens else []),
        ),
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


def _examples(page: Values, scale: float) -> Iterable[str]:
    for one in page["examples"][:N_EXAMPLES]:
        held = " (held out)" if one["held_out"] else ""
        heat = static.heat(one["tokens"], one["acts"], scale)
        yield static.line(f"{words.number(one['act'])}{held} {heat}")


def _list(facts: Values, rows: Values) -> str:
    named = "label" if "label" in rows else "token"
    columns = {
        "feature": [str(feature) for feature in rows["feature"]],
        "label" if named == "label" else "token at the peak": [
            "" if text is None else static.isolated(words.token(text))
            for text in rows[named]
        ],
        **_densities(facts, rows),
        rows["by"]: [words.number(value) for value in rows["measure"]],
    }
    head = "".join(f"<th {_CELL}>{each}</th>" for each in columns)
    lines = "".join(
        f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in line)}</tr>"
        for line in zip(*columns.values(), strict=True)
    )
    return (
        f'<details style="margin-top:6px"><summary>{rows["n"]:,} of {facts["d_sae"]:,} '
        f"features</summary><table {_SMALL}><tr>{head}</tr>{lines}</table></details>"
    )


def _densities(facts: Values, rows: Values) -> dict[str, list[str]]:
    if facts["compare"] is None:
        return {"density": [words.share(density) for density in rows["density"]]}
    found = {
        f"density {letter}": [
            words.share(density) if density else "dead" for density in rows[name]
        ]
        for letter, name in (("A", "density"), ("B", "density_b"))
    }
    if not facts["compare"]["matched"]:
        return found
    return {"feature of B": [str(feature) for feature in rows["feature_b"]], **found}
