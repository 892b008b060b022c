"""One thread per kernel that reads the watched runs and writes the cards' state.

It is the only writer: two threads that set traits at once break ipywidgets. It never
prints (output of a thread lands under a random cell); what goes wrong is written into the
card and into the log.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from extraction_kit.lifecycle import ACTIVE, RunState
from extraction_kit.views import Happening, RunView
from extraction_kit.widgets import payload
from extraction_kit.widgets.source import RunSource

log = logging.getLogger(__name__)

N_HIGHLIGHTS = 4
"""Features shown with an example on a completed card."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds; tests shorten them."""

    viewed_s: float = 0.25
    """Between two reads while somebody looks."""
    resting_s: float = 1.0
    """The same when no watched run is active."""
    unviewed_s: float = 5.0
    """The same while nobody looks."""
    beat_s: float = 4.0
    """An unchanged active run is sent again after this; a card that hears nothing for three
    of them says so."""
    lease_s: float = 30.0
    """A page that was not heard for this long is taken as gone."""
    linger_s: float = 60.0
    """A card of a completed run that is looked at stays live for this long, so that its
    features can be opened; while they are open, and for this long afterwards, too."""
    forget_s: float = 600.0
    """A list of runs that nobody looked at for this long is not kept up to date any more;
    it is again as soon as somebody looks."""


Push = Callable[[dict[str, Any]], None]
Freeze = Callable[[RunView, Sequence[Happening], Sequence[dict[str, Any]]], None]


@dataclass(eq=False, kw_only=True)
class Watch:
    """One card on one run. Only the hub's thread changes the fields after ``freeze``."""

    source: RunSource
    run_id: str
    push: Push = lambda _: None
    freeze: Freeze | None = None  # replaces the live card; None keeps it
    refusal: str | None = None
    refused_in: RunState | None = None  # the refusal is of interest while this lasts
    heard_at: float = field(default_factory=time.monotonic)
    wanted: bool = True  # send at the next tick, changed or not
    seq: int = 0
    sent: dict[str, Any] | None = None
    sent_at: float = 0.0
    view: RunView | None = None  # as shown at first, then as last read
    born_final: bool = field(init=False)
    events: Sequence[Happening] = ()
    highlights: Sequence[dict[str, Any]] = ()
    known_change: tuple[int, int] | None = None  # (cursor, change) the events belong to
    freeze_at: float | None = None
    looked_at: bool = False  # a page was heard
    opening: bool = False  # of its features, by the card
    browser: str | None = None  # model of the feature browser that is open in the card

    def __post_init__(self) -> None:
        """Remember whether the run was completed when its card was shown."""
        self.born_final = self.final

    def heard(self) -> None:
        """Note that somebody looks."""
        self.heard_at = time.monotonic()
        self.looked_at = True

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self.view is not None and self.view.state is RunState.COMPLETED


class Board(Protocol):
    """What shows all runs: it reads and pushes by itself, whenever the hub lets it."""

    wanted: bool  # at the next tick, changed or not
    heard_at: float

    def tick(self, pace: Pace) -> None:
        """Read, and push what changed; on the hub's thread only."""
        ...


class Hub:
    """Reads all watched runs and pushes what changed.

    Parameters
    ----------
    pace : Pace, optional
        How often; the defaults suit a person who looks at a card.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self._changed = threading.Condition()
        self._watches: list[Watch] = []
        self._boards: list[Board] = []
        self._thread: threading.Thread | None = None
        self._cursors: dict[int, int] = {}

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        with self._changed:
            return self._thread is not None

    def watch(self, watch: Watch) -> None:
        """Push the state of a run from now on, until it is completed.

        Raises
        ------
        RuntimeError
            No thread can be started here (JupyterLite).
        """
        with self._changed:
            self._start()
            if watch not in self._watches:
                self._watches.append(watch)
            watch.wanted = True
            self._changed.notify_all()

    def attend(self, board: Board) -> None:
        """Let `board` tick from now on, until nobody looks at it for ``Pace.forget_s``.

        Raises
        ------
        RuntimeError
            As in :meth:`watch`.
        """
        with self._changed:
            self._start()
            if board not in self._boards:
                self._boards.append(board)
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(
                target=self._loop, name="extraction_kit hub", daemon=True
            )
            thread.start()
            self._thread = thread

    def wake(self, watch: Watch | Board) -> None:
        """Send the state of `watch` now; nothing for one that ended."""
        with self._changed:
            watch.wanted = True
            self._changed.notify_all()

    def drop(self, watch: Watch) -> None:
        """Stop watching."""
        with self._changed:
            if watch in self._watches:
                self._watches.remove(watch)
            self._changed.notify_all()

    # --- the thread ---------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            started = time.monotonic()
            with self._changed:
                watches, boards = list(self._watches), list(self._boards)
            self._tick(watches)
            for board in boards:
                self._tick_board(board)
            with self._changed:
                self._boards = [
                    board
                    for board in self._boards
                    if self._within(board, self.pace.forget_s)
                ]
                if not self._watches and not self._boards:
                    self._thread = None
                    self._cursors.clear()
                    return
                due = started + self._period()
                self._changed.wait_for(self._awaited, max(0.0, due - time.monotonic()))
            # never above the pace, however often somebody wakes the hub
            time.sleep(max(0.0, started + self.pace.viewed_s - time.monotonic()))

    def _awaited(self) -> bool:
        if not self._watches and not self._boards:
            return True
        return any(watch.wanted for watch in self._watches) or any(
            board.wanted for board in self._boards
        )

    def _period(self) -> float:
        if any(self._viewed(board) for board in self._boards):
            return self.pace.viewed_s  # another process may launch a run at any moment
        if not any(self._viewed(watch) for watch in self._watches):
            return self.pace.unviewed_s
        if any(watch.view and watch.view.state in ACTIVE for watch in self._watches):
            return self.pace.viewed_s
        return self.pace.resting_s

    def _viewed(self, one: Watch | Board) -> bool:
        return self._within(one, self.pace.lease_s)

    def _within(self, one: Watch | Board, seconds: float) -> bool:
        return time.monotonic() - one.heard_at < seconds

    def _tick_board(self, board: Board) -> None:
        try:
            board.tick(self.pace)
        except Exception:  # one closed page must not stop the others
            log.debug("cannot send to a list of runs", exc_info=True)

    def _tick(self, watches: Sequence[Watch]) -> None:
        for source in {id(watch.source): watch.source for watch in watches}.values():
            mine = [watch for watch in watches if watch.source is source]
            try:
                self._read(source, mine)
            except Exception as error:  # the ledger may be busy or gone for a while
                log.debug("cannot read the watched runs", exc_info=True)
                for watch in mine:
                    self._send(watch, note=f"cannot read the run's state: {error}")
            else:
                for watch in mine:
                    self._send(watch, note=None)

    def _read(self, source: RunSource, watches: Sequence[Watch]) -> None:
        """Read active runs always (their beats are not in the ledger), others if changed."""
        cursor = source.cursor()
        moved = self._cursors.get(id(source)) != cursor
        wanted = sorted(
            {
                watch.run_id
                for watch in watches
                if watch.view is None
                or (not watch.final and (moved or watch.wanted))
                or watch.view.state in ACTIVE
            }
        )
        views = {view.run_id: view for view in source.views(wanted)} if wanted else {}
        for watch in watches:
            if watch.run_id in views:
                self._take(watch, views[watch.run_id], cursor)
        self._cursors[id(source)] = cursor

    def _take(self, watch: Watch, view: RunView, cursor: int) -> None:
        if watch.refusal and view.state is watch.refused_in:
            view = replace(view, refusal=watch.refusal)
        if watch.known_change != (cursor, view.change):
            watch.events = watch.source.events(watch.run_id)
            if view.state is RunState.COMPLETED and not watch.highlights:
                watch.highlights = watch.source.highlights(watch.run_id, N_HIGHLIGHTS)
            watch.known_change = (cursor, view.change)
        watch.view = view

    def _send(self, watch: Watch, *, note: str | None) -> None:
        if watch.view is None:
            return
        content = payload.build(watch.view, watch.events, watch.highlights, note=note)
        content["browser"] = watch.browser
        if self._worth_sending(watch, content):
            watch.wanted = False
            watch.seq += 1
            watch.sent, watch.sent_at = payload.essence(content), time.monotonic()
            message = content | {
                "seq": watch.seq,
                "now": time.time(),
                "beat_s": self.pace.beat_s,
            }
            self._push(watch, message)
        if watch.final and note is None:
            self._finish(watch)

    def _worth_sending(self, watch: Watch, content: dict[str, Any]) -> bool:
        if watch.wanted or watch.sent is None:
            return True
        age = time.monotonic() - watch.sent_at
        if not self._viewed(watch) and age < self.pace.unviewed_s:
            return False
        if (
            watch.view is not None
            and watch.view.state in ACTIVE
            and age >= self.pace.beat_s
        ):
            return True
        return payload.essence(content) != watch.sent

    def _push(self, watch: Watch, message: dict[str, Any]) -> None:
        try:
            watch.push(message)
        except Exception:  # one closed card must not stop the others
            log.debug("cannot send to a card", exc_info=True)

    def _finish(self, watch: Watch) -> None:
        """Let the static card take over, at once or when it was looked at for a while."""
        if watch.freeze is None:
            self.drop(watch)
            return
        if watch.opening or watch.browser is not None:
            watch.freeze_at = None
            return
        if watch.freeze_at is None:
            # who looks at a completed run may want to open its features
            looked_at = watch.born_final or watch.looked_at
            linger = self.pace.linger_s if looked_at else 0.0
            watch.freeze_at = time.monotonic() + linger
        if time.monotonic() < watch.freeze_at:
            return
        self.drop(watch)
        try:
            watch.freeze(watch.view, watch.events, watch.highlights)  # type: ignore[arg-type]
        except Exception:  # the live card stays, which is right as well
            log.debug("cannot replace a card", exc_info=True)


_hub: tuple[int, Hub] | None = None
_hub_lock = threading.Lock()


def current() -> Hub:
    """Return this process's hub; a forked child gets its own (threads do not survive)."""
    global _hub  # noqa: PLW0603 - one per process is the point
    with _hub_lock:
        if _hub is None or _hub[0] != os.getpid():
            _hub = (os.getpid(), Hub())
        return _hub[1]
