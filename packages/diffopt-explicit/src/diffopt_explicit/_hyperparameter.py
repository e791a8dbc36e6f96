"""Hyperparameters: a number, a tensor that may be learned, a schedule of either, or a tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeAlias, TypeGuard, TypeVar, cast

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
_CONTAINERS = (dict, list, tuple)
_CONSTANT = (float, int, Tensor, str, type(None))  # with flags, names and what is left out


def value_at(owner: Any, name: str, step: int) -> Any:
    """The value of a transform's field in this step, the first being 0.

    Values of schedules are checked by the transform, as any other are when it is made.
    """
    field = getattr(owner, name)
    if is_constant(field):
        return field
    grouped = name in groups(owner)
    parts = field if grouped else (field,)
    values = tuple(_at_step(name, part, step) for part in parts)
    value = values if grouped else values[0]
    if any(new is not part for new, part in zip(values, parts, strict=True)):
        replace(owner, **{name: value})
    return value


def everywhere(owner: Any, name: str, step: int, updates: Tree) -> Tree:
    """The value of a transform's field in this step, for each leaf of `updates`."""
    return spread(name, value_at(owner, name, step), updates)


def spread(name: str, value: Any, updates: Tree) -> Tree:
    """A hyperparameter's value, for each leaf of `updates`."""
    leaves, spec = tree_flatten(updates, none_is_leaf=True)
    return tree_unflatten(spec, _for_each_leaf(name, value, spec, len(leaves)))


def resolve(owner: R, step: int, spec: TreeSpec, count: int) -> list[R]:
    """The transform for each of `count` leaves, with the numbers of this step."""
    grouped = groups(owner)
    varied: dict[str, list[Any]] = {}
    for name in [f.name for f in fields(cast(Any, owner))]:
        field = getattr(owner, name)
        if name in grouped:
            if not all(map(is_constant, field)):
                values = [_at_step(name, part, step) for part in field]
                rows = [_for_each_leaf(name, value, spec, count) for value in values]
                varied[name] = list(zip(*rows, strict=True))
        elif not is_constant(field):
            varied[name] = _for_each_leaf(name, _at_step(name, field, step), spec, count)
    if not varied:
        return [owner] * count
    rows = [dict(zip(varied, row, strict=True)) for row in zip(*varied.values(), strict=True)]
    return [replace(cast(Any, owner), **row) for row in rows]


def groups(owner: Any) -> set[str]:
    """The fields that are several hyperparameters: tuples by default, and no trees."""
    kind = type(owner)  # which has the defaults as attributes; those of fields are not traced
    return {f.name for f in fields(owner) if isinstance(getattr(kind, f.name, None), tuple)}


def _at_step(name: str, hyperparameter: Hyperparameter, step: int) -> Any:
    if is_constant(hyperparameter) or not is_schedule(hyperparameter):
        return hyperparameter
    value = hyperparameter.__call__(step)  # torch 2.10 would trace the object's hash otherwise
    if not isinstance(value, (int, float, Tensor)):
        raise TypeError(
            f"`{name}` is a schedule, and gave a {type(value).__name__} in step {step}. It must "
            "give a number or a 0-d tensor."
        )
    return value


def _for_each_leaf(name: str, value: Any, spec: TreeSpec, count: int) -> list[Any]:
    if is_constant(value):
        return [value] * count
    try:
        return spec.flatten_up_to(value)
    except ValueError as mismatch:
        raise ValueError(
            f"`{name}` is a tree of another structure than the parameters: {mismatch}."
        ) from None


def is_constant(hyperparameter: Hyperparameter) -> bool:
    """Whether a hyperparameter, or an option, is one value for all parameters and steps."""
    return isinstance(hyperparameter, _CONSTANT)


def is_tree(hyperparameter: Hyperparameter) -> bool:
    """Whether a hyperparameter has a value for each parameter."""
    return not is_constant(hyperparameter) and not is_schedule(hyperparameter)


def is_schedule(hyperparameter: Hyperparameter) -> TypeGuard[Schedule]:
    """Whether a hyperparameter is a function of the step."""
    # Containers first: of them, `callable` is not traced.
    return not isinstance(hyperparameter, _CONTAINERS) and callable(hyperparameter)


def is_zero(hyperparameter: Hyperparameter) -> bool:
    """Whether the hyperparameter is the number zero, so that what it scales can be left out."""
    return isinstance(hyperparameter, (int, float)) and hyperparameter == 0


def check_range(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside [low, high), also in a tree. Values of tensors are not looked at."""
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(
            f"`{name}` must be a number or a 0-d tensor, got one of shape {tuple(value.shape)}. "
            "Values for each weight are given as a tree, shaped like that of the parameters."
        )
    if value is None:
        raise TypeError(f"`{name}` must be a number, a 0-d tensor, a schedule or a tree, got None.")
    if isinstance(value, Tensor) or not is_schedule(value):
        for path, leaf in zip(*tree_flatten_with_path(value)[:2], strict=True):
            _check_one(name + (place(path) if path else ""), leaf, low, high)


def check_group(name: str, values: object, *ranges: tuple[float, float]) -> None:
    """Refuse what is no tuple of hyperparameters, each in its range."""
    if not isinstance(values, (tuple, list)) or len(values) != len(ranges):
        raise ValueError(f"`{name}` must be {len(ranges)} hyperparameters, got {values!r}.")
    for index, (value, bounds) in enumerate(zip(values, ranges, strict=True)):
        check_range(f"{name}[{index}]", value, *bounds)


def _check_one(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"`{name}` must be a floating-point tensor, got {value.dtype}.")
    elif not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number or a tensor, got {value!r}.")
    elif not low <= value < high:
        bounds = f"in [{low:g}, {high:g})" if high < float("inf") else f"at least {low:g}"
        raise ValueError(f"`{name}` must be {bounds}, got {value!r}.")
