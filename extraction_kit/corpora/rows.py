"""One row of a source, checked: a text, or the token ids of a document."""

from collections.abc import Sequence

import numpy as np

from extraction_kit.errors import BadCorpus

Document = str | np.ndarray
"""A text, or token ids as a 1-d int64 array."""

TEXT_COLUMN = "text"


def as_document(value: object, row: int, *, column: str | None = None) -> Document:
    """Return `value` as a document.

    Raises
    ------
    BadCorpus
        It is neither a text nor a list of integers; `row` is named.
    """
    where = f"row {row}" + (f" of column {column!r}" if column else "")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as cause:
            raise BadCorpus(
                f"{where} has half a character (surrogate) at {cause.start}: clean it with "
                "text.encode(errors='replace').decode()"
            ) from None
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            return as_ids(np.asarray(value), row)
        except ValueError as cause:  # numpy's, for lists of lists of different lengths
            if isinstance(cause, BadCorpus):
                raise
            raise BadCorpus(f"{where} is no flat list of token ids ({cause})") from None
    raise BadCorpus(
        f"{where} is {value!r:.60}, a {type(value).__name__}: a text is wanted, or a list "
        "of token ids. Drop such rows first"
    )


def as_ids(row: np.ndarray, number: int) -> np.ndarray:
    """Return `row` as int64; refuse what is not a 1-d array of integers."""
    if row.ndim != 1 or (len(row) and row.dtype.kind not in "iu"):
        raise BadCorpus(
            f"row {number} has type {row.dtype} and shape {row.shape}: a list of token ids "
            "(integers) is wanted"
        )
    return np.ascontiguousarray(row, dtype=np.int64)


def choose_column(
    asked: str | None, names: Sequence[str], texts: Sequence[str], *, where: str
) -> str:
    """Return the column to read: the one asked for, ``text``, or the only one of texts.

    Raises
    ------
    BadCorpus
        It is not there or not clear; the columns that are there are listed.
    """
    if asked is not None:
        if asked not in names:
            raise BadCorpus(
                f"text_column={asked!r}: {where} has the columns {', '.join(names)}"
            )
        return asked
    if TEXT_COLUMN in names:
        return TEXT_COLUMN
    if len(texts) == 1:
        return texts[0]
    raise BadCorpus(
        f"{where} has no column {TEXT_COLUMN!r}, but {', '.join(names)}: say which one "
        f"holds the texts, for example text_column={next(iter(names), 'content')!r}"
    )
