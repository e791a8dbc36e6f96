"""Projections on transport polytopes: matrices of given sums of rows and of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from diffopt_implicit._batches import over_batches
from diffopt_implicit._cg import solve_cg
from diffopt_implicit._condition import attach_root
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._sinkhorn import check_masses, sinkhorn
from diffopt_implicit._solvers._status import SolverError
from diffopt_implicit._torch import any_true, outside_graphs

# NOTE [Newton's method on the dual of a projection]
# The projection of X is max(X + f 1^T + 1 g^T, 0), and (f, g) minimizes a convex, piecewise
# quadratic function whose gradient is by how much rows and columns miss their sums. Its Hessian
# is that of a graph, whose edges are the positive entries; it has a null vector for each
# component of the graph, so a multiple of the identity is added that falls with the gradient.
# Newton's method ends on the right piece after a few steps, and a line search keeps it from
# cycling between pieces before that.
MAXITER = 500
HALVINGS = 40


@outside_graphs
def transport(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Project on the matrices that are non-negative, with given sums of rows and of columns.

    Args:
        x: Matrices, of the shape ``(..., n, m)``.
        a: The sums of rows, positive, ``(..., n)``.
        b: The sums of columns, positive, of the same sum, ``(..., m)``.

    Returns:
        The nearest matrices, differentiable in `x`, `a` and `b`, any number of times. Where an
        entry is just about to become 0, the derivative is that of its staying free.

    Raises:
        SolverError: If rounding hides the sums among much larger entries, or of NaN.
        ValueError: If sums are not positive, or do not fit.

    Example:
        >>> import torch
        >>> transport(torch.eye(2), torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
        tensor([[0.2500, 0.2500],
                [0.0000, 0.5000]])

    Source:
        Blondel, Seguy & Rolet, *Smooth and sparse optimal transport*, AISTATS 2018, section 3,
        whose dual is minimized here by Newton's method.
    """
    check_masses(x, a, b)
    return over_batches(nearest, (x, a, b), (2, 1, 1))


def birkhoff(x: Tensor) -> Tensor:
    """Project on the matrices that are non-negative, with rows and columns that sum to 1.

    Args:
        x: Square matrices, of the shape ``(..., n, n)``.

    Returns:
        The nearest doubly stochastic matrices; see `transport`.

    Raises:
        ValueError: If `x` is not square.

    Example:
        >>> import torch
        >>> birkhoff(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])
    """
    return transport(x, *ones(x))


def kl_transport(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Project ``exp(x)`` on given sums of rows and of columns, in relative entropy.

    Args:
        x: Logarithms of matrices, of the shape ``(..., n, m)``.
        a: The sums of rows, positive, ``(..., n)``.
        b: The sums of columns, positive, of the same sum, ``(..., m)``.

    Returns:
        The matrices ``P`` with these sums which minimize ``sum P (log P - x)``: the plan of
        `diffopt_implicit.sinkhorn` for the cost ``-x``.

    Raises:
        SolverError: If the iterations do not converge.
        ValueError: If sums are not positive, or do not fit.

    Example:
        >>> import torch
        >>> kl_transport(torch.zeros(2, 2), torch.tensor([0.5, 0.5]), torch.tensor([0.2, 0.8]))
        tensor([[0.1000, 0.4000],
                [0.1000, 0.4000]])
    """
    return sinkhorn(-x, a, b, regularization=1.0).plan


def kl_birkhoff(x: Tensor) -> Tensor:
    """Project ``exp(x)`` on the doubly stochastic matrices, in relative entropy.

    Args:
        x: Logarithms of square matrices, of the shape ``(..., n, n)``.

    Returns:
        The matrices; see `kl_transport`.

    Raises:
        SolverError: If the iterations do not converge.
        ValueError: If `x` is not square.

    Example:
        >>> import torch
        >>> kl_birkhoff(torch.zeros(2, 2))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    return kl_transport(x, *ones(x))


def ones(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of rows and columns of doubly stochastic matrices like `x`."""
    if x.shape[-1:] != x.shape[-2:-1]:
        raise ValueError(
            f"Doubly stochastic matrices are square, and `x` has the shape {tuple(x.shape)}. "
            "Use `transport` or `kl_transport` with sums that fit."
        )
    one = torch.ones_like(x[..., 0, :].detach())
    return one, one


def nearest(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Project one matrix."""
    with torch.no_grad():
        potentials = dual_solution(x, a, b)
    check = RootCheck(on_inexact="ignore")  # `dual_solution` has seen to it
    return lifted(x, *attach_root(missed, potentials, (x, a, b), {}, solve_cg, check))


def lifted(x: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return the matrix of potentials."""
    raised = x + f[:, None] + g
    return torch.where(raised >= 0, raised, 0.0)


def missed(
    potentials: tuple[Tensor, Tensor], x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return by how much rows and columns miss their sums."""
    plan = lifted(x, *potentials)
    return plan.sum(1) - a, plan.sum(0) - b


def dual_solution(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Minimize the dual."""
    n, m = x.shape
    # The projection without signs, by which most of the scale is gone.
    f = (a - x.sum(1)) / m
    at = torch.cat([f, (b - x.sum(0) - f.sum()) / n])
    right = torch.cat([a, b])
    scale = torch.maximum(right.amax(), x.abs().amax() * (n + m))
    tol = 8 * torch.finfo(x.dtype).eps * scale
    slope = torch.full_like(at, torch.inf)
    for _ in range(MAXITER):
        slope, step = newton_step(x, right, at)
        live = ~(slope.abs().amax() <= tol)
        if not any_true(live):
            break
        at = torch.where(live, descended(x, right, at, slope, step), at)
    if any_true(~(slope.abs().amax() <= torch.finfo(x.dtype).eps ** 0.5 * right.amax())):
        raise SolverError(
            "The projection on the transport polytope misses its sums: rounding hides them among "
            "much larger entries, or something is not finite. Scale the matrix down, or work in "
            "float64."
        )
    return at[:n], at[n:]


def dual_value(x: Tensor, right: Tensor, at: Tensor) -> Tensor:
    """Return what the dual solution minimizes."""
    n = x.shape[0]
    return 0.5 * lifted(x, at[:n], at[n:]).square().sum() - right @ at


def newton_step(x: Tensor, right: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the dual and the regularized step against it."""
    n = x.shape[0]
    plan = lifted(x, at[:n], at[n:])
    edges = (plan > 0).to(x)
    slope = torch.cat([plan.sum(1), plan.sum(0)]) - right
    upper = torch.cat([edges.sum(1).diag(), edges], 1)
    hessian = torch.cat([upper, torch.cat([edges.mT, edges.sum(0).diag()], 1)])
    delta = torch.finfo(x.dtype).eps ** 0.5 + slope.abs().amax() / right.amax()
    eye = torch.eye(len(right), dtype=x.dtype, device=x.device)
    inverse = torch.linalg.inv_ex(hessian + delta.clamp(max=0.1) * eye).inverse
    return slope, -(inverse @ slope)


def descended(x: Tensor, right: Tensor, at: Tensor, slope: Tensor, step: Tensor) -> Tensor:
    """Go along a step as far as the dual decreases enough."""
    before, fall = dual_value(x, right, at), slope @ step
    # Differences of values are rounding alone in the end, where full steps are right.
    slack = 8 * torch.finfo(x.dtype).eps * before.abs()
    length = torch.ones_like(fall)
    for _ in range(HALVINGS):
        short = dual_value(x, right, at + length * step) > before + 1e-4 * length * fall + slack
        if not any_true(short):
            break
        length = torch.where(short, 0.5 * length, length)
    return at + length * step
