"""Hyperparameters: a number, a tensor that may be learned, or a schedule of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from torch import Tensor

Scalar: TypeAlias = float | Tensor
Schedule: TypeAlias = Callable[[int], Scalar]
Hyperparameter: TypeAlias = Scalar | Schedule
"""A number, a 0-d tensor (learned if it requires grad), or a function of the step (0, 1, ...)."""


def at_step(hyperparameter: Hyperparameter, step: int) -> Scalar:
    """The value that a hyperparameter has in this step, the first being 0."""
    if isinstance(hyperparameter, Tensor) or not callable(hyperparameter):
        return cast(Scalar, hyperparameter)
    return hyperparameter(step)


def is_zero(hyperparameter: Hyperparameter) -> bool:
    """Whether the hyperparameter is the number zero, so that what it scales can be left out."""
    return isinstance(hyperparameter, int | float) and hyperparameter == 0


def check_range(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Refuse a number outside [low, high). Tensors and schedules are taken as they come."""
    if isinstance(value, int | float) and not low <= value < high:
        bounds = f"in [{low:g}, {high:g})" if high < float("inf") else f"at least {low:g}"
        raise ValueError(f"`{name}` must be {bounds}, got {value!r}.")
    if isinstance(value, Tensor) and value.dim():
        raise ValueError(
            f"`{name}` must be a number or a 0-d tensor, got one of shape {tuple(value.shape)}."
        )
