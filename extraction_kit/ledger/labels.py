"""Labels of features: every change is a row, the newest one of a feature counts.

Keyed by the digest of the SAE: all trainings and runs of the same weights share them, and
none of these takes a label with it when it goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Select, func, insert, select

from extraction_kit.ledger.events import record_again
from extraction_kit.ledger.schema import labels
from extraction_kit.ledger.transitions import Mover

_COLUMNS = (labels.c.feature, labels.c.name, labels.c.description, labels.c.source)


@dataclass(frozen=True, kw_only=True)
class Label:
    """What is said of one feature; without name and description nothing is said any more."""

    feature: int
    name: str | None
    description: str | None
    source: str | None

    @property
    def is_removal(self) -> bool:
        """Whether this takes the label away."""
        return self.name is None and self.description is None


@dataclass(frozen=True, kw_only=True)
class LabelChange:
    """One row of the history."""

    seq: int
    sae_digest: str
    feature: int
    name: str | None
    description: str | None
    source: str | None
    at: datetime
    by: str


def add(
    connection: Connection, sae_digest: str, changes: Iterable[Label], *, by: Mover
) -> None:
    """Append changes, in the caller's transaction, and move the ledger's cursor."""
    rows = [
        {**vars(change), "sae_digest": sae_digest, "at": by.at, "by": by.name}
        for change in changes
    ]
    if not rows:
        return
    connection.execute(insert(labels), rows)
    record_again(
        connection,
        None,
        attempt=0,
        at=by.at,
        kind="labelled",
        actor=by.label,
        text=f"labels of SAE {sae_digest[:12]}",
    )


def of_feature(connection: Connection, sae_digest: str, feature: int) -> Label | None:
    """Return the label of one feature; None if it has none."""
    question = select(*_COLUMNS).where(
        labels.c.sae_digest == sae_digest, labels.c.feature == feature
    )
    row = connection.execute(question.order_by(labels.c.seq.desc()).limit(1)).first()
    if row is None:
        return None
    found = Label(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    return None if found.is_removal else found


def of_sae(connection: Connection, sae_digest: str) -> dict[int, Label]:
    """Return the labels of an SAE by feature, in order."""
    newest = (
        select(func.max(labels.c.seq))
        .where(labels.c.sae_digest == sae_digest)
        .group_by(labels.c.feature)
    )
    question = select(*_COLUMNS).where(labels.c.seq.in_(newest)).order_by(labels.c.feature)
    found = (Label(**row._mapping) for row in connection.execute(question))  # noqa: SLF001 - see above
    return {label.feature: label for label in found if not label.is_removal}


def state(connection: Connection) -> tuple[object, ...] | None:
    """Return what names the history as it is now, None without any: it only ever grows."""
    question: Select[tuple[int, str, datetime, str]] = select(
        labels.c.seq, labels.c.sae_digest, labels.c.at, labels.c.by
    )
    row = connection.execute(question.order_by(labels.c.seq.desc()).limit(1)).first()
    return None if row is None else tuple(row)


def history(connection: Connection) -> list[LabelChange]:
    """Return every change of every label, oldest first."""
    rows = connection.execute(select(labels).order_by(labels.c.seq))
    return [LabelChange(**row._mapping) for row in rows]  # noqa: SLF001 - see above
