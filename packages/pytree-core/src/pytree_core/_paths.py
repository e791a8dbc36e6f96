"""Trees with the path to each leaf."""

from collections.abc import Callable
from typing import Any

from pytree_core._core import TreeSpec, tree_flatten, tree_structure

Path = tuple[Any, ...]


def tree_paths(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool | None] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Path]:
    """List the path to each leaf: a tuple of keys, indices and names of fields.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        One path a leaf, in the order of `tree_leaves`.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_paths({"b": [1, 2], "a": 3})
        [('a',), ('b', 0), ('b', 1)]
    """
    return tree_structure(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace).paths()


def tree_flatten_with_path(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool | None] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[list[Path], list[Any], TreeSpec]:
    """Take a tree apart into paths, leaves and structure.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        ``(paths, leaves, treespec)``.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_flatten_with_path({"a": (1, None)})
        ([('a', 0)], [1], TreeSpec({'a': (*, None)}))
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return treespec.paths(), leaves, treespec


def tree_map_with_path(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: Callable[[Any], bool | None] | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Map ``func(path, leaf, *others)`` over the leaves of a tree.

    Args:
        func: Called with the path of a leaf, the leaf, and what each of `rests` has there.
        tree: Any tree.
        rests: Trees that have `tree` as a prefix.
        is_leaf: Called on each subtree of `tree`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        A tree like `tree` of the results.

    Raises:
        ValueError: If a tree of `rests` differs from `tree` above its leaves.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_map_with_path(lambda path, x: (path, x), [5, {"k": 6}])
        [((0,), 5), {'k': ((1, 'k'), 6)}]
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    columns = (treespec.flatten_up_to(rest) for rest in rests)
    return treespec.unflatten(map(func, treespec.paths(), leaves, *columns))
