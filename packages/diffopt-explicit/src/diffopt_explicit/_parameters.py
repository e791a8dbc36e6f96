"""Parameters, what is made like them, and what must match them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import (
    place,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    wide,
)


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


def check_state(owner: Any, state: Any, kind: type) -> None:
    """Refuse the state of another kind of transform."""
    if not isinstance(state, kind):
        raise TypeError(
            f"`{type(owner).__name__}` needs the {kind.__name__} that its own `init` or `update` "
            f"returned, got a {type(state).__name__}."
        )


def check_alike(updates: Tree, params: Tree | None, *state: Tree) -> None:
    """Refuse updates that do not match, leaf by leaf, the parameters and a part of the state."""
    leaves = tree_leaves(updates)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        paths, leaves, _ = tree_flatten_with_path(updates)
        path, leaf = next(
            (path, leaf)
            for path, leaf in zip(paths, leaves, strict=True)
            if not isinstance(leaf, Tensor)
        )
        raise TypeError(
            f"Updates must be tensors or None: the one at {place(path)} is a {type(leaf).__name__}."
        )
    if params is not None:
        _check_match(updates, params, "parameter", _as_parameter)
    for tree in state:
        _check_match(updates, tree, "state", _as_state)


def check_movable(updates: Tree, params: Tree) -> None:
    """Refuse updates that cannot be added to the parameters, of whatever precision."""
    _check_match(updates, params, "parameter", lambda update, param: update.is_floating_point())


def _check_match(
    updates: Tree, others: Tree, what: str, is_right: Callable[[Tensor, Tensor], bool]
) -> None:
    leaves, spec = tree_flatten(updates, none_is_leaf=True)
    try:
        rows = zip(leaves, spec.flatten_up_to(others), strict=True)
    except ValueError as mismatch:
        raise ValueError(
            f"The updates have another structure than the {what}s: {mismatch}. Give each "
            "parameter its gradient, or None, in a tree like that of the parameters."
        ) from None
    for index, (update, other) in enumerate(rows):
        if update is None:
            continue
        alike = isinstance(other, Tensor) and update.shape == other.shape
        if not (alike and update.device == other.device and is_right(update, other)):
            path = tree_flatten_with_path(updates, none_is_leaf=True)[0][index]
            raise _mismatch(place(path), update, what, other)


def _as_parameter(update: Tensor, param: Tensor) -> bool:
    return update.dtype == param.dtype


def _as_state(update: Tensor, slot: Tensor) -> bool:
    # The state of half-precision parameters is in single precision.
    return update.dtype == slot.dtype or (
        update.is_floating_point()
        and torch.promote_types(update.dtype, torch.float32) == slot.dtype
    )


def _mismatch(where: str, update: Tensor, what: str, other: Any) -> Exception:
    if not isinstance(other, Tensor):
        return TypeError(f"There is an update at {where}, but its {what} is {other!r}.")
    if update.shape != other.shape:
        found, expected = f"shape {tuple(update.shape)}", f"{tuple(other.shape)}"
    elif update.device != other.device:
        found, expected = f"device {update.device}", f"{other.device}"
    else:
        found, expected = f"dtype {update.dtype}", f"{other.dtype}"
    advice = (
        "Convert the update, or take the gradient anew."
        if what == "parameter"
        else "Use the state that `init` or `update` returned for these very parameters."
    )
    return ValueError(f"The update at {where} has {found}, but its {what} {expected}. {advice}")
