"""Buckets of metrics, for charts of long series. Series that are stored already get theirs when they are written on."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "metric_buckets",
        sa.Column("series_id", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("level", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("bucket", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("last_step", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("low", sa.Float(precision=53), nullable=True),
        sa.Column("high", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("series_id", "level", "bucket", name=op.f("pk_metric_buckets")),
        sqlite_with_rowid=False,
    )
    op.add_column("series", sa.Column("shift", sa.SmallInteger(), nullable=True))
    op.add_column("series", sa.Column("mark", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("series") as series:
        series.drop_column("mark")
        series.drop_column("shift")
    op.drop_table("metric_buckets")
