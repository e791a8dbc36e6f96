"""Linear systems of constrained minima: symmetric blocks, perhaps singular."""

from __future__ import annotations

import functools

import torch
from pytree_core import tree_leaves
from torch import Tensor

from diffopt_implicit._kkt import KKTSolution
from diffopt_implicit._linear_info import LinearSolveInfo, OnFailure
from diffopt_implicit._linear_system import (
    MatVec,
    Stopping,
    Tree,
    VectorMap,
    matrix_of,
    norm,
    safe_norm,
    verdict,
)
from diffopt_implicit._on_vectors import solve_on_vectors
from diffopt_implicit._torch import any_true

# NOTE [saddle points that are singular]
# At a vertex where more constraints meet than there are dimensions the multipliers are not
# unique, and the matrix [[Q, C^T], [C, 0]] is singular; the minimum is unique all the same, and
# so is its derivative: the systems are consistent. With d on the diagonal of the first block,
# and -d on that of the second, the matrix is regular whatever Q >= 0 and C are, and refinement
# with it converges to a solution of the system as it was, if there is one. If there is none,
# the residual says so. d balances the digits lost in the inverse, which is of size 1 / d,
# against the rate of refinement, which is that of d.
REGULARIZATION = 0.4  # as a power of the rounding error
REFINEMENTS = 50
EQUILIBRATIONS = 5


def solve_saddle_point(matvec: MatVec, b: KKTSolution, *, on_failure: OnFailure = "raise") -> Tree:
    """Solve for a point and multipliers that do not meet one another.

    The matrix is ``[[Q, B], [C, E]]``, with ``E`` diagonal, of entries 0 and -1, positive
    semidefinite ``Q``, and rows of ``C`` that are those of ``B^T`` where ``E`` is 0. It may be
    singular.
    """
    primal = sum(leaf.numel() for leaf in tree_leaves(b.primal))
    found, _ = solve_on_vectors(
        "The system of the active constraints",
        functools.partial(by_refinement, primal),
        matvec,
        b,
        ridge=0.0,
        tol=None,
        atol=0.0,
        on_failure=on_failure,
    )
    return found


def by_refinement(
    primal: int,
    operator: VectorMap,
    b: Tensor,
    _start: Tensor | None,
    _precondition: VectorMap,
    stopping: Stopping,
) -> tuple[Tensor, LinearSolveInfo]:
    """Write the matrix out, and solve by refinement."""
    matrix = matrix_of(operator, b)
    scale = equilibration(matrix)
    x = scale * refined(scale[:, None] * matrix * scale, scale * b, primal)
    residual, size = norm(b - matrix @ x), norm(b)
    rounding = norm(matrix) * safe_norm(x) + size
    never = torch.zeros_like(residual, dtype=torch.bool)
    iterations = torch.zeros_like(residual, dtype=torch.int64)
    return x, verdict(residual, size, rounding, never, iterations, stopping)


def refined(matrix: Tensor, b: Tensor, primal: int) -> Tensor:
    """Solve a system whose matrix is of size 1, by refinement with a regular one nearby."""
    inverse = near_inverse(matrix, primal)
    best = x = torch.zeros_like(b)
    residual, least = b, torch.full_like(norm(b), torch.inf)
    for _ in range(REFINEMENTS):
        x = x + inverse @ residual
        residual = b - matrix @ x
        # Halved at least at each step; afterwards rounding is all there is.
        improves = norm(residual) < 0.5 * least
        better = norm(residual) < least
        best, least = torch.where(better, x, best), torch.where(better, norm(residual), least)
        if not any_true(improves & (least > 0)):
            break
    return best


def near_inverse(matrix: Tensor, primal: int) -> Tensor:
    """Return the inverse of the regularized matrix."""
    # Not by its Schur complement, which is smaller: that has the square of the condition.
    delta = torch.full_like(matrix[0], torch.finfo(matrix.dtype).eps ** REGULARIZATION)
    signs = torch.where(torch.arange(len(delta), device=delta.device) < primal, delta, -delta)
    return torch.linalg.inv_ex(matrix + signs.diag()).inverse


def equilibration(matrix: Tensor) -> Tensor:
    """Return the diagonal scaling, from both sides, that makes rows and columns of size 1.

    Source: Ruiz, *A scaling algorithm to equilibrate both rows and columns norms in matrices*,
    Rutherford Appleton Laboratory, 2001.
    """
    scale = torch.ones_like(matrix[0])
    for _ in range(EQUILIBRATIONS):
        size = (scale[:, None] * matrix * scale).abs()
        largest = torch.maximum(size.amax(0), size.amax(1))
        scale = scale / torch.where(largest > 0, largest, 1.0).sqrt()
    return scale
