"""Two runs side by side, feature by feature or in given pairs."""

from pathlib import Path

import duckdb
import pyarrow as pa

from extraction_kit.catalog.asking import in_memory, memory, readable
from extraction_kit.catalog.listing import BESIDE, Named
from extraction_kit.catalog.macros import compared
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
