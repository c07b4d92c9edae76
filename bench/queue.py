"""No-op stages a second, and from submit to the first training step: `no_op_stages` by the name of what it measures.

    python bench/queue.py [--stages 400] [--slots 2] [--services]

The scripts beside this one have its folder first on their path: where they, or what they import, ask for the standard
library's `queue`, they get that.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
import sysconfig
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("no_op_stages.py")), run_name="__main__")
else:
    spec = importlib.util.spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "queue.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[__name__])
