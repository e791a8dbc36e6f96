"""Structures folded and rebuilt, node by node."""

from collections.abc import Callable, Iterable
from typing import Any

from pytree_core._core import TreeSpec


def walk(
    treespec: TreeSpec,
    leaves: Iterable[Any],
    f_node: Callable[[TreeSpec, tuple[Any, ...]], Any] | None = None,
    f_leaf: Callable[[Any], Any] | None = None,
) -> Any:
    """Fold a tree from its leaves to its root; see `TreeSpec.walk`."""
    leaves = list(leaves)
    if len(leaves) != treespec.num_leaves:
        raise ValueError(f"expected {treespec.num_leaves} leaves, got {len(leaves)}")
    found = iter(leaves if f_leaf is None else map(f_leaf, leaves))
    done: list[Any] = []
    for level in treespec.levels():
        if level.is_leaf():
            done.append(next(found))
            continue
        base = len(done) - level.num_children
        children = tuple(done[base:])
        done[base:] = [level.unflatten(children) if f_node is None else f_node(level, children)]
    return done.pop()


def transform(
    treespec: TreeSpec,
    f_node: Callable[[TreeSpec], TreeSpec] | None = None,
    f_leaf: Callable[[TreeSpec], TreeSpec] | None = None,
) -> TreeSpec:
    """Replace nodes and leaves by structures; see `TreeSpec.transform`."""
    done: list[TreeSpec] = []
    for level in treespec.levels():
        replace = f_leaf if level.is_leaf() else f_node
        new: Any = level if replace is None else replace(level)
        if not isinstance(new, TreeSpec):
            raise TypeError(f"Structures must be replaced by structures, got {new!r} for {level}.")
        if level.is_leaf():
            done.append(new)
            continue
        base = len(done) - level.num_children
        if new.num_leaves != level.num_children:
            raise ValueError(
                f"{level} must be replaced by a structure of {level.num_children} leaves, got {new}"
            )
        done[base:] = [new.graft(done[base:])]
    return done.pop()
