"""Parameters, what is made like them, and what must match them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import place, tree_flatten, tree_flatten_with_path, tree_map, wide


def check_params(params: Tree) -> None:
    """Refuse leaves that no optimizer could move."""
    for path, param in zip(*tree_flatten_with_path(params)[:2], strict=True):
        if not isinstance(param, Tensor):
            raise TypeError(
                f"Parameters must be tensors: the leaf at {place(path)} is a "
                f"{type(param).__name__}. Leave it out of the tree, or make it a tensor."
            )
        if param.is_complex():
            raise TypeError(
                f"Parameters must be real: the leaf at {place(path)} has dtype {param.dtype}. "
                "Optimize `torch.view_as_real` of it."
            )
        if not param.is_floating_point():
            raise TypeError(
                f"Parameters must be floating-point tensors: the leaf at {place(path)} has dtype "
                f"{param.dtype}. Leave buffers and counters out of the tree of parameters."
            )


def zeros_like(params: Tree) -> Tree:
    """Zeros shaped like each parameter, in float32 for those of less precision."""
    check_params(params)
    return tree_map(lambda param: wide(torch.zeros_like(param, requires_grad=False)), params)


def required(params: Tree | None, what: str) -> Tree:
    """The parameters, without which a transform cannot do its work."""
    if params is None:
        raise ValueError(f"{what} needs `params`: call `update(gradients, state, params)`.")
    return params


def check_alike(updates: Tree, params: Tree | None, *state: Tree) -> None:
    """Refuse updates that do not match, leaf by leaf, the parameters and a part of the state."""
    leaves, spec = tree_flatten(updates, none_is_leaf=True)
    others = [("parameter", params)] if params is not None else []
    for what, tree in [*others, *[("state", tree) for tree in state]]:
        try:
            rows = zip(leaves, spec.flatten_up_to(tree), strict=True)
        except ValueError as mismatch:
            raise ValueError(
                f"The updates have another structure than the {what}s: {mismatch}. Give each "
                f"parameter its gradient, or None, in a tree like that of the parameters."
            ) from None
        for index, (update, other) in enumerate(rows):
            if update is not None and not _match(update, other, what):
                path = tree_flatten_with_path(updates, none_is_leaf=True)[0][index]
                raise _mismatch(place(path), update, what, other)


def _match(update: Any, other: Any, what: str) -> bool:
    if not isinstance(update, Tensor) or not isinstance(other, Tensor):
        return False
    if update.shape != other.shape or update.device != other.device:
        return False
    if update.dtype == other.dtype:
        return True
    # The state of half-precision parameters is in single precision.
    return what == "state" and torch.promote_types(update.dtype, torch.float32) == other.dtype


def _mismatch(where: str, update: Any, what: str, other: Any) -> Exception:
    if not isinstance(update, Tensor):
        return TypeError(
            f"Updates must be tensors or None: the one at {where} is a {type(update).__name__}."
        )
    if not isinstance(other, Tensor):
        return TypeError(f"There is an update at {where}, but its {what} is {other!r}.")
    if update.shape != other.shape:
        found, expected = f"shape {tuple(update.shape)}", f"{tuple(other.shape)}"
    elif update.dtype != other.dtype:
        found, expected = f"dtype {update.dtype}", f"{other.dtype}"
    else:
        found, expected = f"device {update.device}", f"{other.device}"
    advice = (
        "Convert the gradient, or take it anew."
        if what == "parameter"
        else "Use the state that `init` or `update` returned for these very parameters."
    )
    return ValueError(f"The update at {where} has {found}, but its {what} {expected}. {advice}")
