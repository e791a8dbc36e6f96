"""Convex quadratic programs in one form, their condition, and the derivative of the solution."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._saddle_point import equilibration, refined

# NOTE [which derivative at a kink]
# The solution is differentiated as that of the program whose active constraints are equations
# and whose others are absent. A constraint is active if its multiplier is not zero: one that the
# solution touches without being held by it counts as absent. There the solution has a kink, and
# this is one of its one-sided derivatives, that of moving away from the constraint.


class Program(NamedTuple):
    """Minimize ``x^T Q x / 2 + c^T x`` subject to ``lower <= C x <= upper``.

    Attributes:
        Q: Of shape (n, n); only its symmetric part counts, positive semidefinite.
        c: Of shape (n,).
        C: Of shape (m, n).
        lower: Of shape (m,), or -inf; equal to `upper` where there is an equation.
        upper: Of shape (m,), or inf.
    """

    Q: Tensor
    c: Tensor
    C: Tensor
    lower: Tensor
    upper: Tensor


class Pair(NamedTuple):
    """A point, and a multiplier for each row: positive at its upper bound, negative at its lower.

    Attributes:
        x: Of shape (n,).
        y: Of shape (m,).
    """

    x: Tensor
    y: Tensor


def gradient(program: Program, pair: Pair) -> Tensor:
    """Return that of the Lagrangian in ``x``."""
    Q, c, C = program[:3]
    return 0.5 * (Q @ pair.x + pair.x @ Q) + c + pair.y @ C


def violation(program: Program, pair: Pair) -> Tensor:
    """Return what vanishes where constraints and multipliers are as they must be.

    That is ``C x`` minus the projection of ``C x + y`` on what is between the bounds.
    """
    value = program.C @ pair.x
    return value - torch.minimum(torch.maximum(value + pair.y, program.lower), program.upper)


def error(program: Program, pair: Pair) -> Tensor:
    """Return how far a pair is from a solution, against the size of the terms involved."""
    stationary, feasible = gradient(program, pair), violation(program, pair)
    terms = largest(program.Q @ pair.x), largest(pair.y @ program.C), largest(program.c)
    dual = largest(stationary) / (1 + torch.stack(terms).amax())
    return torch.maximum(dual, largest(feasible) / (1 + largest(program.C @ pair.x)))


def held(program: Program, y: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which rows have a multiplier, at the lower bound and at the upper one."""
    threshold = torch.finfo(y.dtype).eps ** 0.75 * largest(y).clamp(min=1.0)
    equal = program.lower == program.upper
    return (y < -threshold) & ~equal, (y > threshold) | equal


def on_active_set(program: Program, low: Tensor, up: Tensor) -> Pair:
    """Return the solution, were these rows equations and the others absent."""
    Q, c, C, _, _ = program
    matrix = torch.cat(
        [
            torch.cat([0.5 * (Q + Q.mT), C.mT], 1),
            torch.cat([torch.where((low | up)[:, None], C, 0.0), -(~(low | up)).diag().to(c)], 1),
        ]
    )
    scale = equilibration(matrix)
    right = torch.cat([-c, target(program, low, up)])
    found = scale * refined(scale[:, None] * matrix * scale, scale * right, len(c))
    return Pair(found[: len(c)], found[len(c) :])


def target(program: Program, low: Tensor, up: Tensor) -> Tensor:
    """Return the values of the active rows, and 0 for the others."""
    return torch.where(up, program.upper, torch.where(low, program.lower, 0.0))


def condition(program: Program, pair: Pair) -> Pair:
    """Return what vanishes at the solution, differentiable as the note above says."""
    value = program.C @ pair.x
    low, up = held(program, pair.y.detach())
    beyond = violation(program, pair) + pair.y  # of `C x + y`, beyond its bounds
    rows = torch.where(low | up, value - target(program, low, up), beyond.detach() - pair.y)
    return Pair(gradient(program, pair), rows)


def largest(vector: Tensor) -> Tensor:
    """Return the largest absolute value, 0 of nothing."""
    return vector.abs().amax() if vector.numel() else vector.new_zeros(())
