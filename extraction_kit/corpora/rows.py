"""One row of a source, checked: a text, a conversation, or the token ids of a document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extraction_kit.errors import BadCorpus


@dataclass(frozen=True)
class Conversation:
    """Messages, for the chat template of a tokenizer."""

    messages: tuple[Mapping[str, Any], ...]
    """Each with a ``role`` and, as a rule, ``content``."""

    def __len__(self) -> int:
        """Return about how many characters it has."""
        return sum(len(str(message.get("content", ""))) for message in self.messages)


@dataclass(frozen=True)
class PaddedIds:
    """Token ids with the attention mask that came with them."""

    ids: np.ndarray
    present: np.ndarray
    """False on padding."""

    def __len__(self) -> int:
        """Return the number of ids, padding included."""
        return len(self.ids)


Document = str | np.ndarray | Conversation | PaddedIds
"""A text, token ids as a 1-d int64 array (with their mask), or a conversation."""

TEXT_COLUMN = "text"
CHAT_COLUMNS = ("messages", "conversations", "conversation")
ID_COLUMNS = ("input_ids", "tokens")
MASK_COLUMN = "attention_mask"


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
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        return _conversation(value, where)
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


def from_columns(row: Mapping[str, Any], number: int, *, column: str) -> Document:
    """Return the document in one column, without the padding that another one marks.

    Raises
    ------
    BadCorpus
        As `as_document`; or ids and ``attention_mask`` differ in length.
    """
    document = as_document(row.get(column), number, column=column)
    mask = row.get(MASK_COLUMN)
    if mask is None or not isinstance(document, np.ndarray):
        return document
    present = np.asarray(mask, dtype=bool)
    if present.shape != document.shape:
        raise BadCorpus(
            f"row {number} has {document.size} ids in column {column!r} and "
            f"{present.size} entries in {MASK_COLUMN!r}: one per id is wanted"
        )
    return PaddedIds(document, present)


def columns_to_read(column: str, names: Sequence[str]) -> list[str]:
    """Return the columns that `from_columns` looks at."""
    return [column, MASK_COLUMN] if MASK_COLUMN in names else [column]


def _conversation(value: Sequence[Any], where: str) -> Conversation:
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadCorpus(
                f"{where}, message {number}, is {message!r:.60}: a mapping with 'role' and "
                "'content' is wanted, for example {'role': 'user', 'content': 'Hello'}"
            )
    return Conversation(tuple(value))


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
    """Return the column to read.

    The one asked for, else ``text``, else one of conversations, else the only one of texts,
    else one of token ids.

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
    usual = [name for name in (TEXT_COLUMN, *CHAT_COLUMNS) if name in names]
    only = list(texts) if len(texts) == 1 else []
    ids = [name for name in ID_COLUMNS if name in names and not texts]
    if usual or only or ids:
        return (usual + only + ids)[0]
    raise BadCorpus(
        f"{where} has no column {TEXT_COLUMN!r}, but {', '.join(names)}: say which one "
        f"holds the texts, for example text_column={next(iter(names), 'content')!r}"
    )
