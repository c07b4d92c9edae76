"""What has to be done to a module as soon as it is there, whoever imports it, and whenever."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def once_imported(name: str, act: Callable[[], None]) -> None:
    """Call `act` right after the top-level module `name` is imported for the first time; now where it has been.

    Takes the place of what was asked for the same module before.
    """
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if not (isinstance(finder, _Watcher) and finder.name == name)
    ]
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Watcher(name, act))


class _Watcher(MetaPathFinder):
    """Finds the module as it is found without us, and hears when it has been executed.

    To be asked for it is no import yet: libraries ask whether a module could be imported.
    """

    def __init__(self, name: str, act: Callable[[], None]) -> None:
        self.name, self._act, self._asking = name, act, False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name or self._asking:
            return None
        self._asking = True
        try:
            spec = find_spec(name)
        finally:
            self._asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                self._act()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader alone
        return spec
