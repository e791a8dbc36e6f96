"""Structures made of structures."""

from typing import Any

from pytree_core._core import TreeSpec, flatten_one_level, tree_structure


def treespec_leaf() -> TreeSpec:
    """Return the structure of a leaf.

    Example:
        >>> import pytree_core as pt
        >>> pt.treespec_leaf()
        TreeSpec(*)
    """
    return tree_structure(0)


def treespec_from_collection(
    collection: Any,
    /,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> TreeSpec:
    """Return the structure of a node whose children have the given structures.

    Args:
        collection: A dict, list, named tuple or any other node, of structures.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        TypeError: If a child is not a structure.
        RecursionError: If the result is nested more than 1000 deep.

    Example:
        >>> import pytree_core as pt
        >>> leaf = pt.treespec_leaf()
        >>> pair = pt.treespec_from_collection((leaf, leaf))
        >>> pt.treespec_from_collection({"b": leaf, "a": pair})
        TreeSpec({'a': (*, *), 'b': *})
    """
    children, level = flatten_one_level(collection, none_is_leaf=none_is_leaf, namespace=namespace)
    if level.is_leaf():
        return level
    wrong = [child for child in children if not isinstance(child, TreeSpec)]
    if wrong:
        raise TypeError(f"The children must be structures, got {wrong[0]!r}.")
    return level.graft(children)
