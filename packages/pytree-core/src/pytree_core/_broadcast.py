"""Trees stretched to the structure of other trees."""

import functools
from collections.abc import Callable
from typing import Any

from pytree_core._core import (
    flatten_one_level,
    tree_flatten,
    tree_is_leaf,
    tree_leaves,
    tree_map,
    tree_structure,
)
from pytree_core._differences import mismatch
from pytree_core._step import step

IsLeaf = Callable[[Any], bool | None]


def tree_broadcast_prefix(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Repeat each leaf of a prefix for all leaves that the full tree has there.

    Args:
        prefix_tree: A tree that is a prefix of `full_tree`.
        full_tree: The tree whose structure the result takes.
        is_leaf: Called on each subtree of both; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        ValueError: If `prefix_tree` is not a prefix of `full_tree`.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_broadcast_prefix([1, 2], [{"a": 0, "b": 0}, 0])
        [{'a': 1, 'b': 1}, 2]
    """
    leaves, treespec = tree_flatten(
        prefix_tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    subtrees = treespec.flatten_up_to(full_tree)
    structure = functools.partial(
        tree_structure, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    return treespec.unflatten(map(_fill, leaves, map(structure, subtrees)))


def broadcast_prefix(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Any]:
    """List the leaves of a prefix, each as often as the full tree has leaves there.

    Args:
        prefix_tree: A tree that is a prefix of `full_tree`.
        full_tree: The tree that tells how often.
        is_leaf: Called on each subtree of both; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        One value for each leaf of `full_tree`.

    Raises:
        ValueError: If `prefix_tree` is not a prefix of `full_tree`.

    Example:
        >>> import pytree_core as pt
        >>> pt.broadcast_prefix([1, 2], [{"a": 0, "b": 0}, 0])
        [1, 1, 2]
    """
    leaves, treespec = tree_flatten(
        prefix_tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    result: list[Any] = []
    for leaf, subtree in zip(leaves, treespec.flatten_up_to(full_tree), strict=True):
        below = tree_leaves(subtree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
        result.extend([leaf] * len(below))
    return result


def tree_broadcast_common(
    first: Any,
    second: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Any, Any]:
    """Repeat leaves of two trees until they have the same structure.

    Args:
        first: A tree.
        second: A tree that differs from `first` only below leaves of either.
        is_leaf: Called on each subtree of both; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        Both trees.

    Raises:
        ValueError: If they differ above the leaves.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_broadcast_common([1, (2, 3)], [(4, 5), 6])
        ([(1, 1), (2, 3)], [(4, 5), (6, 6)])
    """
    options: dict[str, Any] = {"none_is_leaf": none_is_leaf, "namespace": namespace}

    def meet(first: Any, second: Any, path: str) -> tuple[Any, Any]:
        if tree_is_leaf(first, is_leaf, **options):
            return _fill(first, tree_structure(second, is_leaf, **options)), second
        if tree_is_leaf(second, is_leaf, **options):
            return first, _fill(second, tree_structure(first, is_leaf, **options))
        children, level = flatten_one_level(first, **options)
        difference = mismatch(level, second, path)
        if difference is not None:
            raise ValueError(difference)
        pairs = [
            meet(child, other, path + step(level.type, entry))
            for entry, child, other in zip(
                level.entries, children, level.flatten_up_to(second), strict=True
            )
        ]
        return level.unflatten(a for a, _ in pairs), level.unflatten(b for _, b in pairs)

    return meet(first, second, "")


def broadcast_common(
    first: Any,
    second: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[list[Any], list[Any]]:
    """List the leaves of two trees, each as often as the other has leaves there.

    Args:
        first: A tree.
        second: A tree that differs from `first` only below leaves of either.
        is_leaf: Called on each subtree of both; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        Two lists of the same length.

    Raises:
        ValueError: If they differ above the leaves.

    Example:
        >>> import pytree_core as pt
        >>> pt.broadcast_common([1, (2, 3)], [(4, 5), 6])
        ([1, 1, 2, 3], [4, 5, 6, 6])
    """
    options: dict[str, Any] = {"none_is_leaf": none_is_leaf, "namespace": namespace}
    trees = tree_broadcast_common(first, second, is_leaf, **options)
    a, b = (tree_leaves(tree, is_leaf, **options) for tree in trees)
    return a, b


def tree_broadcast_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Map a function over trees any of which may be a prefix of the others.

    Args:
        func: Called with a leaf of each tree, repeated where other trees have more.
        tree: Any tree.
        rests: Trees that differ from `tree`, and from each other, only below leaves.
        is_leaf: Called on each subtree of all; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        A tree of the results, with the structure of all trees together.

    Raises:
        ValueError: If they differ above the leaves.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_broadcast_map(lambda x, y: x + y, {"a": 1, "b": (2, 3)}, {"a": [4, 5], "b": 6})
        {'a': [5, 6], 'b': (8, 9)}
    """
    options: dict[str, Any] = {"none_is_leaf": none_is_leaf, "namespace": namespace}
    whole = tree
    for rest in rests:
        whole, _ = tree_broadcast_common(whole, rest, is_leaf, **options)
    wide = [tree_broadcast_prefix(rest, whole, is_leaf, **options) for rest in (tree, *rests)]
    return tree_map(func, *wide, is_leaf=is_leaf, **options)


def _fill(value: Any, treespec: Any) -> Any:
    return treespec.unflatten([value] * treespec.num_leaves)
