"""The functions of the core, in Python."""

from collections.abc import Callable, Iterable
from typing import Any

from pytree_core._reference.kinds import (
    MAPPINGS,
    Kind,
    class_of,
    items_of,
    kind_of,
    sorted_keys,
    struct_sequence_entries,
)
from pytree_core._reference.treespec import LEAF, TreeSpec, check_treespec
from pytree_core._tables import check_namespace, lookup, parts

IsLeaf = Callable[[Any], "bool | None"]


def is_declared_leaf(is_leaf: IsLeaf | None, tree: Any) -> bool:
    """Call a predicate, if there is one, which must return a bool or None."""
    verdict = is_leaf is not None and is_leaf(tree)
    if class_of(verdict) not in (bool, type(None)):
        raise TypeError(f"`is_leaf` must return a bool, got {verdict!r}")
    return bool(verdict)


def tree_flatten(
    tree: Any, /, is_leaf: IsLeaf | None = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> tuple[list[Any], TreeSpec]:
    """See `pytree_core.tree_flatten`."""
    leaves: list[Any] = []
    check_namespace(namespace)

    def flatten(tree: Any) -> TreeSpec:
        if is_declared_leaf(is_leaf, tree):
            leaves.append(tree)
            return LEAF
        kind = kind_of(tree, none_is_leaf, namespace)
        cls = class_of(tree)
        metadata: Any = None
        children: Iterable[Any] = ()
        registration = None
        entries: tuple[Any, ...] = ()
        keys: tuple[Any, ...] = ()
        insertion: tuple[Any, ...] = ()
        match kind:
            case Kind.LEAF:
                leaves.append(tree)
                return LEAF
            case Kind.CUSTOM:
                registration = lookup(cls, namespace)
                assert registration
                children, metadata, entries = parts(registration, tree)
            case kind if kind in MAPPINGS:
                items = items_of(tree)
                insertion = tuple(tree if kind is Kind.ORDERED_DICT else items)
                keys = insertion if kind is Kind.ORDERED_DICT else sorted_keys(insertion)
                metadata = tree.default_factory if kind is Kind.DEFAULT_DICT else None
                children, entries = [items[key] for key in keys], keys
            case Kind.DEQUE:
                metadata, children = tree.maxlen, list(tree)
            case Kind.TUPLE | Kind.LIST | Kind.NAMED_TUPLE | Kind.STRUCT_SEQUENCE:
                children = tree
            case _:
                pass  # None has no children
        nested = tuple(map(flatten, children))
        if kind is Kind.NAMED_TUPLE:
            entries = cls._fields
        elif kind is Kind.STRUCT_SEQUENCE:
            entries = struct_sequence_entries(cls)
        elif not entries:
            entries = tuple(range(len(nested)))
        return TreeSpec(kind, cls, metadata, keys, nested, registration, entries, insertion)

    return leaves, flatten(tree)


def tree_unflatten(treespec: TreeSpec, leaves: Iterable[Any], /) -> Any:
    """See `pytree_core.tree_unflatten`."""
    check_treespec(treespec)
    return treespec.unflatten(leaves)


def tree_leaves(tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any) -> list[Any]:
    """See `pytree_core.tree_leaves`."""
    return tree_flatten(tree, is_leaf, **options)[0]


def tree_structure(tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any) -> TreeSpec:
    """See `pytree_core.tree_structure`."""
    return tree_flatten(tree, is_leaf, **options)[1]


def tree_is_leaf(
    tree: Any, /, is_leaf: IsLeaf | None = None, *, none_is_leaf: bool = False, namespace: str = ""
) -> bool:
    """See `pytree_core.tree_is_leaf`."""
    declared = is_declared_leaf(is_leaf, tree)
    return declared or kind_of(tree, none_is_leaf, namespace) is Kind.LEAF


def tree_map(func: Callable[..., Any], tree: Any, /, *rests: Any, **options: Any) -> Any:
    """See `pytree_core.tree_map`."""
    leaves, treespec = tree_flatten(tree, **options)
    columns = [leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    return treespec.unflatten([func(*row) for row in zip(*columns, strict=True)])


def tree_flatten_with_path(
    tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any
) -> tuple[list[tuple[Any, ...]], list[Any], TreeSpec]:
    """See `pytree_core.tree_flatten_with_path`."""
    leaves, treespec = tree_flatten(tree, is_leaf, **options)
    return treespec.paths(), leaves, treespec


def tree_map_with_path(func: Callable[..., Any], tree: Any, /, *rests: Any, **options: Any) -> Any:
    """See `pytree_core.tree_map_with_path`."""
    leaves, treespec = tree_flatten(tree, **options)
    columns = [treespec.paths(), leaves, *(treespec.flatten_up_to(rest) for rest in rests)]
    return treespec.unflatten([func(*row) for row in zip(*columns, strict=True)])


def flatten_one_level(
    tree: Any, /, is_leaf: IsLeaf | None = None, **options: Any
) -> tuple[list[Any], TreeSpec]:
    """See `pytree_core._core.flatten_one_level`."""
    below = iter([False])  # the root is asked about first
    return tree_flatten(
        tree, lambda t: next(below, True) or bool(is_leaf and is_leaf(t)), **options
    )


def clear_cache() -> None:
    """See `pytree_core.clear_cache`; nothing is kept here."""


def publish(namespace: str, registrations: dict[type, Any]) -> None:
    """Replace the registrations of a namespace, which are read where they are kept."""
