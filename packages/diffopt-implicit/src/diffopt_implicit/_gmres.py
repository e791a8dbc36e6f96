"""Minimal residuals over Krylov spaces, for nonsymmetric systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    check_positive,
    norm,
    safe_norm,
    verdict,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._operator import Operator
from diffopt_implicit._preconditioners import Preconditioner
from diffopt_implicit._torch import outside_graphs


@overload
def solve_gmres(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    restart: int = 20,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_gmres(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    restart: int = 20,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_gmres(
    matvec: MatVec,
    b: Tree,
    *,
    init: Tree | None = None,
    ridge: float | Tensor = 0.0,
    restart: int = 20,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int | None = None,
    preconditioner: MatVec | Preconditioner | None = None,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by restarted minimal residuals, any regular ``A``.

    The k-th iterate of a cycle is the one of least residual over the Krylov space of ``k``
    products; after `restart` of them the space is dropped. That may end without progress
    where the space is too small, which is reported: with `restart` at the number of elements
    of `b` it cannot, but for rounding.

    Args:
        matvec: The product ``x -> A x``, from and to trees like `b`.
        b: As of `solve_cg`.
        init: As of `solve_cg`.
        ridge: As of `solve_cg`.
        restart: Dimension of the space, positive; twice so many vectors are kept.
        tol: As of `solve_cg`.
        atol: As of `solve_cg`.
        maxiter: At most so many products with ``A``; default ten times the number of elements
            of `b`, at least 20, at most 10000.
            With ``tol=0`` exactly so many, none of which waits for the device.
        preconditioner: ``r -> M r`` for an ``M`` near the inverse of ``A + ridge I``, or a
            `Preconditioner`; applied from the right, so that the residual minimized is the
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
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> solve_gmres(lambda x: A @ x, torch.tensor([4.0, -1.0]))
        tensor([1.0000, 2.0000])

    Source:
        Saad & Schultz, *GMRES: a generalized minimal residual algorithm*, SIAM J. Sci. Stat.
        Comput. 7, 1986; computed by the adaptive basis of Jiránek & Rozložník, *Adaptive
        version of Simpler GMRES*, Numerical Algorithms 53, 2010.
    """
    check_positive("restart", restart)
    solution, ended = solve_on_vectors(
        "solve_gmres",
        restarted(restart),
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


# NOTE [a basis that does not break down]
# With p_1, p_2, ... from the Krylov space such that the products q_k = A p_k are orthonormal,
# each step minimizes the residual along one more direction: x += (q_k.r) p_k, r -= (q_k.r) q_k.
# So no triangular system is left for the end, which differs in size between the examples of a
# `vmap`. The next direction is the residual where the last step has shortened it (the basis of
# residuals is well conditioned while they shrink) and the last q_k where it has not (residuals
# that stand still repeat themselves, as on a rotation).
SHRUNK = 0.9


def restarted(restart: int) -> Callable[..., tuple[Tensor, LinearSolveInfo]]:
    """Return minimal residuals over cycles of `restart` directions."""

    def iterate(
        operator: Operator,
        b: Tensor,
        start: Tensor | None,
        precondition: VectorMap,
        stopping: Stopping,
    ) -> tuple[Tensor, LinearSolveInfo]:
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
            directions, products, z = [], [], r
            while len(products) < restart and stopping.goes_on(taken, live):
                p = precondition(normalized(z))
                product = operator(p)
                p, q, length = orthogonalized(p, product, directions, products)
                iterations, taken = iterations + live, taken + 1
                broken = broken | (live & ~length.isfinite())
                live = live & (length > stopping.eps * safe_norm(product))
                matrix_size = torch.where(
                    live, torch.maximum(matrix_size, safe_norm(q) / safe_norm(p)), matrix_size
                )
                p, q = (torch.where(live, u / torch.where(live, length, 1.0), 0.0) for u in (p, q))
                step, before = torch.dot(q, r), norm(r)
                x, r = torch.addcmul(x, p, step), torch.addcmul(r, q, step, value=-1)
                z = torch.where(norm(r) <= SHRUNK * before, r, q)
                directions.append(p)
                products.append(q)
                live = live & ~(norm(r) <= inner_goal)
            r, before = operator.residual(b, x), residual
            residual = norm(r)
            # A cycle that gains less than this has met rounding, a singularity, or too small
            # a space.
            live = ~(residual <= goal) & ~broken & (residual < 0.99 * before)

        residual = torch.where(broken, torch.nan, residual)
        rounding = matrix_size * safe_norm(x) + size
        return x, verdict(residual, size, rounding, torch.zeros_like(live), iterations, stopping)

    return iterate


def orthogonalized(
    p: Tensor, q: Tensor, directions: list[Tensor], products: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the earlier products out of ``q = A p``, and keep ``p`` in step."""
    if products:
        ps, qs = torch.stack(directions), torch.stack(products)
        for _ in range(2):  # twice is enough: Giraud, Langou & Rozložník, 2005
            share = qs @ q
            p, q = p - share @ ps, q - share @ qs
    return p, q, safe_norm(q)


def normalized(z: Tensor) -> Tensor:
    """Bring a vector to length 1; zero stays zero."""
    length = safe_norm(z)
    return z / torch.where(length > 0, length, 1.0)
