"""Writing the contexts of a corpus."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit import atomic
from extraction_kit.corpora.corpus import CONTEXTS, ROWS_PER_GROUP, SCHEMA
from extraction_kit.corpora.packing import Block


class ContextWriter:
    """Writes ``contexts.parquet`` in whole row groups and keeps count and digest.

    Parameters
    ----------
    folder : Path
        Made on entering; must not exist.
    dtype : dtype
        Type of the stored ids.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.n_contexts = 0
        self.n_valid = 0
        self.n_total = 0
        self._dtype = dtype
        self._rows: list[tuple[int, int, bytes]] = []
        self._tokens = hashlib.sha256()
        self._lengths = hashlib.sha256()

    def __enter__(self) -> "ContextWriter":  # noqa: PYI034 - beartype knows no Self in a bare method
        """Open the file."""
        try:
            self.folder.mkdir(parents=True)
            self._file = pq.ParquetWriter(
                self.folder / CONTEXTS, SCHEMA, compression="zstd", use_dictionary=False
            )
        except OSError as error:
            raise atomic.unusable(self.folder.parent, error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Complete the file, or leave it to be removed with its folder."""
        try:
            try:
                if kind is None and self._rows:
                    self._flush()
            finally:
                self._file.close()
            if kind is None:
                atomic.fsync_file(self.folder / CONTEXTS)
        except OSError as error:
            if kind is None:  # else the first error is the one to show
                raise atomic.unusable(self.folder.parent, error) from error

    def add(self, block: Block, n_valid: int) -> None:
        """Append contexts with `n_valid` valid tokens."""
        for tokens, n_tok, doc in zip(
            block.tokens.astype(self._dtype), block.n_tok, block.doc, strict=True
        ):
            self._rows.append((int(n_tok), int(doc), tokens[:n_tok].tobytes()))
            if len(self._rows) == ROWS_PER_GROUP:
                self._flush()
        self._tokens.update(block.tokens[block.present].astype("<i4").tobytes())
        self._lengths.update(block.n_tok.astype("<i4").tobytes())
        self.n_valid += n_valid
        self.n_total += int(block.n_tok.sum())

    def digest(self) -> list[str]:
        """Return the digests of the tokens and of the contexts' lengths."""
        return [self._tokens.hexdigest(), self._lengths.hexdigest()]

    def _flush(self) -> None:
        n_tok, doc, tokens = zip(*self._rows, strict=True)
        first = self.n_contexts
        numbers = pa.array(range(first, first + len(n_tok)), pa.int64())
        table = pa.table(
            [numbers, pa.array(n_tok, pa.int32()), pa.array(doc, pa.int64()), tokens],
            schema=SCHEMA,
        )
        try:
            self._file.write_table(table, row_group_size=ROWS_PER_GROUP)
        except OSError as error:
            raise atomic.unusable(self.folder.parent, error) from error
        self.n_contexts += len(n_tok)
        self._rows = []
