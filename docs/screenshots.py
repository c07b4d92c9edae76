"""Pictures of the dashboard for the README and the docs: `python docs/screenshots.py`.

Looks at the seeded runs of the tests, so that a picture can always be made again; or at the runs under RLX_HOME, the
newest and the two handles that are given: `RLX_HOME=.rlx python docs/screenshots.py best-lang-1 best-lang-2`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.store.session import open_database  # noqa: E402
from tests.dashboard.seed import populate  # noqa: E402
from tests.dashboard.serving import chromium, dashboard  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHOTS = (
    ("dashboard-runs", "", "light", 1400, 820),
    ("dashboard-run", "run?run={running}", "light", 1400, 1200),
    ("dashboard-run-dark", "run?run={running}", "dark", 1400, 1200),
    ("dashboard-samples", "run?run={b}&tab=Samples&decision=3", "light", 1400, 1500),
    ("dashboard-compare", "compare?a={a}&b={b}", "light", 1400, 1180),
)
SEEDED = {"running": "twenty-questions-3", "a": "twenty-questions-1", "b": "twenty-questions-2"}
READY = "!document.querySelector('[data-testid=stSkeleton], [data-test-script-state=running]')"


def main() -> None:
    """Make every picture."""
    given = os.environ.get("RLX_HOME")
    handles = SEEDED
    if given:
        if len(sys.argv) != 3:
            sys.exit("usage: RLX_HOME=HOME python docs/screenshots.py RUN_A RUN_B")
        handles = {"running": "@last", "a": sys.argv[1], "b": sys.argv[2]}
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(given) if given else Path(scratch)
        if not given:
            database = open_database(f"sqlite:///{home / 'rlx.db'}")
            with database.write() as session:
                populate(session, now=datetime.now(UTC))
            database.close()
        IMAGES.mkdir(parents=True, exist_ok=True)
        with dashboard(home) as url, chromium() as browser:
            for name, where, scheme, width, height in SHOTS:
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(f"{url}/{where.format(**handles)}")
                page.get_by_role("heading").first.wait_for(timeout=60_000)
                page.wait_for_function(READY)
                page.wait_for_timeout(1500)  # charts draw themselves after the script has ended
                page.screenshot(path=IMAGES / f"{name}.png")
                page.close()
                print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
