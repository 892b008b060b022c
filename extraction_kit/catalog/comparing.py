"""Two runs side by side, feature by feature or in given pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from extraction_kit.catalog.asking import in_memory, memory, readable
from extraction_kit.catalog.listing import BESIDE, Named
from extraction_kit.catalog.macros import LARGEST_FIRST, compared
from extraction_kit.catalog.relations import scan
from extraction_kit.catalog.soundness import require_sound
from extraction_kit.catalog.tables import FEATURES


def side_by_side(a: Path, b: Path, pairs: pa.Table | None) -> duckdb.DuckDBPyRelation:
    """Return the features of two published runs as rows of both.

    Parameters
    ----------
    a, b : Path
        ``Paths.results_of(run_id)``.
    pairs : pyarrow.Table, optional
        Columns ``feature_a``, ``feature_b`` and others that are kept. None pairs the same
        numbers, under the one name ``feature``.

    Returns
    -------
    DuckDBPyRelation
        The columns of `pairs`, then ``density_a``, ``density_b`` ..., and ``log2_ratio``,
        the logarithm of density_b / density_a; NULL where one of them is dead. In the order
        of the features of `a`.

    Raises
    ------
    ResultsDamaged
        A file is missing, cannot be read, or is not the one that was published.
    """
    for folder in (a, b):
        require_sound(folder / FEATURES.file)
    first, second = (scan([folder / FEATURES.file]) for folder in (a, b))
    shown = compared("a", "b")
    cursor = memory().cursor()
    with readable(a):
        if pairs is None:
            return in_memory(
                cursor.sql(
                    f"SELECT feature, {shown} FROM {first} AS a "  # noqa: S608 - our names
                    f"JOIN {second} AS b USING (feature) ORDER BY feature"
                )
            )
        cursor.register("pairs", pairs)
        return in_memory(
            cursor.sql(
                f"SELECT pairs.*, {shown} FROM pairs "  # noqa: S608 - our names
                f"JOIN {first} AS a ON a.feature = feature_a "
                f"JOIN {second} AS b ON b.feature = feature_b ORDER BY feature_a"
            )
        )


def beside(a: Named, b: Named, pairs: Path | None) -> Named:
    """Return the features of one result with those of another beside them, in SQL.

    Parameters
    ----------
    a, b : Named
        Their ``features``.
    pairs : Path, optional
        Parquet with ``feature_a``, ``feature_b`` and others that are kept; None pairs the
        same numbers.

    Returns
    -------
    Named
        The columns of `a` under their own names, ``feature_b``, and what
        `listing.BESIDE` names; one row per feature of `a`.
    """
    indent = " " * 4
    kept, on, pairing = [], "b.feature = a.feature", ""
    if pairs is not None:
        kept, on = ["p.* EXCLUDE (feature_a, feature_b)"], "b.feature = p.feature_b"
        pairing = f"\n  JOIN {scan([pairs])} AS p ON p.feature_a = a.feature"
    shown = [
        "a.*",
        *kept,
        *(f"b.{name} AS {name}_b" for name in ("feature", *BESIDE, "dead")),
        "log2(nullif(b.density, 0) / nullif(a.density, 0)) AS log2_ratio",
        "abs(log2_ratio) AS abs_log2_ratio",
        "log2(nullif(b.max_act, 0) / nullif(a.max_act, 0)) AS max_log2_ratio",
    ]
    columns = ",\n    ".join(shown)
    return Named(
        f"(\n  SELECT\n    {columns}\n"
        f"  FROM ({a.select('*', indent=indent)}) AS a{pairing}\n"
        f"  JOIN ({b.select('*', indent=indent)}) AS b ON {on}\n)"
    )


@dataclass(frozen=True, kw_only=True)
class Differences:
    """In what two runs differ most, of the rows of `side_by_side`."""

    n: int
    """Features of the first run."""
    n_paired: int
    """Those whose pair can be relied on: all of one SAE's; of two SAEs', the pairs in which
    each is the other's nearest."""
    n_dead_a: int
    """Pairs of which only the first is dead."""
    n_dead_b: int
    """Pairs of which only the second is dead."""
    n_doubled: int
    """Pairs whose densities differ by a factor of 2 or more."""
    rows: list[dict[str, Any]]
    """The pairs that differ most: those dead in one run only, then by the density; none of
    equal density."""


def differences(compared: duckdb.DuckDBPyRelation, n: int) -> Differences:
    """Return counts of what differs, and the `n` pairs that differ most.

    Parameters
    ----------
    compared : DuckDBPyRelation
        What `side_by_side` returns.
    n : int
        How many pairs.
    """
    total = len(compared)
    paired = compared.filter("mutual") if "mutual" in compared.columns else compared
    counts = paired.aggregate(
        "count(*), count_if(dead_a AND NOT dead_b), count_if(dead_b AND NOT dead_a), "
        "count_if(abs(log2_ratio) >= 1)"
    ).fetchall()
    ((n_paired, n_dead_a, n_dead_b, n_doubled),) = counts
    differing = paired.filter("dead_a <> dead_b OR log2_ratio <> 0")
    largest = differing.order(f"{LARGEST_FIRST}, {compared.columns[0]}").limit(n)
    return Differences(
        n=total,
        n_paired=n_paired,
        n_dead_a=n_dead_a,
        n_dead_b=n_dead_b,
        n_doubled=n_doubled,
        rows=[dict(zip(largest.columns, row, strict=True)) for row in largest.fetchall()],
    )
