"""Arithmetic on trees whose leaves know ``+``, ``-`` and ``*``."""

import functools
import operator
from typing import Any

from pytree_core._core import tree_map


def tree_add(a: Any, b: Any, /) -> Any:
    """Add two trees of one structure, leaf by leaf.

    Args:
        a: A tree of arrays.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> tree_add({"x": 1, "y": [2]}, {"x": 10, "y": [20]})
        {'x': 11, 'y': [22]}
    """
    return tree_map(operator.add, a, b)


def tree_sub(a: Any, b: Any, /) -> Any:
    """Subtract a tree from another of its structure, leaf by leaf.

    Args:
        a: A tree of arrays.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> tree_sub({"x": 11, "y": [22]}, {"x": 10, "y": [20]})
        {'x': 1, 'y': [2]}
    """
    return tree_map(operator.sub, a, b)


def tree_mul(a: Any, b: Any, /) -> Any:
    """Multiply two trees of one structure, leaf by leaf.

    Args:
        a: A tree of arrays.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> tree_mul((2, 3), (5, 7))
        (10, 21)
    """
    return tree_map(operator.mul, a, b)


def tree_scalar_mul(scalar: Any, tree: Any, /) -> Any:
    """Multiply each leaf of a tree by one number.

    Args:
        scalar: A number, or an array without dimensions.
        tree: A tree of arrays.

    Example:
        >>> tree_scalar_mul(2, {"x": 1, "y": [2]})
        {'x': 2, 'y': [4]}
    """
    return tree_map(functools.partial(operator.mul, scalar), tree)


def tree_add_scalar_mul(a: Any, scalar: Any, b: Any, /) -> Any:
    """Compute ``a + scalar * b``, leaf by leaf.

    Args:
        a: A tree of arrays.
        scalar: A number, or an array without dimensions.
        b: A tree shaped like `a`.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> tree_add_scalar_mul((1, 2), 10, (3, 4))
        (31, 42)
    """

    def add(x: Any, y: Any) -> Any:
        return x + scalar * y

    return tree_map(add, a, b)
