"""Maps over trees in which an update may be missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytree_core import tree_map, tree_map_with_path
from torch import Tensor

from diffopt_explicit._transform import Tree


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


def detach(tree: Tree) -> Tree:
    """The tree with its tensors cut off from the graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def zeros_like(params: Tree) -> Tree:
    """Zeros shaped like each parameter; refuses leaves that no optimizer could move."""
    return tree_map_with_path(_zero, params)


def _zero(path: tuple[Any, ...], param: Any) -> Tensor:
    if not isinstance(param, Tensor):
        raise TypeError(
            f"Parameters must be tensors: the leaf at {_where(path)} is a {type(param).__name__}."
        )
    if not param.is_floating_point():
        raise TypeError(
            f"Parameters must be floating-point tensors: the leaf at {_where(path)} has dtype "
            f"{param.dtype}. Leave buffers and counters out of the tree of parameters."
        )
    return torch.zeros_like(param, requires_grad=False)


def _where(path: tuple[Any, ...]) -> str:
    return "".join(f"[{entry!r}]" for entry in path) or "the root"
