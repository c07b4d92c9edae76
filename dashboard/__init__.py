"""The Streamlit app over the store: pages are glue, `queries` reads, `charts` draws, `state` remembers in the URL."""
