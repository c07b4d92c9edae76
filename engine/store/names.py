"""How runs are called: by their spec's name and a counter."""

from __future__ import annotations


def handle_name(spec_name: str) -> str:
    """A spec's name as it begins a handle: `best_lang` is `best-lang`."""
    return spec_name.replace("_", "-")
