"""Maps over trees in which an update may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import pytree_core
import torch
from torch import Tensor

from diffopt_explicit._transform import Tree

_NARROW = {torch.float16, torch.bfloat16}
P = ParamSpec("P")
R = TypeVar("R")


def _teach_dynamo() -> None:
    # Here, because it takes torch seconds to load its compiler.
    from pytree_core.integrations.torch import register_with_dynamo

    register_with_dynamo()


# What `torch.compiler.assume_constant_result` does: call it while tracing, not in the graph.
_teach_dynamo._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _traceable(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which `torch.compile` follows without a graph break."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            _teach_dynamo()
        return function(*args, **kwargs)

    return call


tree_flatten = _traceable(pytree_core.tree_flatten)
tree_flatten_with_path = _traceable(pytree_core.tree_flatten_with_path)
tree_leaves = _traceable(pytree_core.tree_leaves)
tree_map = _traceable(pytree_core.tree_map)
tree_map_with_path = _traceable(pytree_core.tree_map_with_path)
tree_unflatten = _traceable(pytree_core.tree_unflatten)


def map_present(func: Callable[..., Any], updates: Tree, *rests: Tree) -> Tree:
    """Map `func` over the updates that are there, and keep `None` where there is none."""

    def apply(update: Tensor | None, *others: Any) -> Any:
        return None if update is None else func(update, *others)

    return tree_map(apply, updates, *rests, none_is_leaf=True)


def advance(func: Callable[..., Any], state: Tree, updates: Tree, *rests: Tree) -> Tree:
    """Map `func` over the state of the parameters that have an update, and keep the others'."""

    def apply(update: Tensor | None, old: Any, *others: Any) -> Any:
        return old if update is None else func(old, update, *others)

    return tree_map(apply, updates, state, *rests, none_is_leaf=True)


class Present:
    """The parameters that have an update: their leaves in any tree like the updates."""

    def __init__(self, updates: Tree) -> None:
        leaves, self._spec = tree_flatten(updates, none_is_leaf=True)
        self._indices = [index for index, leaf in enumerate(leaves) if leaf is not None]
        self.count = len(self._indices)

    def pick(self, tree: Tree) -> list[Any]:
        """Their leaves."""
        leaves = self._spec.flatten_up_to(tree)
        return [leaves[index] for index in self._indices]

    def put(self, tree: Tree, leaves: Iterable[Any]) -> Tree:
        """The tree with new leaves in their places."""
        merged = self._spec.flatten_up_to(tree)
        for index, leaf in zip(self._indices, leaves, strict=True):
            merged[index] = leaf
        return tree_unflatten(self._spec, merged)


def detach(tree: Tree) -> Tree:
    """The tree with its tensors cut off from the graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def wide(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it was of less precision."""
    return tensor.to(torch.float32) if tensor.dtype in _NARROW else tensor


def place(path: tuple[Any, ...]) -> str:
    """Where in a tree a leaf stands, for messages."""
    return "".join(f"[{entry!r}]" for entry in path) or "the root"
