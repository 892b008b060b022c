"""Which features a list shows, and in which order: a closed set of choices, as SQL."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from extraction_kit.catalog.macros import COMPARED
from extraction_kit.catalog.relations import literal
from extraction_kit.catalog.tables import FEATURES
from extraction_kit.errors import BadQuery

LABEL = "label"
"""Column of ``features`` in a workspace that keeps labels."""
_NO_MEASURES = ("feature", "max_context", "max_pos", "last_context", "dead")
MEASURES = tuple(
    column.name
    for column in FEATURES.columns
    if column.name not in _NO_MEASURES and column.type != "VARCHAR"
)
"""What a list may show beside a feature and sort by."""
BESIDE = tuple(name for name in COMPARED if name != "dead")
"""Of the other run of a comparison, under these names with ``_b`` behind them."""
CHANGE = "log2_ratio"
COMPARING: Mapping[str, str] = {
    CHANGE: "log2 of density_b / density; NULL if dead in one of the runs",
    "abs_log2_ratio": "size of the change of density: abs(log2_ratio)",
    "max_log2_ratio": "log2 of max_act_b / max_act; NULL if dead in one of the runs",
    "cosine": "of the decoder rows of both features",
    **{f"{name}_b": f"{name} in the other run" for name in BESIDE},
}
"""What a list of a comparison may show and sort by too: name to meaning."""
LIVES = ("all", "alive", "dead")
LIVES_COMPARING = ("only_a", "only_b")
"""Alive in one run of a comparison only; the others then mean both of them."""
MAX_TEXT = 200
Range = tuple[float | None, float | None]
Said = tuple[str | None, str | None]
"""Name and description of a feature."""
NOTHING_SAID: Said = (None, None)
Labels = Mapping[int, Said]
"""Of the features of which something is said."""


@dataclass(frozen=True)
class Named:
    """How a table of one result is written in SQL."""

    source: str
    """What stands after FROM."""
    condition: str = ""
    """What must hold of its rows; "" if all of them belong to the result."""

    def select(self, columns: str, *conditions: str, indent: str = "") -> str:
        """Return the SELECT of `columns` with all conditions."""
        wanted = [one for one in (self.condition, *conditions) if one]
        lines = [f"SELECT {columns}", f"FROM {self.source}"]
        lines += [
            f"{'  AND' if number else 'WHERE'} {condition}"
            for number, condition in enumerate(wanted)
        ]
        return f"\n{indent}".join(lines)


Names = Mapping[str, Named]
"""``features``, ``examples`` and ``vocab`` of one result; of a comparison, ``features`` with
those of the other result beside them, and its ``examples_b`` and ``vocab_b``."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A list of features: what is left out, and the order.

    Raises
    ------
    BadQuery
        A value is outside what is allowed; the message names both.
    """

    sort: str = "feature"
    """``feature``, ``label``, or one of `MEASURES` or `COMPARING`; absent values come last."""
    descending: bool = False
    measure: str = "max_act"
    """The measure shown beside the density."""
    density: Range = (None, None)
    """Least and largest share of tokens, both included."""
    max_act: Range = (None, None)
    life: str = "all"
    token: str = ""
    """Part of the token at the peak of an example of the feature; case does not count."""
    label: str = ""
    """Part of its label; case does not count."""
    among: tuple[int, ...] | None = None
    """These features only; None is no limit."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check("sort", self.sort, ("feature", LABEL, *MEASURES, *COMPARING))
        _check("measure", self.measure, (*MEASURES, *COMPARING))
        _check("life", self.life, (*LIVES, *LIVES_COMPARING))
        if not isinstance(self.descending, bool):
            raise BadQuery(f"descending={self.descending!r}: True or False is allowed")
        for name in ("density", "max_act"):
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        for name in ("token", LABEL):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > MAX_TEXT:
                msg = (
                    f"{name}={value!r}: a text of at most {MAX_TEXT} characters is allowed"
                )
                raise BadQuery(msg)
        if self.among is not None:
            object.__setattr__(self, "among", _integers(self.among))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Return the list that plain values describe; missing ones have their defaults.

        Raises
        ------
        BadQuery
            It is no mapping, has another key, or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or not values.keys() <= known:
            raise BadQuery(f"a list is described by {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self)
        for name in ("density", "max_act"):
            plain[name] = list(plain[name])
        plain["among"] = None if self.among is None else list(self.among)
        return plain

    def sql(self, names: Names, *, labelled: bool, comparing: Collection[str] = ()) -> str:
        """Return the SELECT that gives the list, of the tables `names`.

        Parameters
        ----------
        names : mapping of str to Named
            The tables of the result.
        labelled : bool
            Whether ``features`` has a column ``label``.
        comparing : collection of str
            Which of `COMPARING` it has; nothing if this is no comparison.

        Raises
        ------
        BadQuery
            Labels or what only a comparison has are asked for, and are not there.
        """
        if not labelled and (self.label or self.sort == LABEL):
            raise BadQuery("the features of this result have no labels")
        self._check_comparing(comparing)
        both = ["feature_b", "density_b", CHANGE] if comparing else []
        labels = [LABEL] if labelled else []
        columns = ["feature", "density", *both, *labels, self.measure]
        order = "DESC" if self.descending else "ASC"
        by = f"{self.sort} {order} NULLS LAST"
        ties = "" if self.sort == "feature" else ", feature"
        shown = ", ".join(dict.fromkeys(columns))
        query = names["features"].select(
            shown, *self._conditions(names, both=bool(comparing))
        )
        return f"{query}\nORDER BY {by}{ties}"

    def _check_comparing(self, has: Collection[str]) -> None:
        """Refuse what only a comparison shows, or this one does not."""
        for name in (self.sort, self.measure):
            if name in COMPARING and name not in has:
                known = f"there are {', '.join(has)}" if has else "nothing is compared here"
                raise BadQuery(f"{name!r} is not there: {known}")
        if self.life in LIVES_COMPARING and not has:
            raise BadQuery(f"life={self.life!r}: nothing is compared here")

    def _conditions(self, names: Names, *, both: bool) -> list[str]:
        found = [
            f"{name} {sign} {bound!r}"
            for name in ("density", "max_act")
            for sign, bound in zip((">=", "<="), getattr(self, name), strict=True)
            if bound is not None
        ]
        found += _of_life(self.life, both=both)
        if self.among is not None:
            inside = ", ".join(map(str, self.among)) or "NULL"
            found.append(f"feature IN ({inside})")
        if self.label:
            found.append(f"contains(lower({LABEL}), lower({literal(self.label)}))")
        if self.token:
            peaks = [_peaks_on(self.token, names, of) for of in ("", "_b")[: 1 + both]]
            found.append(peaks[0] if len(peaks) == 1 else f"({' OR '.join(peaks)})")
        return found


def _of_life(life: str, *, both: bool) -> list[str]:
    here, there = {
        "all": ("", ""),
        "alive": ("NOT dead", "NOT dead_b"),
        "dead": ("dead", "dead_b"),
        "only_a": ("NOT dead", "dead_b"),
        "only_b": ("dead", "NOT dead_b"),
    }[life]
    return [one for one in (here, there if both else "") if one]


def _peaks_on(text: str, names: Names, of: str) -> str:
    part = f"contains(lower(text), lower({literal(text)}))"
    tokens = names[f"vocab{of}"].select("token_id", part, indent="    ")
    features = names[f"examples{of}"].select(
        "feature",
        "\"group\" <> 'silent'",
        f"peak_token IN (\n    {tokens})",
        indent="  ",
    )
    return f"feature{of} IN (\n  {features})"


def _check(name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        msg = f"{name}={value!r}: one of {', '.join(map(repr, allowed))} is allowed"
        raise BadQuery(msg)


def _range(name: str, value: object) -> Range:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2  # noqa: PLR2004 - least and largest
        and all(each is None or _finite(each) for each in value)
    ):
        low, high = (None if each is None else float(each) for each in value)
        return low, high
    msg = f"{name}={value!r}: (least, largest) is allowed, each a number or None"
    raise BadQuery(msg)


def _finite(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def _integers(value: object) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)) and all(type(each) is int for each in value):
        return tuple(value)
    raise BadQuery(f"among={value!r}: integers are allowed")
