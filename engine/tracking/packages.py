"""The libraries behind the bridges, which are extras: imported when a bridge opens, and missed by name."""

from __future__ import annotations

import importlib
from types import ModuleType

from engine.errors import MissingPackage


def required(package: str, module: str | None = None) -> ModuleType:
    """A module of the package. Raises MissingPackage."""
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        raise MissingPackage(
            f"mirroring a run needs the package {package}, which cannot be imported ({error}): "
            "pip install 'rlx[tracking]'"
        ) from None
