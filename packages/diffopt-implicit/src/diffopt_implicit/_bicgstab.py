"""Stabilized biconjugate gradients, for nonsymmetric systems without their transpose."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    norm,
    safe_norm,
    verdict,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._operator import Operator
from diffopt_implicit._preconditioners import Preconditioner
from diffopt_implicit._torch import outside_graphs


@overload
def solve_bicgstab(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_bicgstab(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_bicgstab(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by stabilized biconjugate gradients, any regular ``A``.

    Two products with ``A`` an iteration and seven vectors of memory, without products with
    the transpose of ``A``. Where the recurrence breaks down it starts again from ``x``. It
    may fail on matrices with eigenvalues near the imaginary axis, which it then reports:
    `solve_gmres` is safer and takes more memory.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`.
        b: As of `solve_cg`.
        init: As of `solve_cg`.
        ridge: As of `solve_cg`.
        tol: As of `solve_cg`.
        atol: As of `solve_cg`.
        maxiter: As of `solve_cg`.
        preconditioner: ``r -> M r`` for an ``M`` near the inverse of ``A + ridge I``, or a
            `Preconditioner`; applied from the right, so that the residual watched is the
            true one.
        info: As of `solve_cg`.
        on_failure: As of `solve_cg`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``, as by `solve_cg`.

    Raises:
        LinearSolveError: If the tolerance is not reached, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[4.0, 1.0], [0.0, 2.0]])
        >>> solve_bicgstab(lambda x: A @ x, torch.tensor([6.0, 4.0]))
        tensor([1.0000, 2.0000])

    Source:
        van der Vorst, *Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG for the
        solution of nonsymmetric linear systems*, SIAM J. Sci. Stat. Comput. 13, 1992.
    """
    solution, ended = solve_on_vectors(
        "solve_bicgstab",
        iterate,
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


def iterate(
    operator: Operator,
    b: Tensor,
    start: Tensor | None,
    precondition: VectorMap,
    stopping: Stopping,
) -> tuple[Tensor, LinearSolveInfo]:
    """Run the recurrence on vectors, again from its end as long as that helps."""
    size = norm(b)
    goal, inner_goal = stopping.goal(size), stopping.inner_goal(size)
    if start is None:
        x, r = torch.zeros_like(b), b
    else:
        x = torch.where(size > 0, start, 0.0)
        r = operator.residual(b, x)
    residual = norm(r)
    live = ~(residual <= goal)  # so that NaN enters, and is refused at the end
    broken = torch.zeros_like(live)
    matrix_size = torch.zeros_like(residual)
    iterations, taken = torch.zeros_like(live, dtype=torch.int64), 0

    while stopping.goes_on(taken, live):
        shadow, p, rho = r, r, torch.dot(r, r)
        while stopping.goes_on(taken, live):
            moved = precondition(p)
            v = operator(moved)
            overlap = torch.dot(shadow, v)
            broken = broken | (live & ~overlap.isfinite())
            live = live & significant(overlap, norm(shadow) * safe_norm(v), stopping.eps)
            alpha = quotient(rho, overlap, live)
            s = r - alpha * v
            stabilizer = precondition(s)
            t = operator(stabilizer)
            length = safe_norm(t)
            omega = quotient(torch.dot(quotient(t, length, live), s), length, live)
            x, r = x + alpha * moved + omega * stabilizer, s - omega * t
            matrix_size = torch.where(
                live,
                torch.maximum(matrix_size, quotient(safe_norm(v), safe_norm(moved), live)),
                matrix_size,
            )
            rho, rho_before = torch.dot(shadow, r), rho
            iterations, taken = iterations + live, taken + 1
            live = live & ~(norm(r) <= inner_goal) & (omega != 0)
            live = live & significant(rho, norm(shadow) * norm(r), stopping.eps)
            beta = quotient(rho, rho_before, live) * quotient(alpha, omega, live)
            p = r + beta * (p - omega * v)
        r, before = operator.residual(b, x), residual
        residual = norm(r)
        # A restart that does not halve the true residual has met rounding, or a singularity.
        live = ~(residual <= goal) & ~broken & (residual < 0.5 * before)

    residual = torch.where(broken, torch.nan, residual)
    rounding = matrix_size * safe_norm(x) + size
    return x, verdict(residual, size, rounding, torch.zeros_like(live), iterations, stopping)


def significant(product: Tensor, of_norms: Tensor, eps: float) -> Tensor:
    """Tell whether an inner product is more than rounding."""
    return product.abs() > eps * of_norms


def quotient(numerator: Tensor, denominator: Tensor, live: Tensor) -> Tensor:
    """Divide where the iteration lives and the denominator allows it; 0 elsewhere."""
    divides = live & (denominator != 0)
    return torch.where(divides, numerator / torch.where(divides, denominator, 1.0), 0.0)
