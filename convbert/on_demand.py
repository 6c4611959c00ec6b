"""Names of a package that are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any


def on_demand(package: str, names: Collection[str], *, modules: Sequence[str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package some of whose names have torch behind them.

    A process that only reads, tokenises or writes then does without torch, which takes seconds to import.

    Args:
        package: its ``__name__``.
        names: its ``__all__``.
        modules: those of the package that define what is not imported with it.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807, Python's name for it
        for module in modules if name in names else ():
            home = import_module(f"{package}.{module}")
            if hasattr(home, name):
                return getattr(home, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__
