"""Some leaves of a tree: by type, by predicate, by mask; and trees put together again."""

from collections.abc import Callable
from typing import Any

from pytree_core._broadcast import tree_broadcast_prefix
from pytree_core._core import tree_flatten, tree_leaves, tree_map

IsLeaf = Callable[[Any], bool | None]
Which = type | tuple[type, ...] | Callable[[Any], bool]


def tree_replace_nones(
    value: Any,
    tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    namespace: str = "",
) -> Any:
    """Put a leaf wherever a tree has None.

    Args:
        value: What to put there.
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_replace_nones(0, {"a": None, "b": [1, None]})
        {'a': 0, 'b': [1, 0]}
    """

    def replace(leaf: Any) -> Any:
        return value if leaf is None else leaf

    return tree_map(replace, tree, is_leaf=is_leaf, none_is_leaf=True, namespace=namespace)


def tree_map_only(
    which: Which,
    func: Callable[[Any], Any],
    tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Map a function over some leaves of a tree, and leave the others as they are.

    Args:
        which: A type, a tuple of types, or a predicate.
        func: Called with each leaf of these types, or with the property.
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_map_only(str, str.upper, {"a": "x", "b": [1, "y"]})
        {'a': 'X', 'b': [1, 'Y']}
    """
    chosen = _predicate(which)

    def map_chosen(leaf: Any) -> Any:
        return func(leaf) if chosen(leaf) else leaf

    return tree_map(
        map_chosen, tree, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )


def tree_all_only(
    which: Which,
    predicate: Callable[[Any], bool],
    tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Tell whether all leaves of some types have a property.

    Args:
        which: A type, a tuple of types, or a predicate.
        predicate: Called with each leaf of these types until one does not have the property.
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_all_only(int, lambda x: x > 0, {"a": 1, "b": "text"})
        True
    """
    chosen = _predicate(which)
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return all(predicate(leaf) for leaf in leaves if chosen(leaf))


def tree_any_only(
    which: Which,
    predicate: Callable[[Any], bool],
    tree: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> bool:
    """Tell whether any leaf of some types has a property.

    Args:
        which: A type, a tuple of types, or a predicate.
        predicate: Called with each leaf of these types until one has the property.
        tree: Any tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_any_only(int, lambda x: x > 1, {"a": 1, "b": "text"})
        False
    """
    chosen = _predicate(which)
    leaves = tree_leaves(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    return any(predicate(leaf) for leaf in leaves if chosen(leaf))


def tree_partition(
    predicate: Callable[[Any], bool],
    tree: Any,
    /,
    fillvalue: Any = None,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[Any, Any]:
    """Split a tree into two of its structure: the leaves with a property, and the others.

    `tree_combine` puts them together again.

    Args:
        predicate: Called once on each leaf.
        tree: Any tree.
        fillvalue: Takes the place of a leaf that is in the other tree.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Returns:
        The tree where `predicate` is true, and the tree where it is not.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_partition(lambda x: x > 1, {"a": 1, "b": [2, 3]})
        ({'a': None, 'b': [2, 3]}, {'a': 1, 'b': [None, None]})
    """
    leaves, treespec = tree_flatten(tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)
    chosen = [bool(predicate(leaf)) for leaf in leaves]
    pairs = list(zip(chosen, leaves, strict=True))
    return (
        treespec.unflatten(leaf if yes else fillvalue for yes, leaf in pairs),
        treespec.unflatten(fillvalue if yes else leaf for yes, leaf in pairs),
    )


def tree_filter(
    predicate: Callable[[Any], bool],
    tree: Any,
    /,
    fillvalue: Any = None,
    *,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Keep the leaves with a property: the first half of `tree_partition`.

    Args:
        predicate: Called once on each leaf.
        tree: Any tree.
        fillvalue: Takes the place of the other leaves. The default, None, is no leaf.
        is_leaf: Called on each subtree; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Example:
        >>> import pytree_core as pt
        >>> kept = pt.tree_filter(lambda x: x > 1, {"a": 1, "b": [2, 3]})
        >>> kept, pt.tree_leaves(kept)
        ({'a': None, 'b': [2, 3]}, [2, 3])
    """

    def keep(leaf: Any) -> Any:
        return leaf if predicate(leaf) else fillvalue

    return tree_map(keep, tree, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace)


def tree_combine(
    tree: Any,
    /,
    *rests: Any,
    fillvalue: Any = None,
    is_leaf: IsLeaf | None = None,
    none_is_leaf: bool = True,
    namespace: str = "",
) -> Any:
    """Fill the gaps of a tree from others, the inverse of `tree_partition`.

    Args:
        tree: A tree with `fillvalue` in some places.
        rests: Trees of the same structure. The first one with another value there fills a
            gap; if there is none it stays.
        fillvalue: The object that marks a gap, known by ``is``.
        is_leaf: Called on each subtree of `tree`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, by default, so that it can be a gap.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        ValueError: If the trees differ above the leaves.

    Example:
        >>> import pytree_core as pt
        >>> big, small = pt.tree_partition(lambda x: x > 1, {"a": 1, "b": [2, 3]})
        >>> pt.tree_combine(big, small)
        {'a': 1, 'b': [2, 3]}
    """

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not fillvalue), fillvalue)

    return tree_map(
        first, tree, *rests, is_leaf=is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )


def tree_select(
    mask: Any,
    first: Any,
    second: Any,
    /,
    is_leaf: IsLeaf | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> Any:
    """Take leaves from one tree where a mask is true, and from another where it is not.

    Args:
        mask: A bool, or a tree of bools that is a prefix of `first`.
        first: Any tree.
        second: A tree of the structure of `first`.
        is_leaf: Called on each subtree of `first`; True makes it a leaf.
        none_is_leaf: Count None as a leaf, not as a node without children.
        namespace: Which registered types are nodes, besides the global ones.

    Raises:
        ValueError: If the trees do not fit.

    Example:
        >>> import pytree_core as pt
        >>> pt.tree_select({"a": True, "b": False}, {"a": 1, "b": [2, 3]}, {"a": 4, "b": [5, 6]})
        {'a': 1, 'b': [5, 6]}
    """
    options: dict[str, Any] = {"none_is_leaf": none_is_leaf, "namespace": namespace}
    leaves, treespec = tree_flatten(first, is_leaf, **options)
    masks = treespec.flatten_up_to(tree_broadcast_prefix(mask, first, is_leaf, **options))
    rows = zip(masks, leaves, treespec.flatten_up_to(second), strict=True)
    return treespec.unflatten(a if yes else b for yes, a, b in rows)


def _predicate(which: Which) -> Callable[[Any], bool]:
    if isinstance(which, (type, tuple)):
        return lambda leaf: isinstance(leaf, which)
    if not callable(which):
        raise TypeError(f"Choose leaves by types or a predicate, not by {which!r}.")
    return which
