"""Minimal residuals, for symmetric systems that need not be definite."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import (
    ROUNDING_SLACK,
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
def solve_minres(
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
def solve_minres(
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
def solve_minres(
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
    """Solve ``(A + ridge I) x = b`` by minimal residuals, for any symmetric regular ``A``.

    One product with ``A`` an iteration, as in `solve_cg`, and no definiteness: for saddle
    points, and Hessians away from a minimum. The residual never grows.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`, of a symmetric ``A``.
        b: As of `solve_cg`.
        init: As of `solve_cg`.
        ridge: As of `solve_cg`.
        tol: As of `solve_cg`.
        atol: As of `solve_cg`.
        maxiter: As of `solve_cg`.
        preconditioner: ``r -> M r`` for an ``M``, symmetric positive definite, near the inverse
            of ``|A + ridge I|``, or a `Preconditioner`.
        info: As of `solve_cg`.
        on_failure: As of `solve_cg`.

    Returns:
        ``x``, shaped like `b`, or ``(x, info)``, as by `solve_cg`.

    Raises:
        LinearSolveError: If the tolerance is not reached, the preconditioner is found not to
            be positive definite, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0, 2.0], [2.0, -1.0]], dtype=torch.float64)
        >>> x = solve_minres(lambda x: A @ x, torch.tensor([5.0, 0.0], dtype=torch.float64))
        >>> bool(torch.allclose(x, torch.tensor([1.0, 2.0], dtype=torch.float64)))
        True

    Source:
        Paige & Saunders, *Solution of sparse indefinite systems of linear equations*, SIAM J.
        Numer. Anal. 12, 1975; as in Elman, Silvester & Wathen, *Finite Elements and Fast
        Iterative Solvers*, 2014, algorithm 4.1.
    """
    solution, ended = solve_on_vectors(
        "solve_minres",
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
    """Run the three-term recurrence on vectors, again from its end as long as that helps."""
    size = norm(b)
    goal, inner_goal = stopping.goal(size), stopping.inner_goal(size)
    if start is None:
        x, r = torch.zeros_like(b), b
    else:
        x = torch.where(size > 0, start, 0.0)
        r = operator.residual(b, x)
    residual = norm(r)
    live = ~(residual <= goal)  # so that NaN enters, and is refused at the end
    indefinite = broken = torch.zeros_like(live)
    matrix_size = torch.zeros_like(residual)
    iterations, taken = torch.zeros_like(live, dtype=torch.int64), 0

    while stopping.goes_on(taken, live):
        # The Lanczos vectors v and z = M v, the rotations (c, s), the directions w and A w.
        zero, one = torch.zeros_like(b), torch.ones_like(residual)
        v_before, v, z = zero, r, precondition(r)
        square = torch.dot(v, z)
        indefinite = indefinite | (live & (square < -stopping.eps * norm(v) * norm(z)))
        beta = square.clamp(min=0).sqrt()
        eta, c_before, c, s_before, s = beta, one, one, 0 * one, 0 * one
        w_before, w, aw_before, aw = zero, zero, zero, zero
        spread = 0 * one
        # The recurrence follows the residual over so many digits: beyond, it begins anew.
        in_reach = torch.maximum(inner_goal, stopping.eps**0.8 * residual)
        while stopping.goes_on(taken, live):
            live = live & (beta > 0)
            safe = torch.where(live, beta, 1.0)
            v, z = v / safe, z / safe
            az = operator(z)
            alpha = torch.dot(z, az)
            broken = broken | (live & ~alpha.isfinite())
            v_next = az - alpha * v - beta * v_before
            z_next = precondition(v_next)
            square = torch.dot(v_next, z_next)
            indefinite = indefinite | (
                live & (square < -stopping.eps * norm(v_next) * norm(z_next))
            )
            beta_next = square.clamp(min=0).sqrt()

            rotated = c * alpha - c_before * s * beta
            length = torch.hypot(rotated, beta_next)
            above, far = s * alpha + c_before * c * beta, s_before * beta
            # A pivot that is nothing but rounding: singular, and the best is reached.
            spread = torch.maximum(spread, alpha.abs() + beta + beta_next)
            regular = length > ROUNDING_SLACK * stopping.eps * spread
            live = live & regular & ~broken & ~indefinite
            safe = torch.where(live, length, 1.0)
            c_before, c, s_before, s = c, rotated / safe, s, beta_next / safe
            w_before, w = w, (z - far * w_before - above * w) / safe
            aw_before, aw = aw, (az - far * aw_before - above * aw) / safe
            step = torch.where(live, c * eta, 0.0)
            x, r = x + step * w, r - step * aw
            matrix_size = torch.where(
                live, torch.maximum(matrix_size, norm(az) / norm(z)), matrix_size
            )
            eta = -s * eta
            v_before, v, z, beta = v, v_next, z_next, beta_next
            iterations, taken = iterations + live, taken + 1
            live = live & ~(norm(r) <= in_reach)
        r, before = operator.residual(b, x), residual
        residual = norm(r)
        # A restart that does not halve the true residual has met rounding, or a singularity.
        live = ~(residual <= goal) & ~indefinite & ~broken & (residual < 0.5 * before)

    residual = torch.where(broken, torch.nan, residual)
    rounding = matrix_size * safe_norm(x) + size
    return x, verdict(residual, size, rounding, indefinite, iterations, stopping)
