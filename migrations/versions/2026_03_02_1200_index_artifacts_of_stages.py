"""Find the stages of an artifact by an index: `rlx gc` asks for them, and so does every removal of an artifact."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(op.f("ix_stages_artifact_id"), "stages", ["artifact_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_stages_artifact_id"), table_name="stages")
