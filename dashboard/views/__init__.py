"""One module a page; Streamlit runs each as a script.

The folder must not be called `pages`: beside the main script Streamlit takes one of that name for its older kind of
multipage app, and a link that is opened before any other would run the page without `app.py` around it.
"""
