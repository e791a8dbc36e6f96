"""Leaves one by one."""

from collections.abc import Callable, Iterator
from typing import Any

from pytree_core._core import MAX_DEPTH, flatten_one_level


def tree_iter(
    tree: Any,
    /,
    is_leaf: Callable[[Any], bool | None] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Iterator[Any]:
    """Iterate over the leaves of a tree, looking at a subtree only when it is reached.

    Faster than `tree_leaves` if it ends early. The children of a node are read together.

    Args:
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        RecursionError: On the way, if the tree is nested more than 1000 deep.

    Example:
        >>> import pytree_core as pt
        >>> next(leaf for leaf in pt.tree_iter({"b": [5, 7], "a": 2}) if leaf > 3)
        5
    """
    pending: list[Iterator[Any]] = [iter((tree,))]
    while pending:
        for subtree in pending[-1]:
            children, level = flatten_one_level(
                subtree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
            )
            if level.is_leaf():
                yield subtree
                continue
            if children:
                if len(pending) > MAX_DEPTH:
                    raise RecursionError(
                        f"the tree is nested more than {MAX_DEPTH} deep, or contains itself"
                    )
                pending.append(iter(children))
            break
        else:
            pending.pop()
