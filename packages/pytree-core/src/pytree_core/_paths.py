"""The path to each leaf."""

from collections.abc import Callable
from typing import Any

from pytree_core._core import tree_structure

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
