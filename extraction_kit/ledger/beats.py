"""Beats as rows: how a working process says that it lives when its observers are elsewhere.

Each is one autocommit statement with the connection's timeout, outside the writers' lock: a
process frozen while it beats holds nobody up. With SQLite beats are files instead
(:class:`extraction_kit.liveness.BeatFiles`): every statement that writes locks it whole.
"""

from sqlalchemy import ColumnElement, and_, delete, select
from sqlalchemy.dialects.postgresql import insert

from extraction_kit.ledger.schema import beats
from extraction_kit.ledger.store import Store
from extraction_kit.liveness import Beat


class BeatRows:
    """The beats in a ledger that several machines share.

    Parameters
    ----------
    store : Store
        A PostgreSQL ledger.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, run_id: str, attempt: int, beat: Beat) -> None:
        """Replace the beat of one attempt; only the process that claimed it writes here."""
        row = insert(beats).values(run_id=run_id, attempt=attempt, beat=beat.to_dict())
        replaced = row.on_conflict_do_update(
            index_elements=["run_id", "attempt"], set_={"beat": row.excluded.beat}
        )
        with self._store.read() as connection:  # autocommit: a statement is a transaction
            connection.execute(replaced)

    def read(self, run_id: str, attempt: int) -> Beat | None:
        """Return the last beat, or None if there is none."""
        with self._store.read() as connection:
            found = connection.execute(
                select(beats.c.beat).where(_of(run_id, attempt))
            ).scalar()
        return None if found is None else Beat.from_dict(found)

    def forget(self, run_id: str, attempt: int) -> None:
        """Remove the beat of an attempt that has ended."""
        with self._store.read() as connection:
            connection.execute(delete(beats).where(_of(run_id, attempt)))


def _of(run_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(beats.c.run_id == run_id, beats.c.attempt == attempt)
