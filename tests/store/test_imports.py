from __future__ import annotations

import subprocess
import sys


def test_the_store_imports_nothing_heavy() -> None:
    """What `rlx ls` needs: neither torch nor Alembic nor numpy nor pydantic's company."""
    code = (
        "import sys\n"
        "from engine.store import runs, stages, metrics, evaluations, checkpoints, samples, workers, outbox\n"
        "from engine.store import artifact_store, certificates, fingerprints, session, schema\n"
        "heavy = ('torch', 'transformers', 'alembic', 'numpy', 'celery', 'streamlit', 'fsspec', 'psycopg')\n"
        "print(sorted(name for name in heavy if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
