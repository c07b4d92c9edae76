"""Hypothesis strategies that several tests share."""

from __future__ import annotations

import re

from hypothesis import strategies as st

_LIKE_A_NUMBER = re.compile(r"[-+.]?[0-9][-+.0-9a-fA-FeExo]*")


def words(max_size: int) -> st.SearchStrategy[str]:
    """Text that a YAML 1.1 writer and a YAML 1.2 reader agree on.

    `0E0` and `08` are words to the one and numbers to the other."""
    printable = st.characters(exclude_categories=("Cs", "Cc", "Cn"))
    return st.text(printable, max_size=max_size).filter(lambda text: not _LIKE_A_NUMBER.fullmatch(text))
