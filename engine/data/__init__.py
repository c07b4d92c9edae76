"""Dataset readers, one module a format, and the items they give."""
