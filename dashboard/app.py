"""The dashboard's frame: pages in a bar at the top. Started by `rlx dashboard`; settings lie in `.streamlit/`.

Run as a script by Streamlit, so the folder that holds our packages is put on the path first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

# Pages have no icons: Streamlit would fetch them from the network for the browser's tab.
PAGES = (
    st.Page("views/runs.py", title="Runs", url_path="runs", default=True),
    st.Page("views/run.py", title="Run", url_path="run"),
    st.Page("views/compare.py", title="Compare", url_path="compare"),
)
# The built-in margins and figures are for a page of text; ours holds tables and charts, down to a window of 900 px.
# Live parts run again every few seconds, and the sign for a running script would come and go as often.
STYLE = """<style>
.stMainBlockContainer { padding-left: 2.5rem; padding-right: 2.5rem; max-width: 1800px; }
[data-testid="stMetricValue"] { font-size: 1.6rem; }
.st-key-plan { overflow-x: auto; }
.stStatusWidget { display: none; }
</style>"""

page = st.navigation(PAGES, position="top")
st.set_page_config(page_title=f"{page.title} · rlx", page_icon=str(HERE / "icon.svg"), layout="wide")
st.html(STYLE)
page.run()
