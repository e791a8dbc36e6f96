"""What the iterative linear solvers share: defaults, tolerances, and the last check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_info import LinearSolveInfo, LinearSolveStatus

Tree = Any
MatVec = Callable[[Tree], Tree]
VectorMap = Callable[[Tensor], Tensor]

# A residual below this many rounding errors of its own terms is as small as it gets: the
# product with the matrix, often a pass through a network, makes some of them.
ROUNDING_SLACK = 8.0


def default_tol(space: Coordinates, tol: float | None) -> float:
    """Return `tol`, or what the dtype can reach: eps^0.8, 3.0e-13 in float64, 2.9e-6 in float32."""
    if tol is None:
        return space.eps**0.8
    if not tol >= 0:
        raise ValueError(f"`tol` must be at least 0, got {tol}.")
    return tol


def default_maxiter(size: int, maxiter: int | None) -> int:
    """Return `maxiter`, or ten times the number of unknowns, in [20, 10000]."""
    if maxiter is None:
        # Exact arithmetic needs `size`; rounding delays that, in small systems most.
        return max(20, min(10 * size, 10_000))
    if maxiter < 0:
        raise ValueError(f"`maxiter` must be at least 0, got {maxiter}.")
    return maxiter


def check_nonnegative(name: str, value: float | Tensor) -> None:
    """Refuse a negative number; a tensor is not looked at, as that would wait for a device."""
    if not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, got {value}.")


def norm(vector: Tensor) -> Tensor:
    """Return the Euclidean norm."""
    return torch.linalg.vector_norm(vector)


def size_of(vector: Tensor) -> Tensor:
    """Return the largest absolute value, or 1 where that is 0: what to divide by."""
    if vector.numel() == 0:
        return vector.new_ones(())
    largest = vector.abs().amax()
    return torch.where(largest > 0, largest, 1.0)


def verdict(
    residual: Tensor,
    tolerance: Tensor,
    rounding: Tensor,
    target: Tensor,
    eps: float,
    interrupted: Tensor,
    iterations: Tensor,
    maxiter: int,
) -> Tensor:
    """Return the status of a finished solve, as a `LinearSolveStatus` in an int64 scalar.

    Args:
        residual: The norm of the true residual.
        tolerance: What it should have reached.
        rounding: The rounding error of the terms that the residual is the difference of.
        target: The norm of the right-hand side.
        eps: The relative rounding error.
        interrupted: Whether the iterations met a direction without positive curvature.
        iterations: How many were taken.
        maxiter: How many were allowed.
    """
    # The normwise backward error, Rigal & Gaches, J. ACM 14, 1967: a residual this small is
    # that of the exact solution of a system that differs from ours by rounding alone.
    # Where the matrix is so ill-conditioned that this allows a large residual, it is no excuse.
    allowed = torch.minimum(ROUNDING_SLACK * rounding, eps**0.5 * target)
    small = (residual <= tolerance) | (residual <= allowed)
    status = torch.where(
        iterations < maxiter, int(LinearSolveStatus.STAGNATED), int(LinearSolveStatus.MAXITER)
    )
    status = torch.where(interrupted, int(LinearSolveStatus.INDEFINITE), status)
    status = torch.where(residual.isfinite(), status, int(LinearSolveStatus.NONFINITE))
    return torch.where(small, int(LinearSolveStatus.CONVERGED), status)


def info_of(status: Tensor, residual: Tensor, tolerance: Tensor, iterations: Tensor) -> LinearSolveInfo:
    """Gather how a solve ended, without a graph."""
    return LinearSolveInfo(
        status.detach(), residual.detach(), tolerance.detach(), iterations.detach()
    )
