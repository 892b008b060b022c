"""Rows out of a file that is sorted by its first column: single ones in about a millisecond.

DuckDB looks at every row group of the file for each question; of an SAE with 131,072 features
that is 45 ms for the examples alone. Here the footer is read once, and what was read last is
kept: of a small file all of it.
"""

import functools
import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from extraction_kit.catalog.asking import readable
from extraction_kit.catalog.soundness import Identity, identity_of, require_sound
from extraction_kit.catalog.tables import FEATURES

KEPT_BYTES = 8 * 2**20
"""Decoded row groups that are kept: the next feature of a list is often in one of them."""


class SortedFile:
    """A Parquet file that was published; see `published`. Usable from several threads.

    Of a footer with a flipped bit pyarrow 26 may end the process: only bytes that are known
    to be right come here.

    Parameters
    ----------
    path : Path
        Its first column holds whole numbers, ascending. It must never change.

    Raises
    ------
    ResultsDamaged
        The file is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()
        with readable(path):
            self._footer = pq.read_metadata(path)
            spans = [
                (found.min, found.max)
                for group in range(self._footer.num_row_groups)
                if (found := self._footer.row_group(group).column(0).statistics) is not None
            ]  # a file without rows has one group, without statistics
        self.n_rows: int = self._footer.num_rows
        groups = range(self._footer.num_row_groups)
        decoded = (self._footer.row_group(group).total_byte_size for group in groups)
        self.is_small: bool = sum(decoded) <= KEPT_BYTES
        """Whether all of it is kept once it was read."""
        self._first, self._last = np.array(spans, dtype=np.int64).reshape(-1, 2).T

    def rows(self, *keys: int) -> pa.Table:
        """Return the rows of these keys, each once, in the order of the file; none is fine.

        Raises
        ------
        ResultsDamaged
            The file cannot be read.
        """
        wanted = np.unique(np.array(keys, dtype=np.int64))
        first = np.searchsorted(wanted, self._first)
        beyond = np.searchsorted(wanted, self._last, side="right")
        parts = [
            self._some(int(group), wanted[first[group] : beyond[group]])
            for group in np.flatnonzero(first < beyond)
        ]
        return (
            pa.concat_tables(parts)
            if parts
            else self._footer.schema.to_arrow_schema().empty_table()
        )

    def all_rows(self) -> pa.Table:
        """Return the whole file.

        Raises
        ------
        ResultsDamaged
            The file cannot be read.
        """
        return pa.concat_tables(map(self._group, range(self._footer.num_row_groups)))

    def _some(self, group: int, keys: np.ndarray) -> pa.Table:
        table = self._group(group)
        column = table.column(0).to_numpy()
        spans = np.column_stack(
            [np.searchsorted(column, keys), np.searchsorted(column, keys, side="right")]
        )
        return pa.concat_tables([table.slice(begin, end - begin) for begin, end in spans])

    def _group(self, group: int) -> pa.Table:
        with self._lock:
            table = self._kept.pop(group, None)
            if table is None:
                table = self._read(group)
            self._kept[group] = table
            size = sum(one.nbytes for one in self._kept.values())
            while size > KEPT_BYTES and len(self._kept) > 1:
                size -= self._kept.popitem(last=False)[1].nbytes
            return table

    def _read(self, group: int) -> pa.Table:
        with (
            readable(self._path),
            pq.ParquetFile(self._path, metadata=self._footer) as file,
        ):
            return file.read_row_group(group, use_threads=False)


def published(path: Path) -> SortedFile:
    """Return a file of a published result, once it is known that it is the published one.

    It is opened once for as long as it stays the same.

    Raises
    ------
    ResultsDamaged
        The file is missing, cannot be read, or is not the one that was published.
    """
    require_sound(path)
    with readable(path):
        identity = identity_of(path)
    return _opened(path, identity)


def d_sae_of(folder: Path) -> int:
    """Return the number of features of a published run."""
    return published(folder / FEATURES.file).n_rows


@functools.lru_cache(maxsize=16)
def _opened(path: Path, _identity: Identity) -> SortedFile:
    return SortedFile(path)


# A lock that another thread held when a process forked would never be free in the child.
os.register_at_fork(after_in_child=_opened.cache_clear)
