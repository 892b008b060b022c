"""Labels in SQL: the newest change of each feature, and features with what is said of them."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from extraction_kit.catalog.arrays import rows_table
from extraction_kit.catalog.tables import (
    LABEL_COLUMNS,
    LABEL_HISTORY,
    LABELS,
    RUNS,
    Table,
)


def label_table(changes: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return rows of `tables.LABEL_HISTORY` as what `CatalogRows` takes."""
    return rows_table(LABEL_HISTORY, list(changes))


def labels_of(history: Table) -> str:
    """Return the SQL of `tables.LABELS`: the newest change, unless it takes the label away."""
    columns = ", ".join(column.name for column in LABELS.columns)
    return (
        f"SELECT {columns} FROM (FROM {history.name} "  # noqa: S608 - our own names
        "QUALIFY seq = max(seq) OVER (PARTITION BY sae_digest, feature)) "
        "WHERE name IS NOT NULL OR description IS NOT NULL"
    )


def labelled(features: str, *, has_labels: bool) -> str:
    """Return the SQL of features with `tables.LABEL_COLUMNS`.

    Parameters
    ----------
    features : str
        SQL with the columns run_id and feature.
    has_labels : bool
        Whether there is any label: without one a join would only cost.

    Notes
    -----
    The tables of the ledger are named with their schema: the view may stand in another one,
    of a database that somebody attaches under another name.

    Both sides are grouped by what they are joined on: DuckDB 2 then sees that a join adds no
    row, and leaves it out of a query that names neither label nor description.
    """
    if not has_labels:
        nothing = ", ".join(f"NULL::{c.type} AS {c.name}" for c in LABEL_COLUMNS)
        return f"SELECT *, {nothing} FROM ({features})"  # noqa: S608 - our own names
    runs, labels = f"main.{RUNS.name}", f"main.{LABELS.name}"
    sae = f"SELECT run_id, any_value(sae_digest) AS sae_digest FROM {runs} GROUP BY run_id"  # noqa: S608 - as above
    said = (
        "SELECT sae_digest, feature, any_value(name) AS label, "  # noqa: S608 - as above
        f"any_value(description) AS description FROM {labels} GROUP BY sae_digest, feature"
    )
    return (
        f"SELECT found.*, said.label, said.description FROM ({features}) AS found "  # noqa: S608 - as above
        f"LEFT JOIN ({sae}) AS own ON own.run_id = found.run_id "
        f"LEFT JOIN ({said}) AS said "
        "ON said.sae_digest = own.sae_digest AND said.feature = found.feature"
    )
