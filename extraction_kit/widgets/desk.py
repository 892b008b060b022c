"""Answers the questions of a dashboard's page that may take long, and launches what it asks for.

Each has a thread of its own: neither the table nor a click waits for it. Of one name only one
is worked on at a time; a question in whose place its view asked another one is given up.
Nothing else can be asked:

``trainings`` {}
    ``trainings``: the registered ones, see `wishes.trainings`
``corpora`` {training_id}
    ``corpora`` of the runs of a training, see `wishes.corpora`
``foresee`` {wish}
    what a launch would come to: ``answer``, ``run_id``, ``job_id``, ``refusal``, ``kind`` (its
    class), ``warning``, ``n_tokens``, ``n_contexts``, ``estimate``, ``code``; without a wish
    the question before is given up, and this one refused
``compare`` {run_ids}
    the largest differences of two completed runs
``browse`` {run_id, other}
    ``model_id``: the feature browser of a completed run, as a widget; with the `other` one
    beside it, if there is one

and, as an act, the launch of a wish.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from extraction_kit.errors import BadInput, ExtractionKitError
from extraction_kit.lifecycle import Answer
from extraction_kit.service import Launched
from extraction_kit.widgets.acts import tried
from extraction_kit.widgets.opened import OpenBrowsers
from extraction_kit.widgets.payload import safe
from extraction_kit.widgets.source import ListSource
from extraction_kit.wishes import Prospect, Wish

N_DIFFERENCES = 8
_PROGRESS_EVERY_S = 0.3

Message = Mapping[str, Any]
Report = Callable[[int, int | None, str], None]
Work = Callable[[Message, Report], dict[str, Any]]


class _GivenUp(ExtractionKitError):
    """Another question was asked in the place of this one."""


class Desk:
    """Works for one page.

    Parameters
    ----------
    source : ListSource
        Where runs are read and launched.
    tell : callable
        Sends a message to the page; called from the threads.
    """

    def __init__(self, source: ListSource, tell: Callable[[dict[str, Any]], None]) -> None:
        self._source, self._tell = source, tell
        self._known: Mapping[str, Work] = {
            "trainings": self._trainings,
            "corpora": self._corpora,
            "foresee": self._foresee,
            "compare": self._compare,
            "browse": self._browse,
        }
        self._at_work = {name: threading.Lock() for name in (*self._known, "launch")}
        self._newest: dict[tuple[str, str], str] = {}  # question by name and view
        self._lock = threading.Lock()
        self._browsers = OpenBrowsers(source)  # by view of the page

    def ask(self, message: Message) -> tuple[bool, str]:
        """Begin with a question; the answer is told later. False: it is none of ours."""
        name = message.get("name")
        if not isinstance(name, str) or name not in self._known:
            return False, f"unknown question {name!r}; allowed are {', '.join(self._known)}"
        question, place = str(message.get("id"))[:80], (name, str(message.get("view"))[:80])
        with self._lock:
            self._newest[place] = question

        def check_wanted() -> None:
            if self._newest.get(place) != question:
                raise _GivenUp("another question was asked in the place of this one")

        def report(n_done: int, n_total: int | None, what: str) -> None:
            check_wanted()
            self._report(question, _tokens(n_done, n_total, what))

        def answered() -> dict[str, Any]:
            check_wanted()
            return self._known[name](message, _seldom(report))

        def work() -> None:
            content, reason = tried(name, answered)
            found = {"content": safe(content)} if reason is None else {"reason": reason}
            self._tell({"kind": "answer", "id": question, "ok": reason is None, **found})
            with self._lock:
                if self._newest.get(place) == question:
                    del self._newest[place]

        self._begin(name, work)
        return True, ""

    def launch(self, message: Message) -> None:
        """Begin with a launch; its ``ack`` is told when it is done."""
        act = str(message.get("id"))[:80]

        def report(n_done: int, n_total: int | None, what: str) -> None:
            self._report(act, _tokens(n_done, n_total, what))

        def do() -> Launched:
            wish = Wish.from_dict(message.get("wish"))
            return self._source.launch(wish, _seldom(report))

        def work() -> None:
            launched, reason = tried("launch", do)
            run_id = None
            if launched is not None:
                run_id = launched.run_id
                reason = None if launched.refusal is None else safe(str(launched.refusal))
            ok = reason is None
            if launched is not None and launched.answer is Answer.ATTACH:
                reason = f"Run {run_id} does this already: nothing new was launched."
            told = {"ok": ok, "reason": reason or "", "run_id": run_id}
            self._tell({"kind": "ack", "id": act, **told})

        self._begin("launch", work)

    def close_browser(self, view: str) -> None:
        """Let go of the feature browser that a view of the page showed."""
        self._browsers.close(view)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        def one_at_a_time() -> None:
            with self._at_work[name]:
                work()

        threading.Thread(
            target=one_at_a_time, name=f"extraction_kit {name}", daemon=True
        ).start()

    def _report(self, asked: str, text: str) -> None:
        self._tell({"kind": "progress", "id": asked, "text": safe(text)})

    # --- the questions ----------------------------------------------------------------------

    def _trainings(self, _: Message, __: Report) -> dict[str, Any]:
        return {"trainings": self._source.trainings()}

    def _corpora(self, message: Message, _: Report) -> dict[str, Any]:
        return {"corpora": self._source.corpora(_text(message, "training_id"))}

    def _foresee(self, message: Message, report: Report) -> dict[str, Any]:
        wish = Wish.from_dict(message.get("wish"))
        return _foreseen(self._source.foresee(wish, report))

    def _compare(self, message: Message, _: Report) -> dict[str, Any]:
        run_ids = message.get("run_ids")
        if not isinstance(run_ids, list) or len(run_ids) != 2:  # noqa: PLR2004 - a pair
            raise BadInput(
                f"run_ids={run_ids!r}: the ids of two completed runs are allowed"
            )
        a, b = map(str, run_ids)
        return asdict(self._source.differences(a, b, N_DIFFERENCES)) | {"run_ids": [a, b]}

    def _browse(self, message: Message, _: Report) -> dict[str, Any]:
        other = None if message.get("other") is None else _text(message, "other")
        place, run_id = _text(message, "view")[:80], _text(message, "run_id")
        return {"model_id": self._browsers.open(place, run_id, other)}


def _foreseen(prospect: Prospect) -> dict[str, Any]:
    foreseen, corpus, takes = prospect.foreseen, prospect.content.corpus, prospect.estimate
    refusal = foreseen.refusal
    return {
        "answer": foreseen.answer.name.lower(),
        "run_id": foreseen.run_id,
        "job_id": foreseen.job_id,
        "refusal": None if refusal is None else str(refusal),
        "kind": None if refusal is None else type(refusal).__name__,
        "warning": foreseen.warning,
        "n_tokens": corpus.n_tokens,
        "n_contexts": corpus.n_contexts,
        "estimate": None if takes is None else asdict(takes),
        "code": prospect.code,
    }


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not value:
        raise BadInput(f"{name}={value!r}: a text is allowed")
    return value


def _tokens(n_done: int, n_total: int | None, what: str) -> str:
    return f"{what}: {n_done:,}{'' if n_total is None else f' of {n_total:,}'} tokens"


def _seldom(report: Report) -> Report:
    """Return `report` for what calls it often: it is called a few times per second."""
    due = time.monotonic() + _PROGRESS_EVERY_S

    def now_and_then(n_done: int, n_total: int | None, what: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _PROGRESS_EVERY_S
            report(n_done, n_total, what)

    return now_and_then
