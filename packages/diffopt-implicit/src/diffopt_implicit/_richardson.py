"""Richardson's iteration."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_info import LinearSolveStatus as Status
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    check_positive,
    moved,
    norm,
    reuse,
    safe_norm,
    verdict,
)
from diffopt_implicit._on_vectors import Algorithm, solve_on_vectors
from diffopt_implicit._operator import Operator
from diffopt_implicit._preconditioners import Preconditioner
from diffopt_implicit._torch import outside_graphs


@overload
def solve_fixed_point(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_fixed_point(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_fixed_point(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    preconditioner: MatVec | Preconditioner | None = None,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by Richardson's iteration.

    With the preconditioner ``M``, or none::

        x <- x + step_size M (b - (A + ridge I) x)

    It converges if all eigenvalues of ``I - step_size M (A + ridge I)`` are within the unit
    circle, linearly. For the condition ``x - T(x) = 0`` of a contraction ``T`` a step size
    of 1 does; for the Hessian of a convex loss, any below 2 / its largest eigenvalue.

    Args:
        matvec: As of `solve_cg`.
        b: As of `solve_cg`.
        init: As of `solve_cg`.
        ridge: As of `solve_cg`.
        step_size: Positive; a number or a scalar tensor.
        tol: As of `solve_cg`.
        atol: As of `solve_cg`.
        maxiter: At most so many iterations; with ``tol=0`` exactly so many, none of which waits
            for the device.
        preconditioner: ``r -> M r`` for an ``M`` near the inverse of ``A + ridge I``, or a
            `Preconditioner`. With another solver, ``functools.partial(solve_lu, near)``, this
            is iterative refinement.
        info: As of `solve_cg`.
        on_failure: As of `solve_cg`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``, as by `solve_cg`.

    Raises:
        LinearSolveError: If the tolerance is not reached, or the iterations grow.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> solve_fixed_point(lambda x: A @ x, torch.tensor([1.0, 2.0]))
        tensor([0., 2.])

    Source:
        Saad, *Iterative Methods for Sparse Linear Systems*, 2003, section 4.2.1; for
        hypergradients, Grazzi, Franceschi, Pontil & Salzo, *On the iteration complexity of
        hypergradient computation*, ICML 2020, section 3.
    """
    check_positive("step_size", step_size)
    solution, ended = solve_on_vectors(
        "solve_fixed_point",
        richardson(step_size),
        matvec,
        b,
        init=init,
        ridge=ridge,
        tol=tol,
        atol=atol,
        maxiter=maxiter,
        preconditioner=preconditioner,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution


def richardson(step_size: float | Tensor) -> Algorithm:
    """Return Richardson's iteration; from zero its k-th iterate sums k terms of the series."""

    def iterate(
        operator: Operator,
        b: Tensor,
        start: Tensor | None,
        precondition: VectorMap,
        stopping: Stopping,
    ) -> tuple[Tensor, LinearSolveInfo]:
        size = norm(b)
        if start is None:
            x, r = torch.zeros_like(b), b.clone()
        else:
            x = torch.where(size > 0, start, 0.0)
            r = operator.residual(b, x)
        first = torch.maximum(norm(r), size)
        loop = fixed if stopping.fixed else adaptive
        x, residual, rounding, iterations = loop(
            operator, b, x, r, precondition, stopping, step_size
        )
        never = torch.zeros_like(iterations, dtype=torch.bool)
        ended = verdict(residual, size, rounding, never, iterations, stopping)
        grown = (residual > first) & residual.isfinite()
        status = torch.where(grown.detach(), Status.DIVERGED.value, ended.status)
        return x, ended._replace(status=status)

    return iterate


def adaptive(
    operator: Operator,
    b: Tensor,
    x: Tensor,
    r: Tensor,
    precondition: VectorMap,
    stopping: Stopping,
    step_size: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Iterate until the goal; return the end, its residual, rounding in that, and the count."""
    size, residual, into = norm(b), norm(r), reuse()
    goal = stopping.goal(size)
    # Where all digits are lost, it is no passing growth any more.
    hopeless = torch.maximum(residual, size) / stopping.eps
    live = ~(residual <= goal) & residual.isfinite()
    matrix_size = torch.zeros_like(residual)
    iterations, taken = torch.zeros_like(live, dtype=torch.int64), 0
    while stopping.goes_on(taken, live):
        x = moved(x, live.to(x.dtype) * step_size, precondition(r), into(x))
        ax = operator(x)
        gain = torch.maximum(matrix_size, norm(ax) / size_or_one(x))
        matrix_size = torch.where(live, gain, matrix_size)
        r = torch.sub(b, ax, out=into(r))
        residual = norm(r)
        iterations, taken = iterations + live, taken + 1
        live = live & ~(residual <= goal) & (residual <= hopeless)
    return x, residual, matrix_size * safe_norm(x) + size, iterations


def fixed(
    operator: Operator,
    b: Tensor,
    x: Tensor,
    r: Tensor,
    precondition: VectorMap,
    stopping: Stopping,
    step_size: float | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take all iterations, with one product between each two; return the same."""
    residual, into = norm(r), reuse()
    for taken in range(stopping.maxiter):
        if taken > 0:
            r = operator.residual(b, x, into(r))
            residual = norm(r) if taken == stopping.maxiter - 1 else residual
        x = moved(x, step_size, precondition(r), into(x))
    iterations = torch.full_like(residual, stopping.maxiter, dtype=torch.int64)
    return x, residual, norm(b - r) + norm(b), iterations


def size_or_one(x: Tensor) -> Tensor:
    """Return the norm, or 1 where that is 0."""
    length = norm(x)
    return torch.where(length > 0, length, 1.0)
