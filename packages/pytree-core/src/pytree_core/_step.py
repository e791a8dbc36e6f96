"""How one step down a tree is spelled."""

from typing import Any


def step(cls: Any, entry: Any) -> str:
    """Spell one step down from a node of type `cls`: ``['key']``, ``[0]`` or ``.name``."""
    named = isinstance(entry, str) and not issubclass(cls, dict)
    return f".{entry}" if named else f"[{entry!r}]"
