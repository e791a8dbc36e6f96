"""Where two trees differ in structure, told in words."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from pytree_core._core import TreeSpec, flatten_one_level, mismatches, tree_structure
from pytree_core._step import step

IsLeaf = Callable[[Any], bool | None]


def prefix_errors(
    prefix_tree: Any,
    full_tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[Callable[[str], ValueError]]:
    """List every place where one tree fails to be a prefix of another.

    Args:
        prefix_tree: The tree that should be a prefix of `full_tree`.
        full_tree: The full tree.
        is_leaf: Called on each subtree of `prefix_tree`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        Functions that make the errors, given the name of the argument to blame. Empty if
        `prefix_tree` is a prefix.

    Example:
        >>> import pytree_core as pt
        >>> errors = pt.prefix_errors({"a": [1, 2]}, {"a": [1, 2, 3]})
        >>> errors[0]("in_axes")
        ValueError("in_axes at ['a']: expected a list of 2, got a list of 3")
    """
    treespec = tree_structure(prefix_tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return [functools.partial(_blame, text) for text in mismatches(treespec, full_tree)]


def equality_errors(
    first: Any,
    second: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> list[str]:
    """List every place where two trees differ in structure.

    Args:
        first: A tree.
        second: Another tree. A dict may be of another kind of dict than in `first`.
        is_leaf: Called on each subtree of both; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        One text a place: where it is, what `first` has there and what `second` has. Empty if
        the leaves of both correspond.

    Example:
        >>> import pytree_core as pt
        >>> for text in pt.equality_errors({"a": [1, 2], "b": 3}, {"a": [1], "b": (4,)}):
        ...     print(text)
        at ['a']: expected a list of 2, got a list of 1
        at ['b']: expected a leaf, got TreeSpec((*,))
    """
    options: dict[str, Any] = {"none_is_leaf": none_is_leaf, "namespace": namespace}

    def compare(first: Any, second: Any, path: str) -> Iterator[str]:
        children, level = flatten_one_level(first, is_leaf, **options)
        other = tree_structure(second, is_leaf, **options)
        difference = mismatch(level, second, path)
        if level.is_leaf() and not other.is_leaf():
            yield f"at {path or 'the root'}: expected a leaf, got {other}"
        elif difference is not None:
            yield difference
        elif other.is_leaf() and not level.is_leaf():
            yield f"at {path or 'the root'}: expected {level}, got a leaf"
        elif not level.is_leaf():
            below = level.flatten_up_to(second)
            for entry, child, there in zip(level.entries, children, below, strict=True):
                yield from compare(child, there, path + step(level.type, entry))

    return list(compare(first, second, ""))


def mismatch(level: TreeSpec, tree: Any, path: str) -> str | None:
    """Say how the subtree at `path` differs from what is expected there, if it does."""
    differences = mismatches(level, tree)
    return differences[0].replace("the root", path or "the root", 1) if differences else None


def _blame(text: str, name: str) -> ValueError:
    return ValueError(f"{name} {text}")
