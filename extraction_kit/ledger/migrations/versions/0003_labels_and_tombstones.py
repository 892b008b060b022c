"""Labels of features, tombstones of deleted runs, and the size of a result."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NEW = (("results_bytes", _BIG), ("deleted_at", sa.DateTime), ("purged_at", sa.DateTime))


def upgrade() -> None:
    """Add the table of labels, and three columns that are empty for every run there is."""
    op.create_table(
        "labels",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("sae_digest", sa.String(64), nullable=False),
        sa.Column("feature", sa.Integer, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("at", sa.DateTime, nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
    )
    op.create_index("ix_labels_feature", "labels", ["sae_digest", "feature", "seq"])
    for name, kind in _NEW:
        op.add_column("runs", sa.Column(name, kind))


def downgrade() -> None:
    """Drop them; runs that were deleted are seen again by the older release."""
    for name, _ in _NEW:
        op.drop_column("runs", name)
    op.drop_index("ix_labels_feature", "labels")
    op.drop_table("labels")
