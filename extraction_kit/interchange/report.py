"""A report of chosen features as one HTML file that needs nothing else.

No script, no request (its Content-Security-Policy allows none), everything from outside
escaped; system colours, so that it is readable in light and dark.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from extraction_kit.catalog.bulk import FeatureRecord, ResultFiles, chosen, records
from extraction_kit.catalog.listing import Labels, Said
from extraction_kit.catalog.reading import ExampleWindow
from extraction_kit.errors import BadExport
from extraction_kit.interchange.writing import new_file
from extraction_kit.results import bin_edges
from extraction_kit.widgets import static, words

_MOST = 2000  # features; a browser opens that many
_STYLE = """
:root { color-scheme: light dark }
body { font: 14px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; background: Canvas; color: CanvasText }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem;
  border-top: 1px solid rgba(128,128,128,.4); padding-top: 1rem }
h3 { font-size: .95rem; margin: .9rem 0 .2rem }
table { border-collapse: collapse } td { padding: 1px 10px 1px 0; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
svg { display: block; max-width: 100% } svg rect { fill: #e07b00 }
svg text { fill: CanvasText; font-size: 10px }
nav a { margin-right: .7em } a { color: LinkText }
code { font-family: ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(
    files: ResultFiles,
    path: Path | str,
    *,
    features: Iterable[SupportsIndex],
    k: int,
    title: str,
    labels: Labels,
) -> Path:
    """Write the file; return where it is. See `Exports.report`."""
    if features is None:
        raise BadExport("features=None: a report is of chosen features, features=[12, 345]")
    wanted = chosen(files, features)
    if len(wanted) > _MOST:
        raise BadExport(
            f"{len(wanted):,} features: a report holds at most {_MOST:,}. Choose some, or "
            "type run.export.parquet(...)"
        )
    if type(k) is not int or k < 1:
        raise BadExport(f"k={k!r}: how many examples of each group, an integer from 1")

    def put(target: Path) -> None:
        with target.open("w", encoding="utf-8") as file:
            file.writelines(_page(files, wanted, k=k, title=title, labels=labels))

    return new_file(path, put)


def _page(
    files: ResultFiles, features: Sequence[int], *, k: int, title: str, labels: Labels
) -> Iterator[str]:
    name = _text(title)
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(words.tame(title))}</title><style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n"
    )
    yield _run(files.manifest)
    links = "".join(f'<a href="#f{each}">{each}</a>' for each in features)
    yield f"<nav>features {links}</nav>\n"
    for batch in records(files, features):
        for record in batch:
            yield from _feature(record, k, labels.get(record.feature, (None, None)))
    yield "</body></html>\n"


def _run(manifest: Mapping[str, Any]) -> str:
    summary, training = manifest["summary"], manifest["training"]
    rows = [
        ("model", training["model"]["source"]),
        ("read at", training["hookpoint"]["hook_name"]),
        ("SAE", f"{training['sae']['architecture']}, {summary['d_sae']:,} features"),
        ("corpus", manifest["corpus"]["source"]),
        ("tokens counted", f"{summary['n_tokens']:,}"),
        ("L0", words.number(summary["l0"])),
        ("FVU", words.number(summary["fvu"])),
        ("result digest", manifest["result_digest"]),
    ]
    cells = "".join(f"<tr><td>{n}</td><td>{_text(value)}</td></tr>" for n, value in rows)
    return f"<table>{cells}</table>\n"


def _feature(record: FeatureRecord, k: int, said: Said) -> Iterator[str]:
    row = record.row
    name, description = (None if text is None else _text(text) for text in said)
    named = f"feature {record.feature}" + (f" · {name}" if name else "")
    yield f'<section id="f{record.feature}"><h2>{named}</h2>\n'
    if description:
        yield f"<p>{description}</p>\n"
    if row["dead"]:
        yield "<p>dead: never active on the tokens counted</p>"
    else:
        yield (
            f"<p>active on {words.share(row['density'])} of tokens and "
            f"{words.share(row['context_density'])} of contexts · max "
            f"{words.number(row['max_act'])} · mean {words.number(row['mean_act'])} · median "
            f"{words.number(row['q50'])}</p>\n"
        )
        yield _histogram(record.hist, float(row["max_act"]))
    yield _weights(record)
    peak = max(float(row["max_act"]), 0.0) or None
    for group, windows in record.windows.items():
        if windows:
            yield f"<h3>{_text(group)}</h3>\n{_examples(windows[:k], peak)}"
    yield "</section>\n"


def _histogram(hist: np.ndarray, max_act: float) -> str:
    """Return the histogram on its own logarithmic scale, from the first bin to the last."""
    used = np.flatnonzero(hist)
    first, last = int(used[0]), int(used[-1])
    counts = hist[first : last + 1]
    width, height = 4, 60
    bars = "".join(
        f'<rect x="{width * i}" y="{height - tall:.1f}" width="{width - 1}" '
        f'height="{tall:.1f}"><title>{count:,} tokens</title></rect>'
        for i, count in enumerate(counts.tolist())
        if (tall := height * count / int(counts.max()))
    )
    size = max(width * len(counts), 160)
    edges = bin_edges()
    low, high = words.number(edges[first]), words.number(min(edges[last + 1], max_act))
    return (
        f'<svg role="img" aria-label="histogram of activations" width="{size}" '
        f'height="{height + 14}" viewBox="0 0 {size} {height + 14}">{bars}'
        f'<text x="0" y="{height + 12}">{low} to {high}, logarithmic</text></svg>\n'
    )


def _weights(record: FeatureRecord) -> str:
    parts = []
    for sign, said in (("top", "makes likely"), ("bottom", "makes unlikely")):
        tokens = (record.logits or {}).get(sign, ())
        if tokens:
            shown = " ".join(f"<code>{_token(text)}</code>" for text, _ in tokens)
            parts.append(f"<tr><td>{said}</td><td>{shown}</td></tr>")
    if record.nearest:
        shown = ", ".join(f"{other} ({cos:.2f})" for other, cos in record.nearest)
        parts.append(f"<tr><td>nearest decoder rows (cosine)</td><td>{shown}</td></tr>")
    return f"<table>{''.join(parts)}</table>\n" if parts else ""


def _examples(windows: Sequence[ExampleWindow], peak: float | None) -> str:
    rows = "".join(
        f'<tr><td class="n">{words.number(window.act)}</td>'
        f"<td>{static.heat(window.tokens, window.acts, peak)}</td></tr>\n"
        for window in windows
    )
    return f"<table>{rows}</table>\n"


def _text(value: object) -> str:
    return f"<bdi>{escape(words.tame(str(value)))}</bdi>"


def _token(text: str) -> str:
    return f"<bdi>{escape(words.token(text))}</bdi>"
