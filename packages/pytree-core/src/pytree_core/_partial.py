"""A function with some of its arguments, as a tree of these arguments."""

import functools
from typing import Any

from pytree_core._registry import register_pytree_node


class Partial(functools.partial[Any]):
    """A `functools.partial` that is a node: its leaves are those of the bound arguments.

    Args:
        func: The function, which is part of the structure.
        args: The first arguments of `func`.
        keywords: Keyword arguments of `func`.

    Example:
        >>> import pytree_core as pt
        >>> add = pt.Partial(lambda x, y: x + y, 1)
        >>> pt.tree_map(lambda x: 10 * x, add)(2)
        12
    """


def _flatten(partial: Partial) -> tuple[Any, ...]:
    return (partial.args, partial.keywords), partial.func, ("args", "keywords")


def _unflatten(func: Any, children: tuple[Any, Any]) -> Partial:
    args, keywords = children
    return Partial(func, *args, **keywords)


register_pytree_node(Partial, _flatten, _unflatten, namespace="")
