"""Trainings, runs, attempts and events, with the two uniqueness rules."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A migration is history: it spells the states out and never follows the code.
ACTIVE = "state IN ('extracting', 'publishing', 'queued', 'requested')"
STATES = (
    "state IN ('requested', 'queued', 'extracting', 'publishing', 'completed', 'failed', "
    "'cancelled', 'interrupted')"
)


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "trainings",
        sa.Column("training_id", sa.String(120), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
    )
    _create_runs()
    op.create_table(
        "attempts",
        sa.Column(
            "run_id",
            sa.String(16),
            sa.ForeignKey("runs.run_id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.String(200), nullable=False, unique=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("queued_at", sa.DateTime),
        sa.Column("claimed_at", sa.DateTime),
        sa.Column("ended_at", sa.DateTime),
        sa.Column("process", sa.JSON),
    )
    op.create_table(
        "events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "run_id", sa.String(16), sa.ForeignKey("runs.run_id", ondelete="CASCADE")
        ),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("last_at", sa.DateTime, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("change", sa.Integer, nullable=False),
    )
    op.create_index("ix_events_run", "events", ["run_id", "seq"])
    op.create_index("ix_events_change", "events", ["change"])


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(16), primary_key=True),
        sa.Column(
            "training_id",
            sa.String(120),
            sa.ForeignKey("trainings.training_id"),
            nullable=False,
        ),
        sa.Column("content_key", sa.String(64), nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("job_id", sa.String(200), nullable=False),
        sa.Column("nonce", sa.String(32)),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("corpus_digest", sa.String(64), nullable=False),
        sa.Column("corpus", sa.JSON, nullable=False),
        sa.Column("n_tokens", sa.Integer, nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("kit_version", sa.String(40), nullable=False),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("completed_at", sa.DateTime),
        sa.Column("results_dir", sa.Text),
        sa.Column("result_digest", sa.String(64)),
        sa.Column("published_attempt", sa.Integer),
        sa.Column("summary", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("error_traceback", sa.Text),
        sa.CheckConstraint(STATES, name="ck_runs_state"),
        sa.UniqueConstraint(
            "training_id", "content_key", "generation", name="uq_runs_identity"
        ),
    )
    op.create_index(
        "uq_runs_one_active",
        "runs",
        ["training_id"],
        unique=True,
        sqlite_where=sa.text(ACTIVE),
        postgresql_where=sa.text(ACTIVE),
    )
    op.create_index("ix_runs_state", "runs", ["state"])


def downgrade() -> None:
    """Drop all tables."""
    for table in ("events", "attempts", "runs", "trainings"):
        op.drop_table(table)
