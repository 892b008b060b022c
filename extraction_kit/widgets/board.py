"""The kernel side of one dashboard on a page: what it was sent, and what it may ask.

Messages (version 1)
--------------------
kernel to page, all but ``ack`` by the hub's thread
    ``{kind: "full", seq, now, beat_s, home, fields, rows, health, note}``: everything; the
    trait ``state`` too, with which a page begins. ``rows`` are lists in the order of ``fields``.
    ``{kind: "delta", seq, now, rows, gone, health, note}``: of each changed run the fields
    that changed; ``health`` is null if nothing of it changed.
    ``{kind: "card", view, state}``: the message of a run card, for the run that is open.
    ``{kind: "ack", id, ok, reason}`` answers every message of the page, that of a launch with
    the ``run_id`` and when it is done. ``{kind: "answer", id, ok, content}``, or ``reason`` in
    the place of ``content``, follows the ``ack`` of a question; ``{kind: "progress", id,
    text}`` comes before, while something takes long.
page to kernel, nothing else
    ``{kind: "hello", id, seq}``: somebody looks, and has heard of ``seq``. Answered by a
    ``full`` if that is -1 (something is missing), or older than what was sent a while ago.
    ``{kind: "act", id, name, run_id}``: launch, cancel or resume.
    ``{kind: "act", id, name: "launch", wish}``: launch what the form asks for, see
    `extraction_kit.wishes.Wish`.
    ``{kind: "ask", id, name, ...}``: a question of ``desk.py``.
    ``{kind: "open", id, view, run_id}``: the run whose card this view of the page shows;
    null: none.
    ``{kind: "select", id, run_ids}``: what is selected.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from extraction_kit.errors import ExtractionKitError
from extraction_kit.lifecycle import ACTIVE
from extraction_kit.overview import RunLine
from extraction_kit.views import short
from extraction_kit.widgets.acts import act
from extraction_kit.widgets.desk import Desk
from extraction_kit.widgets.display import read_details
from extraction_kit.widgets.hub import Hub, Pace, Watch
from extraction_kit.widgets.payload import safe
from extraction_kit.widgets.source import ListSource

log = logging.getLogger(__name__)

FIELDS = tuple(field.name for field in fields(RunLine))
LATE_S = 3.0
"""A message may be on its way for so long."""
MAX_OPEN = 8
"""Views of one dashboard that may show a card at the same time."""

Message = dict[str, Any]
Answered = tuple[bool, str] | None  # None: the answer comes later


def row(line: RunLine) -> list[Any]:
    """Return a run for the page, in the order of `FIELDS`."""
    return [safe(getattr(line, name)) for name in FIELDS]


class RunBoard:
    """One dashboard on the screen.

    Parameters
    ----------
    source : ListSource
        Where runs are read and where clicks go.
    hub : Hub
        Whose thread calls :meth:`tick`.
    push : callable
        Sends a message to the page; may be set later, before the hub attends.
    select : callable
        Told what is selected, whenever that changes.
    """

    def __init__(
        self,
        source: ListSource,
        hub: Hub,
        *,
        push: Callable[[Message], None] = lambda _: None,
        select: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self.wanted = False
        self.heard_at = time.monotonic()
        self.push = push
        self._source, self._hub, self._select = source, hub, select
        self._desk = Desk(source, self._tell)
        self._seq = 0
        self._on_their_way: deque[tuple[float, int]] = deque()  # (when sent, seq)
        self._arrived = 0  # the page must have heard of this one by now
        self._revision = 0
        self._lines: dict[str, RunLine] = {}  # as the page has them
        self._health: Message | None = None
        self._note: str | None = None
        self._ticked_at = self._sent_at = float("-inf")
        self._open: dict[str, Watch] = {}  # by view

    # --- what the page is told ------------------------------------------------------------

    def full(self, pace: Pace) -> Message:
        """Read, and return everything; the page needs nothing older than this."""
        self._revision = self._source.overview.read()
        self._lines = dict(self._source.overview.lines)
        self._health = safe(self._source.overview.health.to_dict())
        self._note = None
        return self._numbered(
            kind="full",
            beat_s=pace.beat_s,
            home=safe(short(str(self._source.overview.home))),
            fields=list(FIELDS),
            rows=[row(line) for line in self._lines.values()],
            health=self._health,
        )

    def tick(self, pace: Pace) -> None:
        """Push what changed since; see :class:`extraction_kit.widgets.hub.Board`."""
        now = time.monotonic()
        looked_at = now - self.heard_at < pace.lease_s
        if not (looked_at or self.wanted) and now - self._ticked_at < pace.unviewed_s:
            return
        self._ticked_at = now
        try:
            message = self.full(pace) if self.wanted else self._delta(pace)
        except Exception as error:  # the ledger may be busy or gone for a while
            log.debug("cannot read the runs", exc_info=True)
            message = self._trouble(f"cannot read the runs: {error}")
        if message is not None:
            self.wanted = False
            self.push(message)

    def _delta(self, pace: Pace) -> Message | None:
        overview = self._source.overview
        revision = overview.read()
        changed = overview.changed_since(self._revision)
        self._revision = revision
        rows, gone = {}, []
        for run_id, line in changed.items():
            if line is None:
                if self._lines.pop(run_id, None) is not None:
                    gone.append(run_id)
            elif difference := self._difference(run_id, line):
                rows[run_id] = difference
        health = safe(overview.health.to_dict())
        said = None if _alike(health, self._health) else health
        self._health = health if said else self._health
        cured, self._note = self._note is not None, None
        beat_due = time.monotonic() - self._sent_at >= pace.beat_s and self._any_active()
        if not (rows or gone or said or cured or beat_due):
            return None
        return self._numbered(kind="delta", rows=rows, gone=gone, health=said)

    def _difference(self, run_id: str, new: RunLine) -> Message:
        old = self._lines.get(run_id)
        self._lines[run_id] = new
        now = {name: getattr(new, name) for name in FIELDS}
        if old is not None:  # most of a line never changes: only what did is made safe
            now = {name: one for name, one in now.items() if one != getattr(old, name)}
        told: Message = safe(now)
        return told

    def _trouble(self, note: str) -> Message | None:
        note = safe(note)
        if note == self._note:
            return None
        self._note = note
        return self._numbered(kind="delta", rows={}, gone=[], health=None)

    def _any_active(self) -> bool:
        return any(one.state in ACTIVE for one in self._lines.values())

    def _numbered(self, **content: Any) -> Message:  # noqa: ANN401 - JSON values
        self._seq += 1
        self._sent_at = time.monotonic()
        self._on_their_way.append((self._sent_at, self._seq))
        self._settle()
        return content | {"seq": self._seq, "now": time.time(), "note": self._note}

    def _settle(self) -> None:
        late = time.monotonic() - LATE_S
        while self._on_their_way and self._on_their_way[0][0] <= late:
            self._arrived = self._on_their_way.popleft()[1]

    def _tell(self, message: Message) -> None:
        self.push(message)

    # --- what the page asks ---------------------------------------------------------------

    def answer(self, message: object) -> Message | None:
        """Return the answer to a message of the page; None if it is none.

        Runs on the main thread or on a subshell's.
        """
        if not isinstance(message, Mapping):
            return None
        self.heard_at = time.monotonic()
        for watch in list(self._open.values()):
            watch.heard()
        known: Mapping[str, Callable[[Mapping[str, Any]], Answered]] = {
            "hello": self._hello,
            "act": self._act,
            "ask": self._desk.ask,
            "open": self._show,
            "select": self._chosen,
        }
        kind = message.get("kind")
        chosen = known.get(kind) if isinstance(kind, str) else None
        done: Answered = (
            False,
            f"unknown message {kind!r}; allowed are {', '.join(known)}",
        )
        if chosen is not None:
            done = chosen(message)
        self._hub.attend(self)  # if it was forgotten, it is not any more
        head = {"id": str(message.get("id"))[:80]}
        if done is None:
            return {"kind": "progress", "text": "", **head}
        return {"kind": "ack", **head, "ok": done[0], "reason": done[1]}

    def _hello(self, message: Mapping[str, Any]) -> Answered:
        self._settle()
        seq = message.get("seq")
        if type(seq) is not int or not self._arrived <= seq <= self._seq or seq < 0:
            self._hub.wake(self)
        return True, ""

    def _act(self, message: Mapping[str, Any]) -> Answered:
        if message.get("name") == "launch" and "wish" in message:
            self._desk.launch(message)
            return None
        run_id = message.get("run_id")
        if not isinstance(run_id, str):
            return False, f"run_id={run_id!r}: the id of a run is allowed"
        done = act(self._source, run_id, message.get("name"))
        for watch in list(self._open.values()):
            self._hub.wake(watch)
        return done

    def _show(self, message: Mapping[str, Any]) -> tuple[bool, str]:
        view, run_id = str(message.get("view"))[:80], message.get("run_id")
        self._desk.close_browser(view)
        before = self._open.pop(view, None)
        if before is not None:
            self._hub.drop(before)
        if run_id is None:
            return True, ""
        try:
            shown = self._source.view(str(run_id))
        except ExtractionKitError as error:
            return False, safe(str(error))
        while len(self._open) >= MAX_OPEN:  # views that went without a word
            self._hub.drop(self._open.pop(next(iter(self._open))))
        events, highlights = read_details(self._source, shown)
        watch = Watch(
            source=self._source,
            run_id=shown.run_id,
            view=shown,
            events=events,
            highlights=highlights,
            push=lambda state: self.push({"kind": "card", "view": view, "state": state}),
        )
        self._open[view] = watch
        self._hub.watch(watch)
        return True, ""

    def _chosen(self, message: Mapping[str, Any]) -> tuple[bool, str]:
        run_ids = message.get("run_ids")
        if not isinstance(run_ids, list):
            return False, f"run_ids={run_ids!r}: a list of ids is allowed"
        self._select([run_id for run_id in run_ids if run_id in self._lines])
        return True, ""


def _alike(health: Message, before: Message | None) -> bool:
    """Tell whether nothing worth a message changed: free space to the last byte is not."""
    if before is None:
        return False
    step = max(2**26, before["free_bytes"] // 100)
    near = abs(health["free_bytes"] - before["free_bytes"]) < step
    return near and {**health, "free_bytes": 0} == {**before, "free_bytes": 0}
