"""Two runs side by side, feature by feature or in given pairs."""

from pathlib import Path

import duckdb
import pyarrow as pa

from extraction_kit.catalog.asking import in_memory, memory, readable
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
