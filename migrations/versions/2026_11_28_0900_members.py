"""Stages of several nodes: the members of an attempt, and reservations of several workers for one stage."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

RESERVATIONS = sa.table(
    "reservations",
    *(sa.column("stage_id", sa.Uuid()), sa.column("worker_id", sa.Uuid())),
    sa.column("expires_at", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    op.add_column("stages", sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"))
    op.create_table(
        "members",
        sa.Column("attempt_id", sa.Uuid(), nullable=False),
        sa.Column("node", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("address", sa.String(length=255), nullable=False, server_default=""),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("token", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id"], ["attempts.id"], name=op.f("fk_members_attempt_id_attempts"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name=op.f("fk_members_worker_id_workers")),
        sa.PrimaryKeyConstraint("attempt_id", "node", name=op.f("pk_members")),
    )
    op.create_index("ix_members_worker_id_state", "members", ["worker_id", "state"], unique=False)
    op.create_index("ix_members_lease_expires_at", "members", ["lease_expires_at"], unique=False)
    kept = _take_out_reservations()
    op.create_table(
        "reservations",
        *_columns(),
        sa.PrimaryKeyConstraint("worker_id", name=op.f("pk_reservations")),
    )
    op.create_index("ix_reservations_stage_id", "reservations", ["stage_id"], unique=False)
    _put_back(kept)


def _columns() -> list[Any]:
    return [
        sa.Column("stage_id", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["stage_id"], ["stages.id"], name=op.f("fk_reservations_stage_id_stages"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name=op.f("fk_reservations_worker_id_workers"), ondelete="CASCADE"
        ),
    ]


def _take_out_reservations() -> list[dict[str, Any]]:
    """Its rows, of which there are no more than workers; SQLite cannot change a table's primary key."""
    rows = op.get_bind().execute(sa.select(RESERVATIONS).order_by(RESERVATIONS.c.worker_id)).mappings().all()
    op.drop_table("reservations")
    return [dict(row) for row in rows]


def _put_back(rows: list[dict[str, Any]]) -> None:
    if rows:
        op.get_bind().execute(sa.insert(RESERVATIONS), rows)


def downgrade() -> None:
    kept = _take_out_reservations()
    op.create_table(
        "reservations",
        *_columns(),
        sa.PrimaryKeyConstraint("stage_id", name=op.f("pk_reservations")),
        sa.UniqueConstraint("worker_id", name=op.f("uq_reservations_worker_id")),
    )
    _put_back(list({row["stage_id"]: row for row in kept}.values()))
    op.drop_table("members")
    op.drop_column("stages", "nodes")
