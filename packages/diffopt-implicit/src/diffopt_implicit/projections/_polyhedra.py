"""Projections on sets of linear constraints."""

from __future__ import annotations

import torch
from torch import Tensor

from diffopt_implicit._qp_layer import solve_batch
from diffopt_implicit._solvers._splitting_solvers import OSQP
from diffopt_implicit._torch import any_true
from diffopt_implicit.projections._elementary import Number, per_vector


def polyhedron(
    x: Tensor,
    A: Tensor | None = None,
    b: Tensor | None = None,
    G: Tensor | None = None,
    h: Tensor | None = None,
) -> Tensor:
    """Project on the points with ``A x = b`` and ``G x <= h``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        A: Of the shape ``(..., p, n)``, or None; rows may depend on one another.
        b: Of the shape ``(..., p)``, given with `A`.
        G: Of the shape ``(..., m, n)``, or None.
        h: Of the shape ``(..., m)``, given with `G`; may be infinite.

    Returns:
        The nearest points, differentiable in all that is given, any number of times. An
        inequality that is touched, and does not hold the point back, counts as absent.

    Raises:
        SolverError: If no point satisfies the constraints, with a proof in ``state.ray``.
        ValueError: If `A` is given without `b`, `G` without `h`, or shapes do not fit.

    Example:
        >>> import torch
        >>> G, h = torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 0.25])
        >>> polyhedron(torch.tensor([1.0, 1.0]), G=G, h=h)
        tensor([0.2500, 0.7500])
    """
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return solve_batch(OSQP(), eye, -x, G, h, A, b).primal


def box_section(x: Tensor, lower: Number, upper: Number, weights: Tensor, value: Number) -> Tensor:
    """Project on the part of a box where ``weights . x = value``.

    Args:
        x: Vectors, of the shape ``(..., n)``.
        lower: The least values, of a shape that broadcasts with `x`; may be infinite.
        upper: The largest values, likewise.
        weights: Of a shape that broadcasts with `x`.
        value: A number, or a tensor of the shape ``(...)``.

    Returns:
        The nearest points: ``x - t * weights`` brought between the bounds, with the ``t`` that
        gives the value. Differentiable in all arguments, any number of times; an element on a
        bound has that bound's derivative.

    Raises:
        ValueError: If the box has no such part.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.5, 1.5, -1.0])
        >>> box_section(x, 0.0, 1.0, torch.ones(3), 1.0)  # as on a simplex
        tensor([0., 1., 0.])
    """
    low, high = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in (lower, upper))
    x, low, high, weights = torch.broadcast_tensors(x, low, high, weights.to(x))
    total = per_vector(value, x).expand_as(x[..., :1])
    with torch.no_grad():
        check_section(low, high, weights, total)
        t = crossing(x, low, high, weights, total)
        moved = x - t * weights
        below, above = (moved <= low) & (weights != 0), (moved >= high) & (weights != 0)
    # With the elements that are free known, the equation for `t` is linear.
    free = torch.where(below | above | (weights == 0), 0.0, weights)
    bound = torch.where(below, low, torch.where(above, high, 0.0))
    square = (free * free).sum(-1, keepdim=True)
    excess = (free * x).sum(-1, keepdim=True) - (total - (weights * bound).sum(-1, keepdim=True))
    shift = excess / torch.where(square > 0, square, 1.0)
    unweighted = torch.where(x < low, low, torch.where(x > high, high, x))
    inside = torch.where(weights == 0, unweighted, x - shift * weights)
    return torch.where(below, low, torch.where(above, high, inside))


def check_section(low: Tensor, high: Tensor, weights: Tensor, total: Tensor) -> None:
    """Refuse a plane that misses its box."""
    ends = weighted(weights, low), weighted(weights, high)
    least = torch.minimum(*ends).sum(-1, keepdim=True)
    most = torch.maximum(*ends).sum(-1, keepdim=True)
    slack = 16 * torch.finfo(low.dtype).eps * torch.maximum(*(e.abs() for e in ends)).sum(-1)
    slack = torch.where(slack.isfinite(), slack, 0.0).unsqueeze(-1)
    if any_true((low > high).any(-1, keepdim=True)):
        raise ValueError("`lower` must not be above `upper`.")
    if any_true((total < least - slack) | (total > most + slack)):
        raise ValueError(
            "No point of the box has this `value`: `weights . x` lies between "
            "the sums of the lesser and of the larger of `weights * lower` and `weights * upper`."
        )


def crossing(x: Tensor, low: Tensor, high: Tensor, weights: Tensor, total: Tensor) -> Tensor:
    """Return a ``t`` on the piece where ``weights . clip(x - t weights)`` crosses `total`.

    That falls with ``t``, and bends where an element meets a bound: these places are sorted, and
    the last before the crossing is found by bisection.
    """
    safe = torch.where(weights == 0, 1.0, weights)
    bends = torch.cat([(x - bound) / safe for bound in (low, high)], -1)
    bends = torch.where(torch.cat([weights, weights], -1) == 0, 0.0, bends).sort(-1).values
    first, last = torch.zeros_like(total, dtype=torch.int64), torch.zeros_like(total).long()
    last = last + bends.shape[-1]
    for _ in range(bends.shape[-1].bit_length()):
        middle = ((first + last) // 2).clamp(max=bends.shape[-1] - 1)
        t = bends.gather(-1, middle)
        moved = torch.minimum(torch.maximum(x - weighted(weights, t), low), high)
        more = (weighted(weights, moved).sum(-1, keepdim=True) >= total) & (first < last)
        first, last = torch.where(more, middle + 1, first), torch.where(more, last, middle)
    infinite = torch.full_like(total, torch.inf)
    edges = torch.cat([-infinite, bends, infinite], -1)
    left, right = edges.gather(-1, first), edges.gather(-1, first + 1)
    one_sided = torch.where(
        left.isfinite(), left + 1, torch.where(right.isfinite(), right - 1, 0.0)
    )
    return torch.where(left.isfinite() & right.isfinite(), 0.5 * (left + right), one_sided)


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """Multiply, and give 0 for 0 times infinity."""
    return torch.where(weights == 0, 0.0, weights * values)
