"""The Neumann series, which Richardson's iteration sums."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import MatVec, Tree, check_positive
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._richardson import richardson
from diffopt_implicit._torch import outside_graphs


@overload
def solve_neumann(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_neumann(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 0.0,
    step_size: float | Tensor = 1.0,
    tol: float | None = None,
    atol: float = 0.0,
    maxiter: int = 1000,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
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
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` by the Neumann series.

    With ``B = A + ridge I``::

        x = step_size sum_{j < K} (I - step_size B)^j b

    for the first ``K <= maxiter`` that reaches the tolerance. What is missing is
    ``(I - step_size B)^K B^{-1} b``. A series cut short on purpose, as is usual for
    hypergradients, is ``functools.partial(solve_neumann, maxiter=10, on_failure="ignore")``.

    Args:
        matvec: As of `solve_cg`.
        b: As of `solve_cg`.
        ridge: As of `solve_cg`.
        step_size: Positive; a number or a scalar tensor. For symmetric positive definite
            ``B`` the series converges below 2 / the largest eigenvalue.
        tol: As of `solve_cg`.
        atol: As of `solve_cg`.
        maxiter: At most so many terms; with ``tol=0`` exactly so many, none of which waits
            for the device.
        info: As of `solve_cg`.
        on_failure: As of `solve_cg`.

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
