"""The list of runs as text that never changes: for GitHub, nbconvert, reopened notebooks.

Pure functions of their arguments. Everything from outside is escaped; the HTML is complete
without its styles, and uses the surrounding text colour.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from extraction_kit.lifecycle import RunState
from extraction_kit.overview import RunLine
from extraction_kit.widgets import words
from extraction_kit.widgets.static import frame, isolated, moment, pill

MAX_ROWS = 50


def newest_first(lines: Mapping[str, RunLine]) -> list[RunLine]:
    """Return the runs, the one that was launched last first."""
    return sorted(lines.values(), key=lambda one: (-one.created_at, one.run_id))


def plain(lines: Mapping[str, RunLine]) -> str:
    """Return one line: ``<Dashboard of 3 runs: 1 extracting, 2 completed>``."""
    n = "no runs" if not lines else f"{len(lines):,} run{'' if len(lines) == 1 else 's'}"
    return f"<Dashboard of {n}{': ' if lines else ''}{_by_state(lines.values())}>"


def _by_state(lines: Iterable[RunLine]) -> str:
    counts = Counter(one.state for one in lines)
    return ", ".join(f"{counts[state]:,} {state}" for state in RunState if counts[state])


def html(lines: Mapping[str, RunLine], *, reproducible: bool = False) -> str:
    """Return a table of the newest runs, and how to see the others.

    Parameters
    ----------
    lines : mapping
        Runs by id.
    reproducible : bool
        Leave out what differs when the same runs are made again elsewhere: machine, process,
        speed. Times stay, in ``<time>`` elements.
    """
    if not lines:
        return frame("No runs yet: <code>ws.launch(...)</code> makes the first one.")
    shown = newest_first(lines)[:MAX_ROWS]
    heads = ["State", "Training", "Run", "Model and SAE", "Done", "L0", "FVU", "Launched"]
    if not reproducible:
        heads += ["Tokens/s", "Worker"]
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in heads)
    body = "\n".join(_row(one, reproducible=reproducible) for one in shown)
    n = f"<strong>{len(lines):,} run{'' if len(lines) == 1 else 's'}</strong>"
    return frame(
        f"<div>{n} · {_by_state(lines.values())}</div>\n"
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin-top:8px;'
        f'font-variant-numeric:tabular-nums"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{_rest(len(lines) - len(shown))}",
        width="1180px",
    )


_CELL = (
    "text-align:left;padding:3px 14px 3px 0;vertical-align:top;"
    "border-bottom:1px solid rgba(128,128,128,.25)"
)


def _rest(n: int) -> str:
    if n <= 0:
        return ""
    return (
        f'\n<div style="margin-top:8px">{n:,} older run{"" if n == 1 else "s"} not shown: '
        "<code>ws.runs()</code> returns all of them as a table.</div>"
    )


def _row(line: RunLine, *, reproducible: bool) -> str:
    sae = "" if line.d_sae is None else f" · {line.d_sae:,} features"
    cells = [
        pill(RunState(line.state)),
        f"<strong>{isolated(line.training_id)}</strong>{_notes(line)}",
        f"<code>{isolated(line.run_id)}</code> g{line.generation}",
        f"{isolated(line.model)} · {isolated(line.hook_name)}{sae}",
        _done(line),
        words.number(line.l0),
        words.number(line.fvu),
        moment(datetime.fromtimestamp(line.created_at, UTC)),
    ]
    if not reproducible:
        cells += [words.number(line.tokens_per_s), isolated(line.worker or "—")]
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _done(line: RunLine) -> str:
    if line.state == RunState.COMPLETED:
        return f"{line.n_tokens:,} tokens"
    share = line.n_tokens_done / line.n_tokens if line.n_tokens else 0.0
    return f"{words.percent_done(share)} % of {line.n_tokens:,} tokens"


def _notes(line: RunLine) -> str:
    notes = [f"⚠ {isolated(one)}" for one in line.findings]
    if line.error and line.state == RunState.FAILED:
        notes.append(isolated(line.error))
    return "".join(f"<br><small>{note}</small>" for note in notes)
