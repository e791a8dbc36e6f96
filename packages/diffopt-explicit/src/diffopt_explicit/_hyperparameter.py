"""Hyperparameters: a number, a tensor that may be learned, a schedule of either, or a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeAlias, TypeVar, cast

import torch
from pytree_core import TreeSpec
from torch import Tensor

from diffopt_explicit._transform import Tree
from diffopt_explicit._trees import place, tree_flatten, tree_flatten_with_path, tree_unflatten

Scalar: TypeAlias = float | Tensor
Schedule: TypeAlias = Callable[[int], Scalar]
Hyperparameter: TypeAlias = Scalar | Schedule | Tree
"""A number, a 0-d tensor (learned if it requires grad), a function of the step (0, 1, ...) to
either, or a tree of numbers and tensors shaped like the parameters."""

R = TypeVar("R")


def at_step(hyperparameter: Hyperparameter, step: int) -> Scalar | Tree:
    """The value that a hyperparameter has in this step, the first being 0."""
    if isinstance(hyperparameter, Tensor) or not callable(hyperparameter):
        return hyperparameter
    return hyperparameter(step)


def everywhere(hyperparameter: Hyperparameter, step: int, updates: Tree) -> Tree:
    """The value of a hyperparameter in this step, for each leaf of `updates`."""
    leaves, spec = tree_flatten(updates, none_is_leaf=True)
    return tree_unflatten(spec, _for_each_leaf(hyperparameter, step, spec, len(leaves)))


def resolve(transform: R, step: int, spec: TreeSpec, count: int) -> list[R]:
    """The transform for each of `count` leaves, with the numbers of this step."""
    values = vars(transform)
    # Where a field is a tuple by default, it is of several hyperparameters, and no tree.
    groups = {f.name for f in fields(cast(Any, transform)) if isinstance(f.default, tuple)}
    varied: dict[str, list[Any]] = {}
    for name, value in values.items():
        if name in groups:
            if any(not is_constant(part) for part in value):
                rows = (_for_each_leaf(part, step, spec, count) for part in value)
                varied[name] = list(zip(*rows, strict=True))
        elif not is_constant(value):
            varied[name] = _for_each_leaf(value, step, spec, count)
    if not varied:
        return [transform] * count
    rows = [dict(zip(varied, row, strict=True)) for row in zip(*varied.values(), strict=True)]
    return [replace(cast(Any, transform), **row) for row in rows]


def _for_each_leaf(
    hyperparameter: Hyperparameter, step: int, spec: TreeSpec, count: int
) -> list[Any]:
    value = at_step(hyperparameter, step)
    return [value] * count if is_constant(value) else spec.flatten_up_to(value)


def is_constant(hyperparameter: Hyperparameter) -> bool:
    """Whether a hyperparameter, or an option, is one value for all parameters and steps."""
    return isinstance(hyperparameter, int | float | Tensor | str | torch.dtype | None)


def is_tree(hyperparameter: Hyperparameter) -> bool:
    """Whether a hyperparameter has a value for each parameter."""
    return not is_constant(hyperparameter) and not callable(hyperparameter)


def is_zero(hyperparameter: Hyperparameter) -> bool:
    """Whether the hyperparameter is the number zero, so that what it scales can be left out."""
    return isinstance(hyperparameter, int | float) and hyperparameter == 0


def check_range(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside [low, high), also in a tree. The values of tensors are not looked at.

    Schedules are checked in each step, by the transform that has their value.
    """
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(
            f"`{name}` must be a number or a 0-d tensor, got one of shape {tuple(value.shape)}. "
            "Values for each weight are given as a tree, shaped like that of the parameters."
        )
    if value is None:
        raise TypeError(f"`{name}` must be a number, a 0-d tensor, a schedule or a tree, got None.")
    if isinstance(value, Tensor) or not callable(value):
        for path, leaf in zip(*tree_flatten_with_path(value)[:2], strict=True):
            _check_one(name + (place(path) if path else ""), leaf, low, high)


def _check_one(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must be a floating-point tensor, got {value.dtype}.")
    elif not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number or a tensor, got {value!r}.")
    elif not low <= value < high:
        bounds = f"in [{low:g}, {high:g})" if high < float("inf") else f"at least {low:g}"
        raise ValueError(f"`{name}` must be {bounds}, got {value!r}.")
