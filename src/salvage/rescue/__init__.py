"""The closed loop: sample, verify, score, route, intervene, and round again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from salvage.rescue.loop import Budget, pair, rescue

__all__ = ["Budget", "pair", "rescue"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the loop brings the tables' libraries along."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from salvage.rescue import loop

    return getattr(loop, name)
