"""The feature browser as Python holds it: what is shown can be read, and set.

The page asks a closed set of questions, never SQL; each is answered here (version 1):

``open`` {rows}
    everything that is shown: ``list``, ``feature``, ``marks``
``list`` {listing, rows}
    another `Listing`: ``revision``, ``n``, ``listing``, first ``rows``, ``at``: the row of
    the feature shown, -1 if it is not in the list
``rows`` {revision, start, count}
    a window of the list
``feature`` {feature} or {revision, row}, {group}
    the page of a feature, see `FeaturePages.page`, and ``at``; of a comparison also
    ``other``: the page of the feature of the other run, see `Against.page`
``examples`` {feature, group, whole}
    examples of one group; of a comparison also ``others``, those of the other run
``mark`` {feature, on}
    puts a feature into ``browser.selection`` or takes it out: ``marks``, and ``list`` where it
    shows marked features only
``said`` {feature}
    what is said of it, as it was written: ``name``, ``description``
``label`` {feature, group, texts}
    keeps ``texts``, ``name`` or ``description`` or both: ``list`` and ``feature``

A question is ``{kind: "ask", id, view, name, ...}``; ``view`` is the page that asks. An answer
is ``{kind: "answer", id, ok, content}``, or ``reason`` in the place of ``content``. What Python
sets, and what one page asked for, is sent as ``{kind: "told", but, content}`` with the keys of
``open``; ``but`` is the page that knows already. A page that goes says ``{kind: "bye", view}``.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, SupportsIndex

from extraction_kit.catalog.listing import CHANGE, MEASURES, NOTHING_SAID, Listing
from extraction_kit.catalog.tables import FEATURES
from extraction_kit.errors import BadLabel, BadQuery, ExtractionKitError
from extraction_kit.results import BINS_PER_OCTAVE, GROUPS, LOG2_LOW, N_BINS
from extraction_kit.widgets import static_only
from extraction_kit.widgets.against import Against
from extraction_kit.widgets.browsed import Browsed
from extraction_kit.widgets.feature_list import (
    MAX_ROWS,
    FeatureList,
    peak_tokens,
)
from extraction_kit.widgets.feature_page import FeaturePages

_TEXTS = ("name", "description")

log = logging.getLogger(__name__)

Tell = Callable[[dict[str, Any]], None]
# Questions that change what is shown.
_CHANGES = frozenset({"list", "feature", "mark", "label"})


class FeatureBrowser:
    """A list of features and one feature of it. Made by ``run.browse()``.

    Every attribute may be read and set from a cell while the browser is on the screen.

    Parameters
    ----------
    browsed : Browsed
        The result.
    feature : int, optional
        Shown at first; None takes the first of the list.
    against : Against, optional
        Another result, shown side by side with it.

    Raises
    ------
    UnknownFeature
        `feature` is outside the SAE.
    ResultsDamaged
        A file of the result is missing or cannot be read.
    """

    def __init__(
        self,
        browsed: Browsed,
        feature: SupportsIndex | None = None,
        against: Against | None = None,
    ) -> None:
        self._browsed = browsed
        self._against = against
        self._pages = FeaturePages(browsed)
        self._lock = threading.RLock()  # answers come from a subshell's thread
        self._feature = 0 if feature is None else self._pages.number(feature)
        self._marks: list[int] = []
        self._revision = 0
        self._count = 0  # rows that a page wants of a new list
        self._peaks = peak_tokens(browsed, self._pages.d_sae)
        self._listed_of = browsed
        self._comparing: Mapping[str, str] = {}
        first = Listing()
        if against is not None:
            self._peaks = replace(self._peaks, instead=against.peaks)
            self._listed_of, self._comparing = against.beside(browsed), against.measures
            first = Listing(measure=CHANGE)
        self._list = self._made(first)
        self._tellers: list[Tell] = []

    # --- what Python reads and sets -------------------------------------------------------

    @property
    def feature(self) -> int:
        """The feature shown. Set it to go to another one."""
        return self._feature

    @feature.setter
    def feature(self, feature: SupportsIndex) -> None:
        with self._lock:
            self._feature = self._pages.number(feature)
            self._tell({"feature": self._shown("top")})

    @property
    def selection(self) -> list[int]:
        """The features that were marked (key m), in the order of marking. It can be set."""
        return list(self._marks)

    @selection.setter
    def selection(self, features: Iterable[SupportsIndex]) -> None:
        with self._lock:
            self._tell(self._marked(dict.fromkeys(map(self._pages.number, features))))

    @property
    def sql(self) -> str:
        """The SELECT that gives the list shown; ``ws.sql(browser.sql)`` returns it."""
        return self._list.sql

    # --- what is shown --------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return what never changes, for the page and for static HTML."""
        columns = {column.name: column.comment for column in FEATURES.columns}
        against = self._against
        return {
            "title": self._browsed.title,
            "compare": None if against is None else against.facts(self._browsed),
            "about": list(self._browsed.about),
            "call": self._browsed.call,
            "d_sae": self._pages.d_sae,
            "n_tokens": self._browsed.corpus.n_tokens,
            "labelled": self._browsed.labelled,
            "measures": {
                **self._comparing,
                **{name: columns[name] for name in MEASURES},
            },
            "groups": list(GROUPS),
            "bins": {"per_octave": BINS_PER_OCTAVE, "log2_low": LOG2_LOW, "n": N_BINS},
        }

    def first_rows(self, count: int) -> dict[str, Any]:
        """Return the first rows of the list, see `FeatureList.rows`; ``n``; measured ``by``."""
        shown = {"n": len(self._list), "by": self._list.listing.measure}
        return self._list.rows(0, count) | shown

    def page(self) -> dict[str, Any]:
        """Return the page of the feature shown, as the question ``feature`` does."""
        return self._page_of(self._feature, "top")

    def __repr__(self) -> str:
        """Return one line: whose features, and which one is shown."""
        title = self._browsed.title
        if self._against is not None:
            title = " and ".join(self._against.titles(self._browsed))
        return f"<FeatureBrowser {title}: feature {self._feature} of {self._pages.d_sae:,}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - IPython's
        from extraction_kit.widgets import browser_static  # noqa: PLC0415 - only when shown

        bundle: dict[str, Any] = {
            "text/plain": repr(self),
            "text/html": browser_static.html(
                self.facts(), self.first_rows(10), self.page()
            ),
        }
        if static_only():
            return bundle
        from extraction_kit.widgets import browser_view  # noqa: PLC0415 - pulls in ipywidgets

        return bundle | browser_view.live(self)

    # --- the page's questions -------------------------------------------------------------

    def connect(self, tell: Tell) -> None:
        """Call `tell` from now on with all that Python or a page changes."""
        self._tellers = [*self._tellers, tell]

    def disconnect(self, tell: Tell) -> None:
        """Do not call `tell` any more."""
        self._tellers = [one for one in self._tellers if one != tell]

    def answer(self, message: object) -> dict[str, Any] | None:
        """Return the answer to a message of the page; None if it is no question."""
        if not isinstance(message, Mapping) or message.get("kind") != "ask":
            return None
        name = message.get("name")
        head = {"kind": "answer", "id": str(message.get("id"))[:80]}
        try:
            with self._lock:
                found = self._question(name)(message)
                if name in _CHANGES:
                    told = {str(name): found} if name in {"list", "feature"} else found
                    self._tell(told, but=message.get("view"))
            return head | {"ok": True, "content": found}
        except ExtractionKitError as error:
            return head | {"ok": False, "reason": str(error)}
        except KeyboardInterrupt:  # without an answer the page waits for ever
            reason = "The kernel was interrupted before it answered: ask again."
            return head | {"ok": False, "reason": reason}
        except Exception as error:  # whatever it is, the person who looks must see it
            log.exception("the feature browser cannot answer %r", name)
            return head | {"ok": False, "reason": f"{type(error).__name__}: {error}"}

    def _question(self, name: object) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        known = {
            "open": self._open,
            "list": self._relist,
            "rows": self._rows,
            "feature": self._go,
            "examples": self._examples,
            "mark": self._mark,
            "said": self._said,
            "label": self._label,
        }
        if not isinstance(name, str) or name not in known:
            raise BadQuery(f"question {name!r}: one of {', '.join(known)} is allowed")
        return known[name]

    def _open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "list": self._listed(_integer(message, "rows")),
            "feature": self._shown("top"),
            "marks": self.selection,
        }

    def _relist(self, message: Mapping[str, Any]) -> dict[str, Any]:
        listing = Listing.from_dict(message.get("listing"))
        return self._listed_as(listing, _integer(message, "rows"))

    def _listed_as(self, listing: Listing, count: int) -> dict[str, Any]:
        self._list = self._made(listing)
        self._revision += 1
        return self._listed(count)

    def _made(self, listing: Listing) -> FeatureList:
        return FeatureList(self._listed_of, listing, self._peaks, comparing=self._comparing)

    def _listed(self, count: int) -> dict[str, Any]:
        self._count = count
        at = self._list.place(self._feature)
        start = max(0, at - count // 2)
        return {
            "revision": self._revision,
            "n": len(self._list),
            "listing": self._list.listing.to_dict(),
            "rows": self._list.rows(start, count),
            "at": at,
        }

    def _rows(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._check_revision(message)
        start, count = _integer(message, "start"), _integer(message, "count")
        return {"revision": self._revision, **self._list.rows(start, count)}

    def _go(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if "row" in message:
            self._check_revision(message)
            wanted = self._list.feature(_integer(message, "row"))
        else:
            wanted = self._pages.number(message.get("feature"))
        page = self._page_of(wanted, message.get("group", "top"))
        self._feature = wanted
        return page | {"at": self._list.place(wanted)}

    def _shown(self, group: str) -> dict[str, Any]:
        place = {"at": self._list.place(self._feature)}
        return self._page_of(self._feature, group) | place

    def _page_of(self, feature: int, group: str) -> dict[str, Any]:
        page = self._pages.page(feature, group)
        if self._against is None:
            return page
        return page | {"other": self._against.page(feature, group)}

    def _examples(self, message: Mapping[str, Any]) -> dict[str, Any]:
        feature = self._pages.number(message.get("feature"))
        group, whole = message.get("group", "top"), message.get("whole") is True
        found = {"examples": self._pages.examples(feature, group, whole=whole)}
        if self._against is not None:
            found["others"] = self._against.examples(feature, group, whole=whole)
        return {"feature": feature, "group": group, "whole": whole, **found}

    def _mark(self, message: Mapping[str, Any]) -> dict[str, Any]:
        feature = self._pages.number(message.get("feature"))
        others = [mark for mark in self._marks if mark != feature]
        return self._marked([*others, feature] if message.get("on") is True else others)

    def _marked(self, features: Iterable[int]) -> dict[str, Any]:
        """Set the marks; a list of marked features follows them."""
        marks = tuple(features)
        found: dict[str, Any] = {"marks": list(marks)}
        if self._list.listing.among is not None:
            marked = replace(self._list.listing, among=marks)
            found["list"] = self._listed_as(marked, self._count)
        self._marks = list(marks)
        return found

    def _said(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._keeper()
        feature = self._pages.number(message.get("feature"))
        said = self._browsed.labels([feature]).get(feature, NOTHING_SAID)
        return dict(zip(_TEXTS, said, strict=True))

    def _label(self, message: Mapping[str, Any]) -> dict[str, Any]:
        feature = self._pages.number(message.get("feature"))
        texts = message.get("texts")
        if not isinstance(texts, Mapping) or not texts.keys() <= set(_TEXTS):
            raise BadQuery(f"texts={texts!r}: {' and '.join(_TEXTS)} are allowed")
        shown = message.get("group", "top")
        self._pages.check_group(shown)
        self._keeper()(feature, **texts)
        changed = self._listed_as(self._list.listing, self._count)
        return {"list": changed, "feature": self._shown(shown)}

    def _keeper(self) -> Callable[..., object]:
        if self._browsed.label is None:
            raise BadLabel(
                "labels are kept by a workspace, and this result was opened without one: "
                "`ws.register_training(...)` the SAE and launch it there; its labels are then "
                "in every run of it"
            )
        return self._browsed.label

    def _check_revision(self, message: Mapping[str, Any]) -> None:
        if message.get("revision") != self._revision:
            raise BadQuery("the list has changed since: ask for it again")

    def _tell(self, content: dict[str, Any], but: object = None) -> None:
        """Tell all pages in the order of the changes, so with the lock held."""
        for tell in self._tellers:
            tell({"kind": "told", "but": but, "content": content})


def _integer(message: Mapping[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int or value < 0:
        raise BadQuery(f"{name}={value!r}: an integer from 0 is allowed")
    return min(value, MAX_ROWS) if name in {"rows", "count"} else value
