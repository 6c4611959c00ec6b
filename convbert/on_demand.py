"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def on_demand(
    package: str, names: Collection[str], *, modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and the ``__dir__`` of a package some of whose names have torch behind them.

    A process that only reads, tokenises or writes then does without torch, which takes seconds to import.

    Args:
        package: its ``__name__``.
        names: its ``__all__``.
        modules: those of the package that define what is not imported with it.
    """

    def get(name: str) -> Any:
        if name in modules:
            return _imported(f"{package}.{name}")
        for module in modules if name in names else ():
            home = _imported(f"{package}.{module}")
            if hasattr(home, name):
                return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def all_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names, *modules})

    return get, all_names


def _imported(module: str) -> ModuleType:
    try:
        return import_module(module)
    except AttributeError as error:  # which Python would take for a name that is not there, and not tell
        raise ImportError(f"{module} cannot be imported: {error}") from error
