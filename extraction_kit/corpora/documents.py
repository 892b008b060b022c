"""What a corpus can be made from, read as a stream of documents.

Nothing is held longer than it takes to hand it on.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extraction_kit.corpora.rows import (
    TEXT_COLUMN,
    Conversation,
    Document,
    PaddedIds,
    as_document,
    as_ids,
    choose_column,
    columns_to_read,
    from_columns,
)
from extraction_kit.corpora.text_files import existing_file, reader_of
from extraction_kit.digests import file_digest
from extraction_kit.errors import BadCorpus
from extraction_kit.lifecycle import digest_of

_KINDS = (
    "a path of a text, .jsonl, .parquet or .npy file, a list of texts, of conversations or "
    "of lists of token ids, or a Hugging Face dataset"
)

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Documents:
    """A source of documents."""

    label: str
    """What it is, in words."""
    key: str | None
    """Digest of the content, known without tokenising; None for what can be read only once
    (a generator, a stream)."""
    read: Callable[[], Iterator[Document]]
    """Starts reading from the first document."""


def open_documents(
    source: object, *, text_column: str | None = None, cache: Path | None = None
) -> Documents:
    """Return the documents of `source`.

    Raises
    ------
    BadCorpus
        It is none of the things that a corpus can be made from, or cannot be read.
    """
    if isinstance(source, (str, Path)):
        return _file(existing_file(source), text_column, cache)
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return _dataset(source, text_column)
    if text_column is not None:
        raise BadCorpus(
            f"text_column={text_column!r}: a {type(source).__name__} has no columns to "
            "choose from; leave it out"
        )
    if isinstance(source, np.ndarray) and source.dtype.kind not in "OU":
        key = _array_key(_checked_array(source))
        return Documents(
            label=f"an array of {source.shape[0]:,} documents",
            key=key,
            read=lambda: _array_rows(source),
        )
    _refuse_unordered(source)
    return _iterable(source)


def _file(path: Path, text_column: str | None, cache: Path | None) -> Documents:
    kind = path.suffix.lower()
    if kind == ".npy" and text_column is None:
        array = _npy(path)
        read = lambda: _array_rows(array)  # noqa: E731 - a name for both branches
    else:
        read = reader_of(path, text_column)
    key = digest_of([kind, file_digest(path, cache), text_column])
    return Documents(label=path.name, key=key, read=read)


# --- arrays -----------------------------------------------------------------------------


def _npy(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as cause:
        raise BadCorpus(
            f"{path} is torn, or not a .npy file of token ids ({cause})"
        ) from cause
    return _checked_array(array)


def _checked_array(array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or array.dtype.kind not in "iu":  # noqa: PLR2004 - documents x tokens
        raise BadCorpus(
            f"corpus is an array of type {array.dtype} and shape {array.shape}: integers "
            "of shape (documents, tokens) are wanted; one document is ids[None, :]"
        )
    return array


def _array_rows(array: np.ndarray) -> Iterator[Document]:
    for number, row in enumerate(array):
        yield as_ids(row, number)


def _array_key(array: np.ndarray) -> str:
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return digest_of(["array", array.dtype.str, list(array.shape), content])


# --- objects ----------------------------------------------------------------------------


def _dataset(source: Any, text_column: str | None) -> Documents:  # noqa: ANN401 - an optional package's
    names = source.column_names
    if isinstance(names, Mapping):
        raise BadCorpus(
            f"corpus is a dataset of several splits ({', '.join(names)}): pass one, for "
            f"example dataset[{next(iter(names))!r}]"
        )
    if names is None:  # a stream whose columns are not known before its first row
        names = list(next(iter(source), {}))
    features = source.features or {}
    texts = [name for name in names if "string" in str(_dtype(features, name))]
    column = choose_column(text_column, list(names), texts, where="the dataset")
    wanted = columns_to_read(column, names)
    # Datasets never change; their fingerprint covers the data and each transformation.
    # A stream has none that can be relied on: it is read again.
    fingerprint = getattr(source, "_fingerprint", None)
    fixed = isinstance(fingerprint, str) and isinstance(source, Sized)
    key = digest_of(["dataset", fingerprint, len(source), column]) if fixed else None

    def read() -> Iterator[Document]:
        only = source.select_columns(wanted) if len(names) > len(wanted) else source
        number = 0
        for rows in only.iter(batch_size=_ROWS):  # a tenth of the cost of single rows
            for values in zip(*(rows[name] for name in wanted), strict=True):
                row = dict(zip(wanted, values, strict=True))
                yield from_columns(row, number, column=column)
                number += 1

    return Documents(label="a dataset", key=key, read=read)


def _dtype(features: Mapping[str, Any], name: str) -> object:
    return getattr(features.get(name), "dtype", None)


def _refuse_unordered(source: object) -> None:
    """Refuse what iterates over something else than documents, or in no fixed order."""
    kind = type(source).__name__
    if isinstance(source, Mapping):
        raise BadCorpus(
            f"corpus is a {kind} with the keys {', '.join(map(str, list(source)[:5]))}: "
            f"pass one of its values, for example corpus[{next(iter(source), 'train')!r}]"
        )
    if isinstance(source, (set, frozenset)):
        raise BadCorpus(
            f"corpus is a {kind}, whose order differs from kernel to kernel: pass "
            "sorted(corpus)"
        )
    is_table = hasattr(source, "column_names") or hasattr(source, "iloc")
    if is_table and getattr(source, "ndim", 2) != 1:
        raise BadCorpus(
            f"corpus is a {kind}: pass one column of it as a list, for example "
            f"list(table[{TEXT_COLUMN!r}])"
        )


def _iterable(source: object) -> Documents:
    if isinstance(source, (bytes, bytearray)) or not isinstance(source, Iterable):
        raise BadCorpus(f"corpus={type(source).__name__} object: {_KINDS} is wanted")

    def read() -> Iterator[Document]:
        for number, value in enumerate(source):
            if number == 0:
                _check_first(value)
            yield as_document(value, number)

    kind = type(source).__name__
    if isinstance(source, Iterator) or not isinstance(source, Sized):
        return Documents(label=f"a {kind}", key=None, read=read)
    label = f"a {kind} of {len(source):,} documents"
    return Documents(label=label, key=_content_key(read()), read=read)


def _check_first(value: object) -> None:
    if isinstance(value, Path) or (isinstance(value, str) and _names_file(value)):
        raise BadCorpus(
            f"the first document is {str(value)!r}, the name of a file: pass its text, for "
            "example [Path(name).read_text() for name in names]"
        )
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        raise BadCorpus(
            f"the first document is the number {value}: wrap the ids of one document in a "
            "list, corpus=[ids]"
        )


def _names_file(text: str) -> bool:
    try:
        return bool(Path(text).suffix) and Path(text).is_file()
    except (OSError, ValueError):
        return False


def _content_key(documents: Iterable[Document]) -> str:
    """Return a digest over documents in memory: cheap against tokenising them."""
    sha = hashlib.sha256()
    for document in documents:
        kind, data = _content(document)
        sha.update(f"{kind}:{len(data)}:".encode())
        sha.update(data)
    return digest_of(["documents", sha.hexdigest()])


def _content(document: Document) -> tuple[str, bytes]:
    if isinstance(document, str):
        return "text", document.encode()
    if isinstance(document, Conversation):
        return "chat", json.dumps(document.messages, default=str).encode()
    if isinstance(document, PaddedIds):
        return "padded", document.ids.tobytes() + document.present.tobytes()
    return "ids", document.tobytes()
