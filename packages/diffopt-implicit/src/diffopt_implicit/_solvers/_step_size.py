"""Step sizes: numbers, schedules, or searched so that a quadratic bounds the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._linear_system import check_positive
from diffopt_implicit._solvers._line_search import chosen
from diffopt_implicit._solvers._objective import Evaluation, Objective
from diffopt_implicit._torch import any_true

StepSize = float | Tensor | Callable[[Tensor], Any]


class Trial(NamedTuple):
    """A step that was tried.

    Attributes:
        stepsize: Scalar.
        x: Where it leads.
    """

    stepsize: Tensor
    x: Tensor


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


def searched_step(
    objective: Objective,
    y: Tensor,
    at: Evaluation,
    step: Callable[[Tensor], Tensor],
    first: Tensor,
    live: Tensor,
    *,
    decrease: float,
    maxls: int,
) -> SearchedStep:
    """Shrink a step until the quadratic bound of the function holds where it leads.

    ``f(x) <= f(y) + g^T (x - y) + |x - y|^2 / (2 stepsize)``, for ``x = step(stepsize)``.
    """
    eps = torch.finfo(y.dtype).eps
    size, going = first.detach(), live
    found = Trial(size, step(size))
    trial = found
    evaluations = torch.zeros_like(live, dtype=torch.int64)
    for count in range(maxls):
        value = objective.value(trial.x)[0].detach()
        evaluations = evaluations + going
        move = (trial.x - y).detach()
        bound = torch.dot(at.grad.detach(), move) + torch.dot(move, move) / (2 * trial.stepsize)
        slack = 10 * eps * at.value.detach().abs()
        found = chosen(going, trial, found)
        going = going & ~(value <= at.value.detach() + bound + slack)
        if count == maxls - 1 or not any_true(going):
            break
        size = decrease * trial.stepsize
        trial = Trial(size, step(size))
    return SearchedStep(found, going, evaluations)
