"""The tables of the ledger, and the two rules that the store itself enforces.

Times are UTC. In SQLite they are ISO text without offset; Python sees aware datetimes.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from extraction_kit.lifecycle import ACTIVE, RunState

ONE_ACTIVE = "uq_runs_one_active"
IDENTITY = "uq_runs_identity"
ACTIVE_SQL = "state IN ({})".format(", ".join(f"'{state}'" for state in sorted(ACTIVE)))
STATES_SQL = "state IN ({})".format(", ".join(f"'{state}'" for state in RunState))


class Utc(TypeDecorator[datetime]):
    """Aware datetimes in Python, naive UTC in the store."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - SQLAlchemy's signature
    ) -> datetime | None:
        """Refuse a naive datetime: its offset would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = f"naive datetime {value!r}: the ledger takes aware ones only"
            raise ValueError(msg)
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - SQLAlchemy's signature
    ) -> datetime | None:
        """Attach UTC."""
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()
_BIG = BigInteger().with_variant(Integer, "sqlite")  # which has 64 bits in every integer

trainings = Table(
    "trainings",
    metadata,
    Column("training_id", String(120), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("created_by", String(200), nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(16), primary_key=True),
    Column("training_id", ForeignKey("trainings.training_id"), nullable=False),
    Column("content_key", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),  # the fencing token
    Column("job_id", String(200), nullable=False),
    Column("nonce", String(32)),  # of the claim; None while unclaimed
    Column("cancel_requested", Boolean, nullable=False),
    Column("corpus_digest", String(64), nullable=False),
    Column("corpus", JSON, nullable=False),
    Column("n_tokens", _BIG, nullable=False),
    Column("config", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("kit_version", String(40), nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("completed_at", Utc),
    Column("results_dir", Text),
    Column("result_digest", String(64)),
    Column("published_attempt", Integer),
    Column("summary", JSON),
    Column("error", Text),
    Column("error_traceback", Text),
    Column("results_bytes", _BIG),  # of its published files
    Column("deleted_at", Utc),  # a tombstone: nothing can move the run while it is set
    Column("purged_at", Utc),  # its files are gone, or about to be; the row stays for good
    CheckConstraint(STATES_SQL, name="ck_runs_state"),
    UniqueConstraint("training_id", "content_key", "generation", name=IDENTITY),
)

# The rule "one active run per training" is a fact of the store, whoever races.
Index(
    ONE_ACTIVE,
    runs.c.training_id,
    unique=True,
    sqlite_where=runs.c.state.in_([str(state) for state in sorted(ACTIVE)]),
    postgresql_where=runs.c.state.in_([str(state) for state in sorted(ACTIVE)]),
)
Index("ix_runs_state", runs.c.state)

attempts = Table(
    "attempts",
    metadata,
    Column("run_id", ForeignKey("runs.run_id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("job_id", String(200), nullable=False, unique=True),  # single use
    Column("created_at", Utc, nullable=False),
    Column("queued_at", Utc),
    Column("claimed_at", Utc),
    Column("ended_at", Utc),
    Column("process", JSON),  # liveness.ProcessIdentity of the claim
)

# Only where several machines share the ledger; else beats are files.
beats = Table(
    "beats",
    metadata,
    Column("run_id", String(16), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("beat", JSON, nullable=False),
)

# Every change of a label is a row, the newest one counts. Keyed by the SAE, not by training
# or run: no foreign key leads from here, so that nothing that goes takes a label with it.
labels = Table(
    "labels",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("sae_digest", String(64), nullable=False),
    Column("feature", Integer, nullable=False),
    Column("name", Text),
    Column("description", Text),  # without name and description: the label was removed
    Column("source", Text),
    Column("at", Utc, nullable=False),
    Column("by", String(200), nullable=False),
)
Index("ix_labels_feature", labels.c.sae_digest, labels.c.feature, labels.c.seq)

events = Table(
    "events",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.run_id", ondelete="CASCADE")),
    Column("attempt", Integer, nullable=False),
    Column("at", Utc, nullable=False),
    Column("last_at", Utc, nullable=False),
    Column("count", Integer, nullable=False),  # repeated refusals are one row
    Column("kind", String(40), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("text", Text, nullable=False),
    Column("change", Integer, nullable=False),  # the cursor: grows with every change
)
Index("ix_events_run", events.c.run_id, events.c.seq)
Index("ix_events_change", events.c.change)

CURRENT_ATTEMPT = (attempts.c.run_id == runs.c.run_id) & (
    attempts.c.attempt == runs.c.attempt
)
"""Joins a run with its current attempt."""
