"""A relation whose failures say which file is damaged, also when they come late."""

from collections.abc import Callable
from typing import Any

import duckdb

from extraction_kit.catalog.memory import FAILURES

Explain = Callable[[Exception], Exception]
"""Takes DuckDB's error and returns the one to raise instead."""


class Answer:
    """A DuckDB relation: everything that one has, with errors that a person can act on.

    A relation computes when it is fetched, so that is where a damaged file shows, and
    DuckDB often does not say which one it is.
    """

    __slots__ = ("_explain", "_relation")

    def __init__(self, relation: duckdb.DuckDBPyRelation, explain: Explain) -> None:
        self._relation = relation
        self._explain = explain

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the relation's
        """Return a method or value of the relation; one of its columns by name."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._wrapped(self._tried(getattr, self._relation, name))

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the relation's
        """Return one column."""
        return self._wrapped(self._tried(self._relation.__getitem__, name))

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a column of that name."""
        return name in self._relation

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._tried(len, self._relation))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return the rows to pyarrow, polars, pandas and others."""
        return self._tried(self._relation.__arrow_c_stream__, requested_schema)

    def __repr__(self) -> str:
        """Return the first rows as a table."""
        return str(self._tried(repr, self._relation))

    __str__ = __repr__

    def __dir__(self) -> list[str]:
        """Return what a relation has, for completion."""
        return dir(self._relation)

    def _wrapped(self, value: Any) -> Any:  # noqa: ANN401 - the relation's
        if isinstance(value, duckdb.DuckDBPyRelation):
            return Answer(value, self._explain)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
            args = tuple(map(_plain, args))
            options = {name: _plain(option) for name, option in options.items()}
            return self._wrapped(self._tried(value, *args, **options))

        call.__name__ = getattr(value, "__name__", "call")
        call.__doc__ = getattr(value, "__doc__", None)
        return call

    def _tried(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - passed on
        try:
            return call(*args, **options)
        except FAILURES as error:
            raise self._explain(error) from error


def _plain(value: Any) -> Any:  # noqa: ANN401 - anything
    return value._relation if isinstance(value, Answer) else value  # noqa: SLF001 - its own
