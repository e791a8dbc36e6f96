"""Optimal transport with entropic regularization."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from diffopt_implicit._batches import over_batches
from diffopt_implicit._cg import solve_cg
from diffopt_implicit._condition import LinearSolver, attach_root
from diffopt_implicit._linear_system import check_nonnegative, check_positive
from diffopt_implicit._root_check import RootCheck
from diffopt_implicit._solvers._status import SolverError
from diffopt_implicit._torch import any_true, is_traced, levels, outside_graphs

# NOTE [the condition of the potentials]
# The marginals of the plan are right where the gradient of the dual objective vanishes. Its
# Hessian has two flaws: a null vector, as a constant may be moved from one potential to the
# other, and a diagonal as uneven as the masses. So the square of `sum(f) - sum(g)`, in a
# weighting by mass, is added to it, which is 0 for the potentials returned; and the unknowns
# are potentials times the roots of the masses, which makes the diagonal 1. What is left is
# symmetric positive definite, for conjugate gradients.


class TransportPlan(NamedTuple):
    """A regularized optimal transport.

    Attributes:
        plan: Of the shape ``(..., n, m)``, what is moved from where to where.
        value: Of the shape ``(...)``, the regularized cost.
        f: The potential of the sources, ``(..., n)``; weighted by mass it has the sum of `g`.
        g: The potential of the destinations, ``(..., m)``.
        iter_num: Int64 ``(...)``, how many iterations were taken.
        error: ``(...)``, by how much the masses of the sources are missed, summed.

    Example:
        >>> import torch
        >>> sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).plan.sum()
        tensor(1.)
    """

    plan: Tensor
    value: Tensor
    f: Tensor
    g: Tensor
    iter_num: Tensor
    error: Tensor


@outside_graphs
def sinkhorn(
    cost: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    regularization: float | Tensor = 0.1,
    tol: float | None = None,
    maxiter: int = 10_000,
    implicit_diff_solve: LinearSolver = solve_cg,
) -> TransportPlan:
    """Transport masses at the least cost, smoothly.

    The minimum over ``P >= 0`` with ``P 1 = a`` and ``P^T 1 = b`` of::

        sum_ij P_ij cost_ij + regularization * sum_ij P_ij log(P_ij / (a_i b_j))

    by iterations on the logarithms, and with the derivatives of their limit, by the implicit
    function theorem: memory does not grow with the iterations.

    Args:
        cost: Of the shape ``(..., n, m)``.
        a: The masses of the sources, positive, ``(..., n)``; default ``1 / n``.
        b: The masses of the destinations, positive, of the same sum, ``(..., m)``; default
            ``1 / m``.
        regularization: Positive, in the units of the cost: a number or a tensor of the shape
            ``(...)``. The number of iterations grows as it falls.
        tol: Stop once the masses of the sources are met to this, summed and relative to all;
            default ``eps ** 0.75`` of the dtype: 1.8e-12 in float64, 6.4e-6 in float32.
        maxiter: At most so many iterations; each example of a batch takes what it needs.
        implicit_diff_solve: The linear solver of the derivatives, for symmetric positive
            definite systems of ``n + m`` unknowns.

    Returns:
        The plan, its value and potentials: differentiable in `cost`, `a`, `b` and
        `regularization`, any number of times. Masses are meant to move with their sum kept:
        a derivative in one of them alone is that of both sums moving halfway.

    Raises:
        SolverError: If `maxiter` is not enough; its `state` is the `TransportPlan` so far.
        ValueError: If masses are not positive, or of different sums.

    Example:
        >>> import torch
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], requires_grad=True)
        >>> moved = sinkhorn(cost, regularization=0.5)
        >>> moved.plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]], grad_fn=...)
        >>> torch.autograd.grad(moved.value, cost)[0]  # is the plan
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]])

    Source:
        Cuturi, *Sinkhorn distances*, NeurIPS 2013; in the logarithmic domain, Peyré & Cuturi,
        *Computational Optimal Transport*, 2019, section 4.4.
    """
    check_positive("regularization", regularization)
    check_positive("maxiter", maxiter)
    goal = torch.finfo(cost.dtype).eps ** 0.75 if tol is None else tol
    check_nonnegative("tol", goal)
    n, m = cost.shape[-2:]
    a = torch.full_like(cost[..., 0], 1 / n) if a is None else a
    b = torch.full_like(cost[..., 0, :], 1 / m) if b is None else b
    check_masses(cost, a, b)
    strength = torch.as_tensor(regularization, dtype=cost.dtype, device=cost.device)
    core = functools.partial(transported, goal, maxiter, implicit_diff_solve)
    moved = over_batches(core, (cost, a, b, strength), (2, 1, 1, 0))
    report(moved, goal)
    return moved


def check_masses(cost: Tensor, a: Tensor, b: Tensor) -> None:
    """Refuse masses that cannot be transported, or not differentiably."""
    n, m = cost.shape[-2:]
    if a.shape[-1:] != (n,) or b.shape[-1:] != (m,):
        raise ValueError(
            f"For a cost of the shape {tuple(cost.shape)} the masses must have {n} and {m} "
            f"elements, got `a` of the shape {tuple(a.shape)} and `b` of {tuple(b.shape)}."
        )
    if is_traced(a, b):
        return
    if not bool((a > 0).all()) or not bool((b > 0).all()):
        raise ValueError("The masses `a` and `b` must be positive: leave out points without mass.")
    surplus = (a.sum(-1) - b.sum(-1)).abs()
    if bool((surplus > torch.finfo(a.dtype).eps ** 0.5 * a.sum(-1)).any()):
        raise ValueError(
            "The masses `a` and `b` must have the same sum; their sums differ by "
            f"{surplus.max().item():.2g}. Divide each by its sum."
        )


def transported(
    tol: float,
    maxiter: int,
    solve: LinearSolver,
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    strength: Tensor,
) -> TransportPlan:
    """Solve one problem, in units of the regularization."""
    scaled = cost / strength
    with torch.no_grad():
        f, g, iter_num, error = iterated(scaled, a, b, tol, maxiter)
        roots = a.sqrt(), b.sqrt()
        unknowns = f * roots[0], g * roots[1]
    args = (scaled, a, b, *(root.detach() for root in roots))
    check = RootCheck(on_inexact="ignore")  # `report` has seen to it
    f, g = attach_root(marginals, unknowns, args, {}, solve, check)
    f, g = f / args[3], g / args[4]
    plan = coupling(scaled, a, b, f, g)
    # Of P = a b exp(f + g - c) the entropy relative to a b is sum P (f + g - c).
    value = strength * ((f * plan.sum(1)).sum() + (g * plan.sum(0)).sum())
    return TransportPlan(plan, value, strength * f, strength * g, iter_num, error)


def iterated(
    cost: Tensor, a: Tensor, b: Tensor, tol: float, maxiter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return potentials, how many iterations they took, and the error left."""
    f, g = torch.zeros_like(a + cost[:, 0]), torch.zeros_like(b + cost[0])
    total = a.sum()
    error, count = torch.full_like(total + f[0], torch.inf), torch.zeros_like(f[0]).long()
    for _ in range(maxiter):
        live = ~(error <= tol)
        if not any_true(live):
            break
        new_f = -torch.logsumexp(g - cost + b.log(), 1)
        # With the old `g` the columns are right, and the rows are off by how much `f` changes.
        missed = (a * (f - new_f).expm1().abs()).sum() / total
        new_g = -torch.logsumexp(new_f[:, None] - cost + a.log()[:, None], 0)
        error = torch.where(live & (count > 0), missed, error)
        f, g = torch.where(live, new_f, f), torch.where(live, new_g, g)
        count = count + live
    shift = ((f * a).sum() - (g * b).sum()) / (2 * total)
    return f - shift, g + shift, count, error


def marginals(
    unknowns: tuple[Tensor, Tensor],
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    root_a: Tensor,
    root_b: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return by how much the plan misses the masses, and the potentials their balance."""
    f, g = unknowns[0] / root_a, unknowns[1] / root_b
    plan = coupling(cost, a, b, f, g)
    balance = ((a * f).sum() - (b * g).sum()) / a.sum()
    rows = (plan.sum(1) - a) / root_a + balance * root_a
    return rows, (plan.sum(0) - b) / root_b - balance * root_b


def coupling(cost: Tensor, a: Tensor, b: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return the plan of potentials."""
    return a[:, None] * b * (f[:, None] + g - cost).exp()


def report(moved: TransportPlan, tol: float) -> None:
    """Raise if any example has not converged."""
    if not any_true(~(moved.error <= tol)):
        return
    raise SolverError(
        f"`sinkhorn` misses the masses by up to {worst(moved.error):.2g} of them after "
        f"{worst(moved.iter_num)} iterations, where {tol:.2g} is asked for. Raise "
        "`regularization`, `maxiter` or `tol`, or work in float64.",
        moved,
    )


def worst(values: Tensor) -> float:
    """Return the largest of all examples."""
    *_, physical = levels(values.detach())
    return physical.max().item()
