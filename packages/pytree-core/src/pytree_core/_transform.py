"""Trees out of trees: side effects, transposition."""

from collections.abc import Callable, Iterable
from typing import Any

from pytree_core._core import TreeSpec, tree_flatten, tree_is_leaf, tree_structure

IsLeaf = Callable[[Any], bool | None]


def all_leaves(
    iterable: Iterable[Any],
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Tell whether all elements of an iterable are leaves.

    Args:
        iterable: The elements.
        is_leaf: Called on each element; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.all_leaves([1, "a"]), pt.all_leaves([1, []])
        (True, False)
    """
    return all(
        tree_is_leaf(element, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
        for element in iterable
    )


def tree_map_(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Call a function on each leaf for its side effects only.

    Args:
        func: Called with a leaf and what each of `rests` has there; its result is dropped.
        tree: Any tree.
        rests: Trees that have `tree` as a prefix.
        is_leaf: Called on each subtree of `tree`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        `tree` itself.

    Raises:
        ValueError: If a tree of `rests` differs from `tree` above its leaves.

    Example:
        >>> import pytree_core as pt
        >>> _ = pt.tree_map_(print, {"a": 1, "b": 2}, {"a": "one", "b": "two"})
        1 one
        2 two
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    columns = [leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    for row in zip(*columns, strict=True):
        func(*row)
    return tree


def tree_transpose(outer: TreeSpec, inner: TreeSpec, tree: Any, /) -> Any:
    """Turn an outer tree of inner trees into an inner tree of outer trees.

    Args:
        outer: The structure of `tree` above.
        inner: The structure below each leaf of `outer`.
        tree: A tree with the structure ``outer.compose(inner)``, or more below it.

    Raises:
        ValueError: If `tree` has another structure.

    Example:
        >>> import pytree_core as pt
        >>> outer, inner = pt.tree_structure({"a": 0, "b": 0}), pt.tree_structure((0, 0))
        >>> pt.tree_transpose(outer, inner, {"a": (1, 2), "b": (3, 4)})
        ({'a': 1, 'b': 3}, {'a': 2, 'b': 4})
    """
    leaves = outer.compose(inner).flatten_up_to(tree)
    width = inner.num_leaves
    return inner.unflatten([outer.unflatten(leaves[column::width]) for column in range(width)])


def tree_transpose_map(
    func: Callable[..., Any],
    tree: Any,
    /,
    *rests: Any,
    inner_treespec: TreeSpec | None = None,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Map a function that returns trees, and transpose the result.

    Args:
        func: Called with a leaf and what each of `rests` has there. Returns trees of one
            structure.
        tree: Any tree.
        rests: Trees that have `tree` as a prefix.
        inner_treespec: The structure that `func` returns, by default that of its first
            result.
        is_leaf: Called on each subtree of `tree` and of the first result; True makes it a
            leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        A tree as `func` returns it, of trees like `tree`.

    Raises:
        ValueError: If the results differ in structure, or `tree` has no leaves and
            `inner_treespec` is not given.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_transpose_map(lambda x: (x, x * x), [1, 2, 3])
        ([1, 2, 3], [1, 4, 9])
    """
    leaves, outer = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    columns = [leaves, *(outer.flatten_up_to(rest) for rest in rests)]
    results = [func(*row) for row in zip(*columns, strict=True)]
    if inner_treespec is None:
        if not results:
            raise ValueError("The tree has no leaves: give `inner_treespec`.")
        inner_treespec = tree_structure(
            results[0], is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
        )
    return tree_transpose(outer, inner_treespec, outer.unflatten(results))
