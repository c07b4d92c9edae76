"""Retry policies, quarantine, and where an attempt's time went."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("stages", sa.Column("retries", JSON, nullable=False, server_default="{}"))
    op.add_column("stages", sa.Column("alone", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("attempts", sa.Column("spent", JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("attempts", "spent")
    op.drop_column("stages", "alone")
    op.drop_column("stages", "retries")
