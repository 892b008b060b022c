"""Alembic's entry: migrate over the connection that the ledger hands in."""

from alembic import context

from extraction_kit.ledger.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    transaction_per_migration=False,
)
context.run_migrations()
