"""Conjugate gradients on the normal equations, for any linear system."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor

from diffopt_implicit._coordinates import Coordinates
from diffopt_implicit._linear_info import (
    LinearSolveInfo,
    OnFailure,
    check_on_failure,
    report,
)
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    check_nonnegative,
    is_differentiated,
    moved,
    norm,
    reuse,
    safe_norm,
    size_of,
    verdict,
)
from diffopt_implicit._preconditioners import Preconditioner, prepared
from diffopt_implicit._torch import outside_graphs, vjp


@overload
def solve_normal_cg(
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
def solve_normal_cg(
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
def solve_normal_cg(
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
    """Solve ``A x = b`` for any ``A``, by conjugate gradients on ``A^T A x = A^T b``.

    A square system (`b` alone, or an `init` shaped like `b`) is to be solved: the iterations
    stop at ``|A x - b| <= max(tol |b|, atol)``, computed anew from ``x``. With an `init` of
    another shape, or a `ridge`, it is the least-squares problem
    ``min |A x - b|^2 + ridge |x|^2``, and they stop at ``|A^T (b - A x) - ridge x| <=
    max(tol |A^T b|, atol)``; from ``init = 0`` without ridge, ``x`` is the solution of least
    norm. A residual at the level of rounding counts as reached. The number of iterations
    grows with the condition number of ``A``, where that of `solve_cg` grows with its root.

    Args:
        matvec: The product ``x -> A x``, linear, from trees like `init` to trees like `b`, of
            torch operations: `torch.func.vjp` transposes it. What it is given may be written
            over afterwards, as by `solve_cg`.
        b: Any tree of real floating-point tensors. ``b = 0`` gives exactly 0 in a square
            system.
        init: Where to start, and what ``x`` looks like; default zero, shaped like `b`. Iterations
            on a square system that are differentiated start at zero, as those of `solve_cg`.
        ridge: Added to the diagonal of ``A^T A``, at least 0; a number or a scalar tensor.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`: 3.0e-13
            in float64, 2.9e-6 in float32, 0.02 in bfloat16.
        atol: Absolute tolerance.
        maxiter: At most so many iterations; default ten times the number of elements of `b`
            or ``x``, whichever has more, at least 20, at most 10000.
            With ``tol=0`` exactly so many, none of which waits for the device.
        preconditioner: ``s -> M s`` for an ``M``, symmetric positive definite, near the
            inverse of ``A^T A + ridge I``, or a `Preconditioner`.
        info: Return a `LinearSolveInfo` too.
        on_failure: What to do when the tolerance is not reached: ``"raise"`` a
            `LinearSolveError`, ``"warn"`` with a `LinearSolveWarning`, or ``"ignore"``.

    Returns:
        ``x``, shaped like `init` (or `b`), or ``(x, info)``. Under `torch.func.vmap` each
        example stops on its own. The iterations are ordinary operations, which autograd
        records if it is on; for the derivative of the solution as such, decorate with
        `custom_root`.

    Raises:
        LinearSolveError: If the tolerance is not reached, as when a square ``A`` is singular,
            or NaN appears.
        TypeError: If `b` or `init` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> solve_normal_cg(lambda x: A @ x, torch.tensor([1.0, 2.0]))
        tensor([-2.0000,  0.5000])

        Two equations for three unknowns, and their least solution:

        >>> A = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
        >>> solve_normal_cg(lambda x: A @ x, torch.tensor([2.0, 2.0]), init=torch.zeros(3))
        tensor([1., 1., 1.])

    Source:
        Björck, *Numerical Methods for Least Squares Problems*, 1996, section 7.4 (CGLS);
        Hestenes & Stiefel, J. Res. NBS 49, 1952, section 10.
    """
    check_on_failure(on_failure)
    check_nonnegative("ridge", ridge)
    rows = Coordinates.of(b, "`b`")
    columns = rows if init is None else Coordinates.of(init, "`init`")
    regularized = isinstance(ridge, Tensor) or ridge != 0
    square = (rows.spec, rows.shapes) == (columns.spec, columns.shapes) and not regularized
    stopping = Stopping.of(tol, atol, maxiter, rows.eps, max(rows.size, columns.size))

    def operator(v: Tensor) -> Tensor:
        return rows.vector(matvec(columns.tree(v)), "The result of `matvec`").to(rows.working)

    def precondition(s: Tensor) -> Tensor:
        if near_inverse is None:
            return s
        return columns.vector(near_inverse(columns.tree(s)), "The result of `preconditioner`")

    rhs = rows.vector(b, "`b`")
    origin = torch.zeros(columns.size, dtype=columns.working, device=rhs.device)
    _, pull = vjp(operator, origin)

    def normal(x: Tree) -> Tree:
        return columns.tree(pull(operator(columns.vector(x, "x")))[0])

    near_inverse = prepared(preconditioner, normal, b if init is None else init, ridge)
    # Right-hand side and matrix are brought to size 1, so that squares of tiny or huge
    # numbers stay within range.
    scale = size_of(rhs)
    gain = size_of(pull(rhs / scale)[0])
    unit = scale if square else scale * gain  # of the residual that is watched
    start = origin if init is None else columns.vector(init, "`init`") * (gain / scale)
    if init is not None and square and is_differentiated(lambda: rhs - operator(start), stopping):
        start = origin
    x, ended = iterate(
        lambda v: operator(v / gain),
        lambda r: pull(r)[0] / gain,
        rhs / scale,
        start,
        ridge / gain / gain,
        precondition,
        square,
        replace(stopping, atol=atol / unit),
    )
    ended = ended._replace(residual=ended.residual * unit, tolerance=ended.tolerance * unit)
    report("solve_normal_cg", ended, on_failure)
    solution = columns.tree(x * (scale / gain))
    return (solution, ended) if info else solution


def iterate(
    operator: VectorMap,
    transpose: VectorMap,
    b: Tensor,
    x: Tensor,
    ridge: Tensor,
    precondition: VectorMap,
    square: bool,
    stopping: Stopping,
) -> tuple[Tensor, LinearSolveInfo]:
    """Run CGLS on vectors, again from its end as long as that helps."""
    size, into = norm(b), reuse()
    target = size if square else norm(transpose(b))
    goal, inner_goal = stopping.goal(target), stopping.inner_goal(target)

    def residuals(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r = b - operator(x)
        s = transpose(r) - ridge * x
        return r, s, norm(r if square else s)

    x = torch.where(size > 0, x, 0.0) if square else x.clone()
    r, s, residual = residuals(x)
    live = ~(residual <= goal)  # so that NaN enters, and is refused at the end
    broken = torch.zeros_like(live)
    matrix_size = torch.zeros_like(residual)
    iterations, taken = torch.zeros_like(live, dtype=torch.int64), 0

    while stopping.goes_on(taken, live):
        z = precondition(s)
        p, sz = z.clone(), torch.dot(s, z)
        while stopping.goes_on(taken, live):
            q = operator(p)
            curvature = torch.dot(q, q) + ridge * torch.dot(p, p)
            broken = broken | (live & ~curvature.isfinite())
            live = live & (curvature > 0) & (sz > 0)
            step = torch.where(live, sz / torch.where(live, curvature, 1.0), 0.0)
            x, r = moved(x, step, p, into(x)), moved(r, -step, q, into(r))
            matrix_size = torch.where(
                live, torch.maximum(matrix_size, norm(q) / norm(p)), matrix_size
            )
            s = transpose(r) - ridge * x
            z = precondition(s)
            sz, sz_before = torch.dot(s, z), sz
            share = torch.where(live, sz / torch.where(live, sz_before, 1.0), 0.0)
            p = moved(z, share, p, into(p))
            iterations, taken = iterations + live, taken + 1
            live = live & ~(norm(r if square else s) <= inner_goal)
        before = residual
        if stopping.fixed:
            residual = norm(r if square else s)
        else:
            r, s, residual = residuals(x)
        # A restart that does not halve the true residual has met rounding, or a singularity.
        live = ~(residual <= goal) & ~broken & (residual < 0.5 * before)

    residual = torch.where(broken, torch.nan, residual)
    rounding = matrix_size * safe_norm(x) + size
    if not square:
        rounding = rounding * matrix_size + norm(ridge * x)
    return x, verdict(residual, target, rounding, torch.zeros_like(live), iterations, stopping)
