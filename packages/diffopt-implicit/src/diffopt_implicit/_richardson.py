"""Richardson's iteration, and the Neumann series that it sums."""

from __future__ import annotations

from typing import Any

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
from diffopt_implicit._preconditioners import Preconditioner


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
) -> Any:
    """Solve ``(A + ridge I) x = b`` by Richardson's iteration.

    With the preconditioner ``M``, or none::

        x <- x + step_size M (b - (A + ridge I) x)

    It converges if all eigenvalues of ``I - step_size M (A + ridge I)`` are within the unit
    circle, linearly. For the condition ``x - T(x) = 0`` of a contraction ``T`` a step size
    of 1 does; for the Hessian of a convex loss, any below 2 / its largest eigenvalue.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`.
        b: Any tree of real floating-point tensors. ``b = 0`` gives exactly 0.
        init: Where to start, a tree like `b`; default zero.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        step_size: Positive; a number or a scalar tensor.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`.
        atol: Absolute tolerance.
        maxiter: At most so many iterations; with ``tol=0`` exactly so many, none of which waits
            for the device.
        preconditioner: ``r -> M r`` for an ``M`` near the inverse of ``A + ridge I``, or a
            `Preconditioner`. With another solver, ``functools.partial(solve_lu, near)``, this
            is iterative refinement.
        info: Return a `LinearSolveInfo` too.
        on_failure: What to do when the tolerance is not reached: ``"raise"`` a
            `LinearSolveError`, ``"warn"`` with a `LinearSolveWarning`, or ``"ignore"``.

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


def solve_neumann(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Any:
    """Solve ``(A + ridge I) x = b`` by the Neumann series.

    With ``B = A + ridge I``::

        x = step_size sum_{j < K} (I - step_size B)^j b

    for the first ``K <= maxiter`` that reaches the tolerance. What is missing is
    ``(I - step_size B)^K B^{-1} b``. A series cut short on purpose, as is usual for
    hypergradients, is ``functools.partial(solve_neumann, maxiter=10, on_failure="ignore")``.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`.
        b: Any tree of real floating-point tensors. ``b = 0`` gives exactly 0.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        step_size: Positive; a number or a scalar tensor. For symmetric positive definite
            ``B`` the series converges below 2 / the largest eigenvalue.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`.
        atol: Absolute tolerance.
        maxiter: At most so many terms; with ``tol=0`` exactly so many, none of which waits
            for the device.
        info: Return a `LinearSolveInfo` too.
        on_failure: As for `solve_fixed_point`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``, as by `solve_cg`.

    Raises:
        LinearSolveError: If the tolerance is not reached, or the series diverges.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> x, info = solve_neumann(
        ...     lambda x: 0.5 * x, torch.ones(1), maxiter=3, on_failure="ignore", info=True
        ... )
        >>> x, info.residual  # 1 + 1/2 + 1/4, and 1/8
        (tensor([1.7500]), tensor(0.1250))

    Source:
        Lorraine, Vicol & Duvenaud, *Optimizing millions of hyperparameters by implicit
        differentiation*, AISTATS 2020, section 4.1, algorithm 3.
    """
    check_positive("step_size", step_size)
    solution, ended = solve_on_vectors(
        "solve_neumann",
        richardson(step_size),
        matvec,
        b,
        ridge=ridge,
        tol=tol,
        atol=atol,
        maxiter=maxiter,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution


def richardson(step_size: float | Tensor) -> Algorithm:
    """Return Richardson's iteration; from zero its k-th iterate sums k terms of the series."""

    def iterate(
        operator: VectorMap,
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
            r = b - operator(x)
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
    operator: VectorMap,
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
    operator: VectorMap,
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
            r = torch.sub(b, operator(x), out=into(r))
            residual = norm(r) if taken == stopping.maxiter - 1 else residual
        x = moved(x, step_size, precondition(r), into(x))
    iterations = torch.full_like(residual, stopping.maxiter, dtype=torch.int64)
    return x, residual, norm(b - r) + norm(b), iterations


def size_or_one(x: Tensor) -> Tensor:
    """Return the norm, or 1 where that is 0."""
    length = norm(x)
    return torch.where(length > 0, length, 1.0)
