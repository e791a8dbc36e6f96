"""Nyström's approximation: a symmetric matrix from some of its columns."""

from __future__ import annotations

import random
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
    verdict,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._torch import outside_graphs


@overload
def solve_nystrom(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 1e-2,
    rank: int = 10,
    seed: int = 0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[False] = False,
    on_failure: OnFailure = "raise",
) -> Tree: ...


@overload
def solve_nystrom(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 1e-2,
    rank: int = 10,
    seed: int = 0,
    tol: float | None = None,
    atol: float = 0.0,
    info: Literal[True],
    on_failure: OnFailure = "raise",
) -> tuple[Tree, LinearSolveInfo]: ...


@outside_graphs
def solve_nystrom(
    matvec: MatVec,
    b: Tree,
    *,
    ridge: float | Tensor = 1e-2,
    rank: int = 10,
    seed: int = 0,
    tol: float | None = None,
    atol: float = 0.0,
    info: bool = False,
    on_failure: OnFailure = "raise",
) -> Tree | tuple[Tree, LinearSolveInfo]:
    """Solve ``(A + ridge I) x = b`` for a symmetric ``A`` of low rank, from a few columns.

    With ``C`` the columns of ``A`` in a random subset and ``W`` the rows of ``C`` in it, ``A``
    is near ``C W^{-1} C^T``, and by Woodbury's identity::

        x = (b - C (ridge W + C^T C)^{-1} C^T b) / ridge

    All products with ``A`` are taken at once. Exact where ``A`` has no more than `rank`
    dimensions that the columns span; otherwise an approximation, and a failed solve unless
    told ``functools.partial(solve_nystrom, on_failure="ignore")``.

    Args:
        matvec: The product ``x -> A x``, of operations that `torch.func.vmap` knows.
        b: As of `solve_cg`.
        ridge: Added to the diagonal of ``A``, positive; a number or a scalar tensor.
        rank: How many columns, positive.
        seed: Which columns: the same seed takes the same ones.
        tol: Relative tolerance; default ``eps ** 0.8`` of the coarsest dtype in `b`.
        atol: As of `solve_cg`.
        info: As of `solve_cg`.
        on_failure: As of `solve_cg`.

    Returns:
        ``x``, shaped like `b` and in its dtypes, or ``(x, info)``.

    Raises:
        LinearSolveError: If the tolerance is not reached, or NaN appears.
        TypeError: If `b` holds complex or integer tensors.
        ValueError: If `matvec` returns another shape than `b`'s.

    Example:
        >>> import torch
        >>> u = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
        >>> x = solve_nystrom(lambda x: u * (u @ x), u, ridge=1.0, rank=1)
        >>> bool(torch.allclose(x, u / 10))  # u (u.u) + 1 u = 10 u
        True

    Source:
        Hataya & Yamada, *Nyström method for accurate and scalable implicit differentiation*,
        AISTATS 2023, eqs. 5 and 6.
    """
    check_positive("ridge", ridge)
    check_positive("rank", rank)
    solution, ended = solve_on_vectors(
        "solve_nystrom",
        from_columns(rank, seed, ridge),
        matvec,
        b,
        ridge=ridge,
        tol=tol,
        atol=atol,
        on_failure=on_failure,
    )
    return (solution, ended) if info else solution


def from_columns(
    rank: int, seed: int, ridge: float | Tensor
) -> Callable[..., tuple[Tensor, LinearSolveInfo]]:
    """Return the solution by `rank` columns as an algorithm for an operator."""

    def algorithm(
        operator: VectorMap,
        b: Tensor,
        _start: Tensor | None,
        _precondition: VectorMap,
        stopping: Stopping,
    ) -> tuple[Tensor, LinearSolveInfo]:
        count = min(rank, b.numel())
        # Not `torch.randperm`, which `torch.func.vmap` refuses: each example takes the same.
        chosen = sorted(random.Random(seed).sample(range(b.numel()), count))
        units = torch.zeros(b.numel(), count, dtype=b.dtype, device=b.device)
        units[chosen, range(count)] = 1
        x = b / ridge
        if count:  # `vmap` refuses to map over nothing
            columns = torch.func.vmap(operator, in_dims=1, out_dims=1)(units) - ridge * units
            inner = ridge * columns[chosen] + columns.mT @ columns
            # What is not finite shows in the residual; the decomposition would not end.
            inner = torch.where(inner.isfinite(), inner, 0.0)
            share = torch.linalg.pinv(0.5 * (inner + inner.mT), hermitian=True) @ (columns.mT @ b)
            x = (b - columns @ share) / ridge
        product = operator(x)
        residual, size = norm(b - product), norm(b)
        taken = torch.full_like(residual, count, dtype=torch.int64)
        never = torch.zeros_like(residual, dtype=torch.bool)
        return x, verdict(residual, size, norm(product) + size, never, taken, stopping)

    return algorithm
