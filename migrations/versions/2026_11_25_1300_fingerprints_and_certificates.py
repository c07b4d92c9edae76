"""Streams of fingerprints, and the certificates of `rlx verify-resume` that rest on them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "fingerprints",
        sa.Column("stage_id", sa.Uuid(), nullable=False),
        sa.Column("first", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("entries", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["stage_id"], ["stages.id"], name=op.f("fk_fingerprints_stage_id_stages"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("stage_id", "first", name=op.f("pk_fingerprints")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "certificates",
        sa.Column("id", BIG_ID, nullable=False),
        sa.Column("method", sa.String(length=255), nullable=False),
        sa.Column("versions", JSON, nullable=False),
        sa.Column("spec", sa.String(length=255), nullable=False),
        sa.Column("spec_hash", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("kills", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=True),
        sa.Column("code", JSON, nullable=False),
        sa.Column("packages", JSON, nullable=False),
        sa.Column("hardware", JSON, nullable=False),
        sa.Column("detail", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificates")),
    )
    op.create_index("ix_certificates_method_created_at", "certificates", ["method", "created_at"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_certificates_method_created_at", table_name="certificates")
    op.drop_table("certificates")
    op.drop_table("fingerprints")
