"""Files that a corpus can be made from: text, ``.jsonl`` and ``.parquet``."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.corpora.rows import (
    Document,
    choose_column,
    columns_to_read,
    from_columns,
)
from extraction_kit.errors import BadCorpus

_NOT_TEXT = frozenset(
    {"arrow", "bin", "bz2", "csv", "gz", "json", "npz", "pdf", "pickle", "pkl", "pt", "tsv",
     "xz", "zip", "zst"}
)  # fmt: skip
_SHOWN = 100  # characters of what was passed that a message repeats


def existing_file(source: str | Path) -> Path:
    """Return the file that `source` names.

    Raises
    ------
    BadCorpus
        There is none (a text must be passed as ``[text]``), or it is a folder.
    """
    text = str(source)
    shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
    path = Path(source).expanduser().absolute()
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # too long for a name, or has a NUL: a text
        is_folder = is_file = False
    if is_folder:
        raise BadCorpus(
            f"corpus={shown} is a folder: pass one file, or its texts, for example "
            f"[p.read_text() for p in sorted(Path({shown}).glob('*.txt'))]"
        )
    if not is_file:
        raise BadCorpus(
            f"corpus={shown}: there is no such file. If it is meant as a text, pass a list "
            "of texts: corpus=[text]"
        )
    try:
        with path.open("rb"):
            return path
    except OSError as cause:
        raise BadCorpus(f"{path} cannot be read: {cause.strerror}") from cause


def reader_of(path: Path, text_column: str | None) -> Callable[[], Iterator[Document]]:
    """Return what reads the documents of a file, by its suffix.

    Raises
    ------
    BadCorpus
        Files of this kind are not read, or have no columns; reading raises it with the
        row, line or byte that is wrong.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in _NOT_TEXT:
        raise BadCorpus(
            f"corpus={str(path)!r}: .{suffix} files are not read; text, .jsonl, .parquet "
            "and .npy files are"
        )
    readers = {"jsonl": _json_rows, "ndjson": _json_rows, "parquet": _parquet_rows}
    rows = readers.get(suffix)
    if rows is None and text_column is not None:
        raise BadCorpus(f"text_column={text_column!r}: {path} has no columns; leave it out")

    def read() -> Iterator[Document]:
        try:
            if rows is None:
                yield _text(path)
            else:
                yield from rows(path, text_column)
        except OSError as cause:
            raise BadCorpus(f"{path} cannot be read: {cause.strerror or cause}") from cause

    return read


def _text(path: Path) -> str:
    text = _decoded(path.read_bytes(), f"{path}", offset=0).removeprefix("\ufeff")
    if "\0" in text:
        raise BadCorpus(
            f"{path} has a NUL character at {text.index(chr(0))}: it is not a text file"
        )
    return text


def _decoded(data: bytes, where: str, *, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise BadCorpus(
            f"{where} is not UTF-8: byte {offset + cause.start} is "
            f"0x{data[cause.start]:02x}. Convert it, for example "
            "path.write_text(path.read_text(encoding='latin-1'), encoding='utf-8')"
        ) from None


def _json_rows(path: Path, text_column: str | None) -> Iterator[Document]:
    column, row, offset = text_column, 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = _decoded(line, f"{path}, line {number},", offset=offset)
            offset += len(line)
            if not text.strip("\ufeff \t\r\n"):
                continue
            value = _json_object(text, f"{path}, line {number}")
            if row == 0:
                texts = [name for name in value if isinstance(value[name], str)]
                column = choose_column(text_column, list(value), texts, where=str(path))
            yield from_columns(value, row, column=str(column))
            row += 1


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except ValueError as cause:
        raise BadCorpus(f"{where} is not valid JSON ({cause})") from None
    if not isinstance(value, dict):
        raise BadCorpus(
            f"{where} holds a {type(value).__name__}: one JSON object per line is wanted, "
            'for example {"text": "..."}'
        )
    return value


def _parquet_rows(path: Path, text_column: str | None) -> Iterator[Document]:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as cause:
        raise BadCorpus(f"{path} is torn or not a Parquet file ({cause})") from None
    with file:
        schema = file.schema_arrow
        texts = [
            entry.name
            for entry in schema
            if pa.types.is_string(entry.type) or pa.types.is_large_string(entry.type)
        ]
        column = choose_column(text_column, schema.names, texts, where=str(path))
        wanted = columns_to_read(column, schema.names)
        batches = file.iter_batches(batch_size=256, columns=wanted)
        values = (value for batch in batches for value in batch.to_pylist())
        for row, value in enumerate(values):
            yield from_columns(value, row, column=column)
