"""What scheduling asks of a stage stands in columns of its own; reservations; workers that are told to drain."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

READY = sa.text("status = 'ready'")


def upgrade() -> None:
    op.add_column("workers", sa.Column("drain", sa.String(length=16), nullable=False, server_default=""))
    op.add_column("stages", sa.Column("user", sa.String(length=255), nullable=False, server_default=""))
    op.add_column("stages", sa.Column("slots", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("stages", sa.Column("gpus", sa.Integer(), nullable=False, server_default="0"))
    _fill()
    op.create_index(
        "ix_stages_ready",
        "stages",
        ["queue", "priority", "user", "gpus", "slots", "ready_at", "id"],
        unique=False,
        sqlite_where=READY,
        postgresql_where=READY,
    )
    op.drop_index("ix_stages_status_queue", table_name="stages")
    op.create_table(
        "reservations",
        sa.Column("stage_id", sa.Uuid(), nullable=False),
        sa.Column("worker_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["stage_id"], ["stages.id"], name=op.f("fk_reservations_stage_id_stages"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.id"], name=op.f("fk_reservations_worker_id_workers"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("stage_id", name=op.f("pk_reservations")),
        sa.UniqueConstraint("worker_id", name=op.f("uq_reservations_worker_id")),
    )


def _fill() -> None:
    """The new columns of stages that may still run or run again; of those that succeeded nobody asks."""
    stages = sa.table(
        "stages",
        *(sa.column("id", sa.Uuid()), sa.column("run_id", sa.Uuid()), sa.column("status"), sa.column("resources")),
        *(sa.column("user"), sa.column("slots"), sa.column("gpus")),
    )
    runs = sa.table("runs", sa.column("id", sa.Uuid()), sa.column("user"))
    unfinished = stages.c.status != "succeeded"
    connection = op.get_bind()
    connection.execute(
        sa.update(stages)
        .where(unfinished)
        .values(user=sa.select(runs.c.user).where(runs.c.id == stages.c.run_id).scalar_subquery())
    )
    for stage_id, resources in connection.execute(sa.select(stages.c.id, stages.c.resources).where(unfinished)).all():
        wants = json.loads(resources) if isinstance(resources, str) else resources
        gpus = max(wants.get("gpus", 0), 1 if wants.get("device") == "cuda" else 0)
        values = {"slots": max(1, wants.get("slots", 1)), "gpus": gpus}
        if values != {"slots": 1, "gpus": 0}:
            connection.execute(sa.update(stages).where(stages.c.id == stage_id).values(**values))


def downgrade() -> None:
    op.drop_table("reservations")
    op.create_index("ix_stages_status_queue", "stages", ["status", "queue"], unique=False)
    op.drop_index("ix_stages_ready", table_name="stages")
    for column in ("gpus", "slots", "user"):
        op.drop_column("stages", column)
    op.drop_column("workers", "drain")
