"""How errors name what was found in a tree."""

from collections import deque
from typing import Any


class MismatchError(Exception):
    """What was expected and what was found."""


def count(cls: Any, children: int) -> str:
    """Describe a type and a number of children: ``a list of 3``."""
    return f"{with_article(cls)} of {children}"


def describe(tree: Any) -> str:
    """Describe what was found in a tree: ``a list of 3``, ``None``, ``an int``."""
    if tree is None:
        return "None"
    return count(type(tree), len(tree)) if _has_length(tree) else with_article(type(tree))


def with_article(cls: Any) -> str:
    name = cls.__qualname__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _has_length(tree: object) -> bool:
    return isinstance(tree, (dict, list, tuple, deque))
