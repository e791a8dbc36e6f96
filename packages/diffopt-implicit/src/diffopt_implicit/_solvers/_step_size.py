"""Step sizes: numbers, schedules, or shrunk until the function is small enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._solvers._line_search import chosen
from diffopt_implicit._torch import any_true

StepSize = float | Tensor | Callable[[Tensor], Any]


class Trial(NamedTuple):
    """A step that was tried.

    Attributes:
        stepsize: Scalar.
        x: Where it leads.
        value: Of the function there.
        rest: What else was found there.
    """

    stepsize: Tensor
    x: Tensor
    value: Tensor
    rest: Any


class SearchedStep(NamedTuple):
    """The end of a search.

    Attributes:
        trial: The step found.
        failed: Whether none was.
        evaluations: Int64, calls of the function.
    """

    trial: Trial
    failed: Tensor
    evaluations: Tensor


def check_step_size(stepsize: StepSize | None) -> None:
    """Refuse a number that is not positive."""
    if stepsize is not None and not callable(stepsize):
        check_positive("stepsize", stepsize)


def given_step(stepsize: StepSize, iter_num: Tensor, like: Tensor) -> Tensor:
    """Return the step size of an iteration, differentiable if it is a tensor."""
    size = stepsize(iter_num) if callable(stepsize) else stepsize
    if isinstance(size, Tensor):
        return size.to(like)
    return torch.full_like(like, size)


def first_sizes(last: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step size to try first, and the largest that is known to do; 0 says nothing."""
    known = torch.where(last > 0, last, 0.5).detach()
    return 2 * known, known


def searched_step(
    attempt: Callable[[Tensor], Trial],
    bound: Callable[[Trial], Tensor],
    value: Tensor,
    first: Tensor,
    live: Tensor,
    *,
    decrease: float,
    maxls: int,
) -> SearchedStep:
    """Shrink a step until the function where it leads is at most `bound`, a constant.

    Args:
        attempt: Evaluates the function where a step size leads.
        bound: What the value there must not exceed, for derivatives a constant.
        value: At the start, whose rounding errors are allowed for.
        first: The step size to try first.
        live: Which examples to search for.
        decrease: By what a step shrinks.
        maxls: At most so many evaluations.
    """
    slack = rounding(value)
    found = attempt(first)
    evaluations = live.to(torch.int64)
    going = live & ~(found.value <= bound(found) + slack)
    for _ in range(maxls - 1):
        if not any_true(going):
            break
        trial = attempt(decrease * found.stepsize)
        evaluations = evaluations + going
        found = chosen(going, trial, found)
        going = going & ~(found.value <= bound(found) + slack)
    return SearchedStep(found, going, evaluations)


def rounding(value: Tensor) -> Tensor:
    """Return the size of differences of values that mean nothing."""
    return 10 * torch.finfo(value.dtype).eps * value.detach().abs()


def quadratic_bound(
    y: Tensor, value: Tensor, grad: Tensor, largest: Tensor, trial: Trial
) -> Tensor:
    """Return ``f(y) + g^T (x - y) + |x - y|^2 / (2 stepsize)``.

    Where that cannot be told from ``f(y)``, it says nothing of a step size above `largest`.
    """
    move, size = (trial.x - y).detach(), trial.stepsize.detach()
    square = torch.dot(move, move) / (2 * size)
    hidden = (square <= 10 * rounding(value)) & (size > largest)
    bound = value.detach() + torch.dot(grad.detach(), move) + square
    return torch.where(hidden, -torch.inf, bound)
