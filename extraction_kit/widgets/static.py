"""The card as text that never changes: for GitHub, nbconvert, reopened notebooks, nbval.

Pure functions of their arguments: no clock, no environment. Everything that comes from
outside is escaped. The HTML is complete without its styles, which some sites strip, and
uses the surrounding text colour, so that it suits light and dark pages.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.views import Happening, RunView, short
from extraction_kit.widgets import words

# White text on each has a contrast of at least 4.5.
_TONES: Mapping[RunState, str] = {
    RunState.REQUESTED: "#5f6b7a",
    RunState.QUEUED: "#5f6b7a",
    RunState.EXTRACTING: "#1565c0",
    RunState.PUBLISHING: "#1565c0",
    RunState.COMPLETED: "#2e7d32",
    RunState.FAILED: "#c62828",
    RunState.CANCELLED: "#5f6b7a",
    RunState.INTERRUPTED: "#a34a00",
}
_MONO = "font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"
_FAINT = "rgba(128,128,128,.16)"


def plain(view: RunView) -> str:
    """Return one line: ``<Run t-7f3a g1 completed 100% of 100,000 tokens>``."""
    return (
        f"<Run {view.training_id} g{view.generation} {view.state} "
        f"{words.percent_done(view.progress)}% of {view.n_tokens:,} tokens"
        f"{', deleted' if view.deleted_at else ''}>"
    )


def html(
    view: RunView,
    events: Sequence[Happening] = (),
    highlights: Sequence[Mapping[str, Any]] = (),
    *,
    reproducible: bool = False,
) -> str:
    """Return the card as one ``<div>``.

    Parameters
    ----------
    view : RunView
        The run.
    events : sequence of Happening
        Shown on demand.
    highlights : sequence of mapping
        Features with an example, see `RunSource.highlights`; completed runs only.
    reproducible : bool
        Leave out what differs when the same run is made again elsewhere: person, machine,
        process, events, absolute folders. Times stay, in ``<time>`` elements.
    """
    tone = _TONES[view.state]
    parts = [
        _head(view),
        _bar(view, tone),
        _figures(view),
        *_story(view, reproducible=reproducible),
        *(_features(highlights) if view.state is RunState.COMPLETED else ()),
        *([] if reproducible else _timeline(events)),
    ]
    return frame("\n".join(parts), edge=tone)


def frame(
    content: str, *, edge: str = "rgba(128,128,128,.35)", width: str = "860px"
) -> str:
    """Return HTML in the frame that all static displays share."""
    style = (
        f"border:1px solid rgba(128,128,128,.35);border-left:4px solid {edge};"
        f"border-radius:8px;padding:12px 16px;max-width:{width};font-size:13px;"
        "line-height:1.55;font-family:system-ui,-apple-system,'Segoe UI',sans-serif"
    )
    return f'<div class="xk-static" style="{style}">\n{content}\n</div>'


def _plain(value: object) -> str:
    return escape(words.tame(str(value)))


def isolated(value: object) -> str:
    """Return `value` escaped and isolated, so that its direction ends with it."""
    return f"<bdi>{_plain(value)}</bdi>"


def _code(value: object) -> str:
    style = f"{_MONO};background:{_FAINT};padding:1px 4px;border-radius:3px"
    return f'<code style="{style}">{_plain(value)}</code>'


def prose(text: str) -> str:
    """Return `text` escaped, with what stands between backticks as code."""
    pieces = re.split(r"`([^`\n]+)`", text)
    return "".join(
        _code(piece) if index % 2 else isolated(piece)
        for index, piece in enumerate(pieces)
        if piece
    )


def moment(at: datetime) -> str:
    """Return a moment to the minute, UTC, in a ``<time>`` element."""
    at = at.astimezone(UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%MZ}">{at:%Y-%m-%d %H:%M} UTC</time>'


def _took(view: RunView) -> str | None:
    if view.started_at is None or view.ended_at is None:
        return None
    seconds = max(0.0, (view.ended_at - view.started_at).total_seconds())
    return f'<time datetime="PT{round(seconds)}S">{words.duration(seconds)}</time>'


def line(content: str, style: str = "") -> str:
    """Return a line of its own."""
    return f'<div style="margin-top:6px;{style}">{content}</div>'


def pill(state: RunState) -> str:
    """Return a state as a word on its colour."""
    return (
        f'<span style="background:{_TONES[state]};color:#fff;border-radius:999px;'
        f'padding:2px 10px;font-weight:600">{escape(state.capitalize())}</span>'
    )


def _head(view: RunView) -> str:
    about = [f"generation {view.generation}", view.model, view.hook_name]
    if view.d_sae is not None:
        about.append(f"{view.d_sae:,} features")
    subtitle = " · ".join(isolated(item) for item in about if item)
    name = f"<strong>{isolated(view.training_id)}</strong>"
    return f"<div>{pill(view.state)} {name} · {subtitle}</div>"


def _bar(view: RunView, tone: str) -> str:
    width = f"{100 * view.progress:.1f}"
    return (
        f'<div style="height:6px;border-radius:3px;background:{_FAINT};margin-top:10px">'
        f'<div style="height:6px;border-radius:3px;width:{width}%;background:{tone}"></div>'
        "</div>"
    )


def _figures(view: RunView) -> str:
    if view.state is RunState.COMPLETED:
        items = [(words.count(view.n_tokens), "tokens")]
    else:
        done = f"{view.n_tokens_done:,} / {view.n_tokens:,}"
        items = [(f"{words.percent_done(view.progress)} %", "done"), (done, "tokens")]
    if view.l0 is not None:
        items.append((words.number(view.l0), "L0"))
    if view.fvu is not None:
        items.append((words.number(view.fvu), "FVU"))
    if view.n_dead is not None:
        part = f" ({words.share(view.n_dead / view.d_sae)})" if view.d_sae else ""
        items.append((f"{view.n_dead:,}{part}", "dead"))
    cells = [f"<strong>{escape(value)}</strong> {label}" for value, label in items]
    took = _took(view)
    if took:
        cells.append(f"<strong>{took}</strong> taken")
    spans = [f'<span style="margin-right:16px">{cell.strip()}</span>' for cell in cells]
    return line(" ".join(spans), "font-variant-numeric:tabular-nums")


def _story(view: RunView, *, reproducible: bool) -> Iterable[str]:
    if view.state is RunState.COMPLETED:
        yield from _completed(view, reproducible=reproducible)
    elif view.state in ACTIVE:
        yield line("As it was when this was saved; run the cell again for the live card.")
    else:
        yield from _resting(view)
    for finding in view.findings:
        yield line(f"⚠ {prose(finding)}")
    if view.refusal:
        yield line(f"<strong>Refused:</strong> {prose(view.refusal)}")
    elif view.advice:
        yield line(prose(view.advice))


def _completed(view: RunView, *, reproducible: bool) -> Iterable[str]:
    words_ = [
        f"Completed {moment(view.completed_at)}" if view.completed_at else "Completed"
    ]
    if not reproducible:
        words_.append(f"launched by {isolated(view.created_by)}")
    if view.results_dir:
        folder = short(view.results_dir)
        words_.append(f"results in {_code(folder if reproducible else view.results_dir)}")
    yield line(" · ".join(words_))
    look = "look at what was found", "run.browse()"
    if view.deleted_at is not None:
        look = "bring it back, for it was deleted", f'ws.restore("{view.run_id}")'
    again = f'run = ws.launch("{view.training_id}", ..., generation={view.generation + 1})'
    yield (
        '<details style="margin-top:6px"><summary>Launch again?</summary>'
        "Refused: a completed run is never computed again and never changes. "
        f"To {look[0]}: {_code(look[1])}. "
        f"To compute it anew as a further generation: {_code(again)}</details>"
    )


def _resting(view: RunView) -> Iterable[str]:
    if view.error:
        style = f"white-space:pre-wrap;border-left:3px solid {_TONES[RunState.FAILED]};"
        yield line(f"<strong>{isolated(view.error)}</strong>", style + "padding-left:8px")
    if view.error_traceback:
        yield (
            '<details style="margin-top:6px"><summary>Traceback</summary>'
            f'<pre style="overflow:auto;{_MONO};font-size:12px">'
            f"{_plain(view.error_traceback)}</pre></details>"
        )
    if view.checkpoint_tokens and view.n_tokens:
        kept = words.percent_done(min(1.0, view.checkpoint_tokens / view.n_tokens))
        yield line(f"Checkpoint at {kept} %; {_code('run.resume()')} continues from there.")
    elif not view.advice:
        yield line(f"{_code('run.resume()')} starts a new attempt.")


def _features(highlights: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for item in highlights:
        head = (
            f"<strong>feature {int(item['feature'])}</strong> · fires on "
            f"{words.share(item['density'])} of tokens · max {words.number(item['max_act'])}"
        )
        yield line(
            f"{head}<br>{heat(item['tokens'], item['acts'])}",
            "border-top:1px solid rgba(128,128,128,.25);padding-top:6px",
        )


def heat(tokens: Sequence[str], acts: Sequence[float], scale: float | None = None) -> str:
    """Return the tokens as HTML; the warmer the background, the nearer to `scale`.

    The strongest token is bold, also where styles are stripped. `scale` is the activation
    shown warmest; None takes the strongest of these.
    """
    peak = max(acts, default=0.0)
    pieces = [
        _hot(isolated(words.token(text)), act, act / (scale or peak), strongest=act == peak)
        if act > 0
        else isolated(words.token(text))
        for text, act in zip(tokens, acts, strict=True)
    ]
    style = f"{_MONO};white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.7"
    return f'<span style="{style}">{"".join(pieces)}</span>'


def _hot(shown: str, act: float, warmth: float, *, strongest: bool) -> str:
    alpha = 0.06 + 0.44 * min(1.0, warmth)
    inner = f"<strong>{shown}</strong>" if strongest else shown
    style = f"border-radius:3px;background:rgba(255,145,0,{alpha:.2f})"
    return f'<span title="{words.number(act)}" style="{style}">{inner}</span>'


def _timeline(events: Sequence[Happening]) -> Iterable[str]:
    if not events:
        return
    rows = "".join(
        f"<tr><td>{moment(event.at)}</td><td>attempt {event.attempt}</td>"
        f"<td>{isolated(event.kind)}{f' ({event.count} times)' if event.count > 1 else ''}</td>"
        f"<td>{prose(event.text)}</td></tr>"
        for event in events
    )
    yield (
        f'<details style="margin-top:6px"><summary>What happened ({len(events)})</summary>'
        f'<table style="font-size:12px">{rows}</table></details>'
    )
