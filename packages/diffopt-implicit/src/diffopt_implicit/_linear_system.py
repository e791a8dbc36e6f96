"""What the iterative linear solvers share: defaults, tolerances, and the last check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo
from diffopt_implicit._linear_info import LinearSolveStatus as Status
from diffopt_implicit._torch import any_true, is_recorded, is_tracked

Tree = Any
MatVec = Callable[[Tree], Tree]
VectorMap = Callable[[Tensor], Tensor]

# A residual below this many rounding errors of its own terms is as small as it gets: the
# product with the matrix, often a pass through a network, makes some of them.
ROUNDING_SLACK = 8.0


@dataclass(frozen=True)
class Stopping:
    """When to stop: at ``max(tol * target, atol)``, for a `target` that the solver knows.

    Attributes:
        tol: Relative tolerance.
        atol: Absolute tolerance, in the units of the residual.
        maxiter: The largest number of iterations.
        eps: The relative rounding error, below which nothing can be asked for.
        fixed: Whether all of `maxiter` are taken, without looking at the residual between.
    """

    tol: float
    atol: float | Tensor
    maxiter: int
    eps: float
    fixed: bool

    @classmethod
    def of(
        cls, tol: float | None, atol: float, maxiter: int | None, eps: float, size: int
    ) -> Stopping:
        """Check the user's wishes, and fill in defaults for `size` unknowns."""
        # 3.0e-13 in float64, 2.9e-6 in float32: what rounding leaves in reach.
        relative = eps**0.8 if tol is None else tol
        # Exact arithmetic needs `size`; rounding delays that, in small systems most.
        most = max(20, min(10 * size, 10_000)) if maxiter is None else maxiter
        check_nonnegative("tol", relative)
        check_nonnegative("atol", atol)
        check_nonnegative("maxiter", most)
        return cls(relative, atol, most, eps, maxiter is not None and relative == atol == 0)

    def goes_on(self, taken: int, live: Tensor) -> bool:
        """Tell whether to iterate once more; to look at `live` is to wait for the device."""
        return taken < self.maxiter and (self.fixed or any_true(live))

    def goal(self, target: Tensor) -> Tensor:
        """Return the residual to reach."""
        return (self.tol * target).clamp(min=self.atol)

    def inner_goal(self, target: Tensor) -> Tensor:
        """Return the least residual that a recurrence can follow."""
        return torch.maximum(self.goal(target), 0.1 * self.eps * target)


def check_nonnegative(name: str, value: float | Tensor) -> None:
    """Refuse a negative number; a tensor is not looked at, as that would wait for a device."""
    if not isinstance(value, Tensor) and not value >= 0:
        raise ValueError(f"`{name}` must be at least 0, got {value}.")


def check_positive(name: str, value: float | Tensor) -> None:
    """Refuse a number that is not positive; a tensor is not looked at."""
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value}.")


def is_differentiated(residual: Callable[[], Tensor], stopping: Stopping) -> bool:
    """Tell whether iterations that go on to a tolerance are differentiated, by a residual there.

    They must not begin nearby then: the few that follow do not have the derivative of the solution.
    """
    return not stopping.fixed and is_recorded() and is_tracked(residual())


def matrix_of(operator: VectorMap, b: Tensor) -> Tensor:
    """Write out the matrix of an operator on vectors like `b`."""
    matrix = torch.eye(b.numel(), dtype=b.dtype, device=b.device)
    if not b.numel():  # `vmap` refuses to map over nothing
        return matrix
    return torch.func.vmap(operator, in_dims=1, out_dims=1)(matrix)


def norm(vector: Tensor) -> Tensor:
    """Return the Euclidean norm, to compare with: without derivatives, and within range."""
    # Not `vector_norm`, which takes thirty times as long where squares are subnormal numbers.
    flat = vector.detach().reshape(-1)
    return torch.dot(flat, flat).sqrt()


def reuse() -> Callable[[Tensor], Tensor | None]:
    """Return what maps a vector to where its successor goes: there itself, if nothing is recorded.

    A fresh vector an update costs more than the update where pages of memory are to be had first.
    """
    recorded = is_recorded()
    return lambda vector: None if recorded else vector


def moved(x: Tensor, step: float | Tensor, direction: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``x + step direction`` in one pass, into `out` if there is one."""
    if isinstance(step, Tensor):
        return torch.addcmul(x, direction, step, out=out)
    return torch.add(x, direction, alpha=step, out=out)


def size_of(vector: Tensor) -> Tensor:
    """Return the largest absolute value, or 1 where that is 0: what to divide by."""
    if vector.numel() == 0:
        return vector.new_ones(())
    largest = vector.abs().amax()
    return torch.where(largest > 0, largest, 1.0)


def safe_norm(vector: Tensor) -> Tensor:
    """Return the Euclidean norm, of numbers whose squares are out of range too."""
    size = size_of(vector)
    return size * torch.linalg.vector_norm(vector / size)


def verdict(
    residual: Tensor,
    target: Tensor,
    rounding: Tensor,
    interrupted: Tensor,
    iterations: Tensor,
    stopping: Stopping,
) -> LinearSolveInfo:
    """Judge a finished solve.

    Args:
        residual: The norm of the true residual.
        target: The norm of the right-hand side.
        rounding: The norms of the terms that the residual is the difference of, summed.
        interrupted: Whether the iterations met a direction without positive curvature.
        iterations: How many were taken.
        stopping: What was asked for.
    """
    # The normwise backward error, Rigal & Gaches, J. ACM 14, 1967: a residual this small is
    # that of the exact solution of a system that differs from ours by rounding alone. Where
    # the matrix is so ill-conditioned that this allows a large residual, it is no excuse.
    eps, goal = stopping.eps, stopping.goal(target)
    allowed = torch.minimum(ROUNDING_SLACK * eps * rounding, eps**0.5 * target)
    small = (residual <= goal) | (residual <= allowed)

    exhausted = iterations >= stopping.maxiter
    status = torch.where(exhausted, Status.MAXITER.value, Status.STAGNATED.value)
    status = torch.where(interrupted, Status.INDEFINITE.value, status)
    status = torch.where(residual.isfinite(), status, Status.NONFINITE.value)
    status = torch.where(small, Status.CONVERGED.value, status)
    return LinearSolveInfo(*(field.detach() for field in (status, residual, goal, iterations)))
