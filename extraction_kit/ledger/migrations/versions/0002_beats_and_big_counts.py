"""Beats as rows (for observers on other hosts), and token counts beyond 2^31."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of beats; widen what PostgreSQL keeps in 32 bits."""
    op.create_table(
        "beats",
        sa.Column("run_id", sa.String(16), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True),
        sa.Column("beat", sa.JSON, nullable=False),
    )
    _alter_n_tokens(sa.Integer(), sa.BigInteger())


def downgrade() -> None:
    """Drop the table of beats."""
    _alter_n_tokens(sa.BigInteger(), sa.Integer())
    op.drop_table("beats")


def _alter_n_tokens(old: sa.Integer, new: sa.Integer) -> None:
    # An integer of SQLite has 64 bits whatever its column says.
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("runs", "n_tokens", existing_type=old, type_=new)
