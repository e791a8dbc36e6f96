"""Linear systems whose matrix is written out and factorized, as algorithms on vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffopt_implicit._linear_info import LinearSolveInfo
from diffopt_implicit._linear_system import (
    Stopping,
    VectorMap,
    matrix_of,
    norm,
    safe_norm,
    verdict,
)

# The solution of a system whose matrix is written out, whether it is one (the matrix is
# regular), and whether the matrix was found not to be symmetric positive definite as it must.
Direct = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def written_out(solve: Direct) -> Callable[..., tuple[Tensor, LinearSolveInfo]]:
    """Turn the solution of a matrix into an algorithm for an operator."""

    def algorithm(
        operator: VectorMap,
        b: Tensor,
        _start: Tensor | None,
        _precondition: VectorMap,
        stopping: Stopping,
    ) -> tuple[Tensor, LinearSolveInfo]:
        matrix = matrix_of(operator, b)
        x, regular, indefinite = solve(matrix, b)
        x = torch.where(regular, x, 0.0)
        residual, size = norm(b - matrix @ x), norm(b)
        rounding = norm(matrix) * safe_norm(x) + size
        iterations = torch.zeros_like(residual, dtype=torch.int64)
        return x, verdict(residual, size, rounding, indefinite, iterations, stopping)

    return algorithm


def lu(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve by elimination."""
    # Not `lu_factor` and `lu_solve`: within two levels of `vmap`, where only the inner one maps
    # over `b`, torch 2.13 gives wrong values for the latter.
    x, zero_pivot = torch.linalg.solve_ex(matrix, b[:, None])
    return x[:, 0], zero_pivot == 0, torch.zeros_like(zero_pivot, dtype=torch.bool)


def cholesky(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve by the triangular factor of a symmetric positive definite matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    x = torch.cholesky_solve(b[:, None], factor)[:, 0]
    # Only one triangle is looked at: that the other is not its mirror image shows in the
    # residual, and is then explained as this.
    eps = torch.finfo(matrix.dtype).eps
    asymmetric = norm(matrix - matrix.mT) > eps**0.5 * norm(matrix)
    return x, failed == 0, (failed != 0) | asymmetric


def qr(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve by reflections to triangular form."""
    q, r = torch.linalg.qr(matrix)
    x = torch.linalg.solve_triangular(r, (q.mT @ b)[:, None], upper=True)[:, 0]
    regular = (r.diagonal() != 0).all()
    return x, regular, torch.zeros_like(regular)
