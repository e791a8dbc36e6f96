"""Conjugate gradients, for symmetric positive definite systems."""

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
    moved,
    norm,
    reuse,
    safe_norm,
    verdict,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._operator import Operator
from diffopt_implicit._preconditioners import Preconditioner
from diffopt_implicit._torch import outside_graphs


@overload
def solve_cg(
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
def solve_cg(
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
def solve_cg(
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
    """Solve ``(A + ridge I) x = b`` by conjugate gradients, ``A`` symmetric positive definite.

    It stops at ``|(A + ridge I) x - b| <= max(tol |b|, atol)``. That residual is computed
    anew from ``x`` (not with ``tol=0`` and a `maxiter`, to save a product); where the
    recurrence has drifted from it, the iterations start again from ``x``. A residual at the
    level of rounding counts as reached.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`. What it is given may be
            written over afterwards: it should copy what it keeps.
        b: Any tree of real floating-point tensors. ``b = 0`` gives exactly 0.
        init: Where to start, a tree like `b`; default zero. Iterations to a tolerance that are
            differentiated start at zero all the same: few of them from nearby would not have
            the derivative of the solution.
        ridge: Added to the diagonal of ``A``, at least 0; a number or a scalar tensor.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`: 3.0e-13
            in float64, 2.9e-6 in float32, 0.02 in bfloat16.
        atol: Absolute tolerance.
        maxiter: At most so many iterations; default ten times the number of elements of `b`,
            at least 20, at most 10000.
            With ``tol=0`` exactly so many, none of which waits for the device.
        preconditioner: ``r -> M r`` for an ``M``, symmetric positive definite, near the
            inverse of ``A + ridge I``, or a `Preconditioner`.
        info: Return a `LinearSolveInfo` too.
        on_failure: What to do when the tolerance is not reached: ``"raise"`` a
            `LinearSolveError`, ``"warn"`` with a `LinearSolveWarning`, or ``"ignore"``.

    Returns:
        ``x``, shaped like `b` and in its dtypes (the iterations run in float32 at least), or
        ``(x, info)``. Under `torch.func.vmap` each example stops on its own. The iterations
        are ordinary operations, which autograd records if it is on; for the derivative of
        the solution as such, decorate with `custom_root`.

    Raises:
        LinearSolveError: If the tolerance is not reached, ``A`` is found not to be positive
            definite, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]])
        >>> solve_cg(lambda x: A @ x, torch.tensor([1.0, 2.0]))
        tensor([0.0909, 0.6364])

    Source:
        Hestenes & Stiefel, *Methods of conjugate gradients for solving linear systems*,
        J. Res. NBS 49, 1952, section 3; preconditioned as in Saad, *Iterative Methods for
        Sparse Linear Systems*, 2003, algorithm 9.1.
    """
    solution, ended = solve_on_vectors(
        "solve_cg",
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
    """Run conjugate gradients on vectors, again from its end as long as that helps."""
    size, into = norm(b), reuse()
    goal, inner_goal = stopping.goal(size), stopping.inner_goal(size)
    if start is None:
        x, r = torch.zeros_like(b), b.clone()
    else:
        x = torch.where(size > 0, start, 0.0)
        r = operator.residual(b, x)
    residual = norm(r)
    live = ~(residual <= goal)  # so that NaN enters, and is refused at the end
    indefinite = broken = torch.zeros_like(live)
    matrix_size = torch.zeros_like(residual)
    iterations, taken = torch.zeros_like(live, dtype=torch.int64), 0

    while stopping.goes_on(taken, live):
        z = precondition(r)
        p, rz = z.clone(), torch.dot(r, z)
        while stopping.goes_on(taken, live):
            ap = operator(p)
            curvature = torch.dot(p, ap)
            indefinite = indefinite | (live & ((curvature <= 0) | (rz <= 0)))
            broken = broken | (live & ~curvature.isfinite())
            live = live & (curvature > 0) & (rz > 0)
            step = torch.where(live, rz / torch.where(live, curvature, 1.0), 0.0)
            x, r = moved(x, step, p, into(x)), moved(r, -step, ap, into(r))
            if not stopping.fixed or taken == 0:
                gain = torch.maximum(matrix_size, norm(ap) / norm(p))
                matrix_size = torch.where(live, gain, matrix_size)
            z = precondition(r)
            rz, rz_before = torch.dot(r, z), rz
            share = torch.where(live, rz / torch.where(live, rz_before, 1.0), 0.0)
            p = moved(z, share, p, into(p))
            iterations, taken = iterations + live, taken + 1
            length = rz.detach().sqrt() if z is r else norm(r)
            live = live & ~(length <= inner_goal)
        r, before = r if stopping.fixed else operator.residual(b, x), residual
        residual = norm(r)
        # A restart that does not halve the true residual has met rounding, or a singularity.
        live = ~(residual <= goal) & ~indefinite & ~broken & (residual < 0.5 * before)

    residual = torch.where(broken, torch.nan, residual)
    rounding = matrix_size * safe_norm(x) + size
    return x, verdict(residual, size, rounding, indefinite, iterations, stopping)
