"""Reductions over the leaves of a tree."""

import functools
from collections.abc import Callable
from typing import Any

from pytree_core._core import tree_leaves

IsLeaf = Callable[[Any], bool | None]
_MISSING: Any = object()


def tree_reduce(
    func: Callable[[Any, Any], Any],
    tree: Any,
    /,
    initial: Any = _MISSING,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Fold the leaves from left to right: ``func(func(x0, x1), x2)``.

    Args:
        func: Takes what was folded so far and the next leaf.
        tree: Any tree.
        initial: Comes before the first leaf, and is the result without leaves.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        TypeError: If there are no leaves and no `initial`.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_reduce(lambda x, y: x * y, {"a": 2, "b": [3, 7]})
        42
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    start = () if initial is _MISSING else (initial,)
    return functools.reduce(func, leaves, *start)


def tree_sum(
    tree: Any,
    /,
    start: Any = 0,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Add the leaves to `start`.

    Args:
        tree: Any tree.
        start: What the first leaf is added to.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_sum({"a": 1, "b": (2, 3)})
        6
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return sum(leaves, start)


def tree_max(
    tree: Any,
    /,
    *,
    default: Any = _MISSING,
    key: Callable[[Any], Any] | None = None,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Find the largest leaf, the first of them if there are several.

    Args:
        tree: Any tree.
        default: The result without leaves.
        key: Compares leaves by ``key(leaf)``.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        ValueError: If there are no leaves and no `default`.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_max({"a": 1, "b": (5, 3)})
        5
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return _extreme(max, leaves, default, key)


def tree_min(
    tree: Any,
    /,
    *,
    default: Any = _MISSING,
    key: Callable[[Any], Any] | None = None,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Find the smallest leaf, the first of them if there are several.

    Args:
        tree: Any tree.
        default: The result without leaves.
        key: Compares leaves by ``key(leaf)``.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        ValueError: If there are no leaves and no `default`.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_min([], default=0)
        0
    """
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return _extreme(min, leaves, default, key)


def tree_all(
    tree: Any,
    /,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Tell whether all leaves are true.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_all({"a": True, "b": None}), pt.tree_all([None], none_is_leaf=True)
        (True, False)
    """
    return all(tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))


def tree_any(
    tree: Any,
    /,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Tell whether any leaf is true.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_any([0, [0, 1]]), pt.tree_any([])
        (True, False)
    """
    return any(tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace))


def _extreme(
    choose: Callable[..., Any], leaves: list[Any], default: Any, key: Callable[[Any], Any] | None
) -> Any:
    return choose(leaves, key=key, **({} if default is _MISSING else {"default": default}))
