"""Operator splitting for quadratic programs, with guesses of the active constraints."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._quadratic_program import (
    Pair,
    Program,
    error,
    gradient,
    held,
    largest,
    on_active_set,
)
from diffopt_implicit._saddle_point import equilibration
from diffopt_implicit._torch import any_true

# The constants are those of Stellato et al., section 5: of the proximal term, of relaxation, by
# how much more equations weigh, and when a new penalty is worth a new factorization.
PROXIMAL = 1e-6
RELAXATION = 1.6
EQUATION_WEIGHT = 1e3
PENALTIES = 1e-6, 1e6
PENALTY_CHANGE = 5.0
# What a certificate may miss its equations by, against what it proves: in a scaled program a
# point that it overlooks is ten thousand times as far away as the coefficients are large.
RAY_TOLERANCE = 1e-4


class Scaled(NamedTuple):
    """A program of coefficients of size 1.

    Attributes:
        program: The scaled program.
        columns: What its ``x`` is multiplied with, (n,).
        rows: What its multipliers are multiplied with, (m,).
    """

    program: Program
    columns: Tensor
    rows: Tensor

    def to_scaled(self, pair: Pair) -> Pair:
        """Scale a pair."""
        return Pair(pair.x / self.columns, pair.y / self.rows)

    def to_given(self, pair: Pair) -> Pair:
        """Undo the scaling of a pair."""
        return Pair(pair.x * self.columns, pair.y * self.rows)


def scaling(program: Program) -> Tensor:
    """Return a scaling of columns and rows that makes all of size 1, (n + m,)."""
    Q, _, C, _, _ = program
    zeros = C.new_zeros(len(C), len(C))
    symmetric = 0.5 * (Q + Q.mT)
    matrix = torch.cat([torch.cat([symmetric, C.mT], 1), torch.cat([C, zeros], 1)])
    return equilibration(matrix)


def rescaled(program: Program, scale: Tensor) -> Scaled:
    """Scale columns, rows and the objective."""
    Q, c, C, lower, upper = program
    d, e = scale[: len(c)], scale[len(c) :]
    Q, c = d[:, None] * (0.5 * (Q + Q.mT)) * d, d * c
    size = torch.maximum(largest(Q), largest(c))
    size = torch.where(size > 0, size, 1.0)
    inner = Program(Q / size, c / size, e[:, None] * C * d, e * lower, e * upper)
    return Scaled(inner, d, e * size)


class Splitting(NamedTuple):
    """Where the splitting is.

    Attributes:
        x: The point, (n,).
        y: The multipliers, (m,).
        z: ``C x`` brought between the bounds, (m,).
        penalty: Of rows that are no equations, a scalar.
        inverse: Of ``Q + sigma I + C^T diag(penalties) C``, (n, n).
    """

    x: Tensor
    y: Tensor
    z: Tensor
    penalty: Tensor
    inverse: Tensor


def begun(program: Program, pair: Pair) -> Splitting:
    """Begin at a pair."""
    penalty = torch.full_like(largest(program.c), 0.1)
    z = between(program, program.C @ pair.x)
    return Splitting(*pair, z, penalty, factorized(program, penalty))


def penalties(program: Program, penalty: Tensor) -> Tensor:
    """Return the penalty of each row."""
    return penalty * torch.where(program.lower == program.upper, EQUATION_WEIGHT, 1.0)


def factorized(program: Program, penalty: Tensor) -> Tensor:
    """Return the inverse that a sweep multiplies with."""
    Q, c, C, _, _ = program
    eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
    matrix = Q + PROXIMAL * eye + (C.mT * penalties(program, penalty)) @ C
    return torch.linalg.inv_ex(matrix).inverse


def sweep(program: Program, at: Splitting) -> Splitting:
    """Take one step of the alternating direction method of multipliers."""
    _, c, C, _, _ = program
    weights = penalties(program, at.penalty)
    x = at.inverse @ (PROXIMAL * at.x - c + (weights * at.z - at.y) @ C)
    over = RELAXATION * (C @ x) + (1 - RELAXATION) * at.z
    z = between(program, over + at.y / weights)
    return at._replace(
        x=RELAXATION * x + (1 - RELAXATION) * at.x, y=at.y + weights * (over - z), z=z
    )


def between(program: Program, value: Tensor) -> Tensor:
    """Bring values between their bounds."""
    return torch.minimum(torch.maximum(value, program.lower), program.upper)


def adapted(program: Program, at: Splitting) -> Splitting:
    """Balance the two residuals by another penalty, where that is worth it."""
    value, pull = program.C @ at.x, at.y @ program.C
    primal = ratio(largest(value - at.z), torch.maximum(largest(value), largest(at.z)))
    curved = torch.stack([largest(program.Q @ at.x), largest(pull), largest(program.c)])
    dual = ratio(largest(gradient(program, Pair(at.x, at.y))), curved.amax())
    factor = ratio(primal, dual).sqrt()
    penalty = (at.penalty * factor).clamp(*PENALTIES)
    change = penalty / at.penalty
    worth = (change > PENALTY_CHANGE) | (change < 1 / PENALTY_CHANGE)
    if not any_true(worth):
        return at
    penalty = torch.where(worth, penalty, at.penalty)
    return at._replace(penalty=penalty, inverse=factorized(program, penalty))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, away from 0."""
    tiny = torch.finfo(numerator.dtype).tiny ** 0.25
    return (numerator + tiny) / (denominator + tiny)


def polished(program: Program, at: Splitting) -> tuple[Pair, Tensor]:
    """Return the pair that the active constraints give, or the splitting's own if nearer.

    The second is its error.
    """
    own = Pair(at.x, at.y)
    value = at.z + at.y  # the projection of which is `z`
    equal = program.lower == program.upper
    low, up = (value < program.lower) & ~equal, (value > program.upper) | equal
    guess = cleared(program, on_active_set(program, low, up))
    errors = error(program, guess), error(program, own)
    better = errors[0] <= errors[1]
    x, y = (torch.where(better, *both) for both in zip(guess, own, strict=True))
    return Pair(x, y), torch.where(better, *errors)


def cleared(program: Program, pair: Pair) -> Pair:
    """Set multipliers to 0 that are so but for rounding."""
    low, up = held(program, pair.y)
    return pair._replace(y=torch.where(low | up, pair.y, 0.0))


def is_convex(program: Program) -> Tensor:
    """Tell whether the objective of a scaled program is convex, up to rounding."""
    eye = torch.eye(len(program.c), dtype=program.c.dtype, device=program.c.device)
    slack = torch.finfo(program.c.dtype).eps ** 0.5
    return torch.linalg.cholesky_ex(program.Q + slack * eye).info == 0


def primal_ray(program: Program, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return a direction in which the objective falls for ever, and whether it is one.

    It is ``Q d = 0``, ``c d < 0``, and ``C d`` that points into no bound.
    """
    d = direction(step)
    moved, fall = program.C @ d, -(program.c @ d)
    leaves = torch.maximum(
        torch.where(program.upper < torch.inf, moved, 0.0),
        torch.where(program.lower > -torch.inf, -moved, 0.0),
    )
    rest = torch.maximum(largest(program.Q @ d), largest(leaves.clamp(min=0)))
    return d, (fall > 0) & (rest <= RAY_TOLERANCE * fall)


def dual_ray(program: Program, step: Tensor) -> tuple[Tensor, Tensor]:
    """Return multipliers that prove that no point is feasible, and whether they do.

    They are ``C^T d = 0`` with ``upper d+ - lower d- < 0``: by them the constraints, added up,
    say that 0 is negative.
    """
    up, low = (part.clamp(min=0) for part in (direction(step), -direction(step)))
    has_up, has_low = program.upper < torch.inf, program.lower > -torch.inf
    stray = torch.where(has_up, 0.0, up) + torch.where(has_low, 0.0, low)
    up, low = torch.where(has_up, up, 0.0), torch.where(has_low, low, 0.0)
    gap = torch.where(has_low, program.lower, 0.0) @ low
    gap = gap - torch.where(has_up, program.upper, 0.0) @ up
    rest = torch.maximum(largest((up - low) @ program.C), largest(stray))
    return up - low, (gap > 0) & (rest <= RAY_TOLERANCE * gap)


def direction(step: Tensor) -> Tensor:
    """Return a vector of largest element 1, or 0."""
    size = largest(step)
    return step / torch.where(size > 0, size, 1.0)
